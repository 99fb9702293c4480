"""The model's code on a shorter stream: where it is cut, what is made to fit, and what is not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from prunec.counting.comparison import aligned
from prunec.counting.rerun import SHARES, Rerun, is_of_batch, is_resized
from prunec.ir import graph
from prunec.passes import FRONT, run_passes
from tests.tiny import Attention, Block, ViT, captured, pixels


def rerun(model: nn.Module) -> Rerun:
    program = captured(model)
    return Rerun(model, program, run_passes(FRONT, program))


class Strict(ViT):
    """A model that insists on the size of its image, or of its stream."""

    def __init__(self, image: int | None = None, tokens: int | None = None) -> None:
        super().__init__()
        self.image, self.tokens = image, tokens

    def forward(self, pixels: Tensor) -> Tensor:
        assert self.image in (None, pixels.shape[2])
        x = self.embed(pixels)
        assert self.tokens in (None, x.shape[1])
        return self.head(self.norm(self.blocks(x))[:, 0])


def test_the_image_is_cut_where_the_model_takes_another() -> None:
    run = rerun(ViT())
    counts = [run.run(share)[1] for share in SHARES]
    assert counts == [1 + 4 * 5, 1 + 2 * 5]
    assert run.cut.shape is None


def test_a_stream_as_short_as_said_runs_through_the_whole_model() -> None:
    module, tokens = rerun(ViT()).run(SHARES[0])
    lengths = {node.meta["val"].shape[1] for node in module.graph.nodes if graph.op(node) == "layer_norm"}
    assert lengths == {tokens}
    assert [is_resized(node) for node in module.graph.nodes].count(True) == 1  # learned positions, cut


def test_the_grid_of_patches_is_cut_where_the_model_takes_no_other_image() -> None:
    run = rerun(Strict(image=20))
    assert run.run(SHARES[0])[1] == 21
    assert run.cut.shape == (None, 16, 5, 5)


def test_a_model_that_takes_no_shorter_stream_says_why() -> None:
    run = rerun(Strict(tokens=26))
    assert run.run(SHARES[0]) is None
    assert run.reason.startswith("AssertionError")


class Biased(Attention):
    """A bias over pairs of tokens, as long as the stream at first."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(2, 26, 26))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT * 0.35 + self.bias).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class Gridded(nn.Module):
    """An MLP that wants the patches in their grid."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        patches = x[:, 1:].transpose(1, 2).reshape(-1, 16, 5, 5)
        return torch.cat([x[:, :1], self.conv(patches).flatten(2).transpose(1, 2)], dim=1)


@pytest.mark.parametrize("block", [lambda: Block(attention=Biased), lambda: Block(mlp=Gridded)])
def test_tables_are_cut_and_grids_are_filled(block: object) -> None:
    module, tokens = rerun(ViT(block)).run(SHARES[0])  # type: ignore[arg-type]
    states = [node for node in module.graph.nodes if graph.op(node) == "layer_norm"]
    assert all(node.meta["val"].shape[1] == tokens for node in states)


class ByBatch(ViT):
    """Images and tokens on one axis, by a size that is computed."""

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.embed(pixels)
        images, tokens, channels = x.shape
        rows = self.blocks(x).reshape(images * tokens, channels)
        return self.head(self.norm(rows).reshape(images, tokens, channels)[:, 0])


class OtherwiseWithNumbers(ViT):
    """Where the batch is a number, it leaves out what it does where it is a symbol."""

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.embed(pixels)
        x = x if isinstance(x.shape[0], int) else x.sin()
        return self.head(self.norm(self.blocks(x))[:, 0])


@pytest.mark.parametrize(("kind", "number"), [(ViT, True), (ByBatch, False), (OtherwiseWithNumbers, False)])
def test_the_batch_is_a_number_where_that_makes_no_difference(kind: type[ViT], number: bool) -> None:
    for share in SHARES:
        module, tokens = rerun(kind()).run(share)
        states = [node for node in module.graph.nodes if graph.op(node) == "layer_norm"][:4]
        assert {node.meta["val"].shape[1] for node in states} == {tokens}
        assert [isinstance(node.meta["val"].shape[0], int) for node in states] == [number] * 4
    assert any(graph.op(node) == "sin" for node in module.graph.nodes) == (kind is OtherwiseWithNumbers)


def test_calls_that_are_only_there_where_the_batch_is_a_symbol_have_twins() -> None:
    class Slices(ViT):
        def forward(self, pixels: Tensor) -> Tensor:
            x = self.embed(pixels)[:, :]
            return self.head(self.norm(self.blocks(x))[:, 0]) * (x.shape[1] / 26)

    program = captured(Slices())
    module, _ = Rerun(Slices(), program, run_passes(FRONT, program)).run(SHARES[0])
    twins = aligned(program.graph, module.graph)
    missing = [node for node in program.graph.nodes if node.op == "call_function" and node not in twins]
    assert missing == []
    assert len([node for node in twins if is_of_batch(node)]) > 0
    assert [graph.op(one) for one in twins] == [graph.op(other) for other in twins.values()]


def test_the_model_and_what_it_remembers_stay_as_they_were() -> None:
    class Remembers(ViT):
        seen = 0

        def forward(self, pixels: Tensor) -> Tensor:
            self.seen = self.embed(pixels).shape[1]
            return super().forward(pixels)

    model = Remembers()
    run = rerun(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert run.run(SHARES[0])[1] == 21
    assert model.seen == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model(pixels()).shape == (2, 7)
