from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from prunec.dataflow.flow import DataFlow, chains, find_pixels, residual_adds
from prunec.errors import RecognitionError
from prunec.ir import graph
from tests.tiny import Block, ViT, normalised


class Stream(nn.Module):
    """Whatever a test does with a stream of two layers."""

    def __init__(self, forward: Callable[..., Tensor]) -> None:
        super().__init__()
        self.one, self.two, self.scale = nn.Linear(4, 4), nn.Linear(4, 4), nn.Parameter(torch.ones(4))
        self.norm, self.call = nn.LayerNorm(4), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


def flow_of(forward: Callable[..., Tensor]) -> DataFlow:
    return DataFlow(normalised(Stream(forward), torch.randn(2, 5, 4)).graph)


def found(forward: Callable[..., Tensor]) -> list[tuple[str, str]]:
    """Which adds are residual: the operators of the state and of the branch."""
    flow = flow_of(forward)
    return [(graph.op(link.state), graph.op(link.branch)) for link in residual_adds(flow)]


RESIDUAL: dict[str, tuple[Callable[..., Tensor], int]] = {
    "another state": (lambda m, x: x.exp() + m.one(x.sin()), 0),
    "one state": (lambda m, x: (lambda s: s + m.one(s))(x.exp()), 1),
    "two in sequence": (lambda m, x: (lambda s: s + m.two(s))((lambda s: s + m.one(s))(x.exp())), 2),
    "parallel": (lambda m, x: (lambda s: s + m.one(s) + m.two(s))(x.exp()), 2),
    "scaled": (lambda m, x: (lambda s: s * m.scale + m.one(s))(x.exp()), 1),
    "two projections": (lambda m, x: (lambda s: m.one(s) + m.two(s))(x.exp()), 0),
    "another shape": (lambda m, x: (lambda s: s + m.one(s).mean(1, keepdim=True))(x.exp()), 1),
    "twice itself": (lambda m, x: (lambda s: s + s)(x.exp()), 0),
    "a bias": (lambda m, x: x.exp() + m.scale, 0),
}


@pytest.mark.parametrize("name", RESIDUAL)
def test_an_add_is_residual_where_its_state_dominates_its_branch(name: str) -> None:
    forward, count = RESIDUAL[name]
    assert len(found(forward)) == count


def test_a_region_is_what_the_branch_computes_and_no_more() -> None:
    flow = flow_of(lambda m, x: (lambda s: s + m.two(m.one(s).relu()))(x.exp()).sin())
    (link,) = residual_adds(flow)
    assert {graph.op(node) for node in link.region} == {"linear", "relu"}
    assert link.state not in link.region
    assert flow.order[link.state] < flow.order[link.branch] < flow.order[link.add]


def test_blocks_are_one_chain_also_with_norms_between() -> None:
    flow = DataFlow(normalised(ViT(depth=3)).graph)
    assert [len(chain) for chain in chains(residual_adds(flow), flow)] == [6]

    class PostNorm(Block):
        def forward(self, x: Tensor) -> Tensor:
            x = self.norm1(x + self.attn(x))
            return self.norm2(x + self.mlp(x))

    flow = DataFlow(normalised(ViT(PostNorm, depth=3)).graph)
    assert [len(chain) for chain in chains(residual_adds(flow), flow)] == [6]


def test_streams_with_other_work_between_are_two_chains() -> None:
    flow = flow_of(
        lambda m, x: (lambda s: s + m.two(s))((lambda s: s + m.one(s))(x.exp()).softmax(1).cumsum(1))
    )
    assert [len(chain) for chain in chains(residual_adds(flow), flow)] == [1, 1]


class Inputs(nn.Module):
    def forward(self, ids: Tensor, scale: Tensor, small: Tensor, image: Tensor) -> Tensor:
        return image * scale + small.sum() + ids.sum()


def test_pixels_are_the_largest_image_among_the_inputs() -> None:
    given = torch.arange(2), torch.randn(2, 1, 1, 1), torch.randn(2, 9, 99), torch.randn(2, 3, 4, 4)
    pixels = find_pixels(normalised(Inputs(), *given).graph)
    assert tuple(pixels.meta["val"].shape[1:]) == (3, 4, 4)


def test_a_model_without_an_image_says_so() -> None:
    class Words(nn.Module):
        def forward(self, ids: Tensor) -> Tensor:
            return ids * 2

    with pytest.raises(RecognitionError, match="no image") as caught:
        find_pixels(normalised(Words(), torch.arange(6).view(2, 3)).graph)
    assert caught.value.remedy
