from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunec.dataflow.branches import blocks_of, branch_of, without_long_skips
from prunec.dataflow.cores import find_cores
from prunec.dataflow.flow import DataFlow, residual_adds
from prunec.structure import Branch
from tests.tiny import Block, ViT, normalised


def branches_of(model: nn.Module) -> tuple[list[Branch], DataFlow]:
    flow = DataFlow(normalised(model).graph)
    cores = find_cores(flow)
    links = without_long_skips(residual_adds(flow), cores, flow)
    return [branch_of(link, cores, flow) for link in links], flow


def vit(forward: Callable[..., Tensor]) -> ViT:
    class Written(Block):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(16))
            self.gate = nn.Linear(16, 32)

        def forward(self, x: Tensor) -> Tensor:
            return forward(self, x)

    return ViT(Written)


def gated(m: nn.Module, x: Tensor) -> Tensor:
    return m.mlp.down(F.silu(m.mlp.up(x)) * m.gate(x))


WAYS: dict[str, tuple[Callable[..., Tensor], dict[str, list[object]]]] = {
    "pre-norm": (
        lambda m, x: (lambda s: s + m.mlp(m.norm2(s)))(x + m.attn(m.norm1(x))),
        {"kind": ["attention", "mlp"], "norm": ["pre", "pre"], "activation": [None, "gelu"]},
    ),
    "post-norm": (
        lambda m, x: (lambda s: m.norm2(s + m.mlp(s)))(m.norm1(x + m.attn(x))),
        {"kind": ["attention", "mlp"], "norm": ["post", "post"]},
    ),
    "no norm": (
        lambda m, x: (lambda s: s + m.mlp(s))(x + m.attn(x)),
        {"kind": ["attention", "mlp"], "norm": ["none"]},
    ),
    "layer scale": (
        lambda m, x: (lambda s: s + m.mlp(m.norm2(s)))(x + m.attn(m.norm1(x)) * m.scale),
        {"layer_scale": [True, False]},
    ),
    "gated": (
        lambda m, x: (lambda s: s + gated(m, m.norm2(s)))(x + m.attn(m.norm1(x))),
        {"activation": [None, "silu gated"]},
    ),
    "parallel in one add": (
        lambda m, x: x + (lambda s: m.attn(s) + m.mlp(s))(m.norm1(x)),
        {"kind": ["parallel"], "activation": ["gelu"]},
    ),
    "neither": (
        lambda m, x: (lambda s: s + m.scale * m.norm2(s))(x + m.attn(m.norm1(x))),
        {"kind": ["attention", "other"]},
    ),
}


@pytest.mark.parametrize("name", WAYS)
def test_a_branch_is_what_its_region_holds(name: str) -> None:
    forward, expected = WAYS[name]
    branches, _ = branches_of(vit(forward))
    for field, values in expected.items():
        found = [getattr(branch, field) for branch in branches[: len(values)]]
        assert found == values, field


def test_a_block_begins_with_its_attention() -> None:
    branches, flow = branches_of(ViT(depth=3))
    blocks = blocks_of(branches, flow)
    assert [block.path for block in blocks] == ["blocks.0", "blocks.1", "blocks.2"]
    assert [[branch.kind for branch in block.branches] for block in blocks] == [["attention", "mlp"]] * 3


def test_a_skip_over_whole_blocks_is_none_of_their_branches() -> None:
    class Long(ViT):
        def forward(self, pixels: Tensor) -> Tensor:
            x = self.embed(pixels)
            return self.head(self.norm(x + self.blocks(x))[:, 0])

    branches, _ = branches_of(Long())
    assert [branch.kind for branch in branches] == ["attention", "mlp"] * 2
