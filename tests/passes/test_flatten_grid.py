from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from prunec.dataflow.flow import DataFlow, residual_adds
from prunec.ir import graph
from prunec.ir.program import Program
from prunec.passes import run_passes
from prunec.passes.flatten_grid import FlattenGrid
from prunec.passes.normalise import Normalise
from tests.tiny import Mlp, ViT, captured, counts, pixels, run, targets_of
from tests.windows import DIM, SIDE, GlobalAttention, GridBlock, GridViT, WindowAttention, windowed


def flattened(model: nn.Module) -> Program:
    return run_passes((Normalise(), FlattenGrid()), captured(model, pixels(side=SIDE)))


def ranks(program: Program, name: str) -> list[int]:
    """The rank of every value that an operator makes."""
    return [len(graph.shape(node)) for node in program.graph.nodes if graph.op(node) == name]


def equal(model: nn.Module, program: Program) -> None:
    x = pixels(3, side=SIDE)
    with torch.no_grad():
        torch.testing.assert_close(run(program, x)[0], model(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("in_a_row", [False, True])
def test_all_states_of_a_grid_get_one_token_axis(in_a_row: bool) -> None:
    model = windowed(in_a_row=in_a_row)
    program = flattened(model)
    states = [graph.shape(link.add)[1:] for link in residual_adds(DataFlow(program.graph))]
    assert states == [(SIDE * SIDE, DIM)] * 8
    assert ranks(program, "layer_norm") == [3] * 8  # token-wise: flat
    assert ranks(program, "gelu") == [3] * 4
    assert ranks(program, "roll") == [4] * 2  # not token-wise: the grid
    assert counts(program, "flatten grid")["flat"] > 0
    equal(model, program)


def test_the_grid_is_given_back_only_where_it_is_wanted() -> None:
    targets = targets_of(flattened(windowed()))
    assert targets.count("unflatten") == 2  # before the roll, and before the neck
    assert targets.count("flatten") == 1 + 3  # the embedding, and what each attention in windows made


def test_a_stream_of_tokens_stays_as_it_is() -> None:
    before = run_passes((Normalise(),), captured(ViT()))
    after = run_passes((FlattenGrid(),), before)
    assert after.module is before.module
    assert counts(after, "flatten grid") == {"flat": 0}


class ConvolutionBlock(nn.Module):
    """A residual block on [B, C, H, W]."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Conv2d(DIM, DIM, 3, padding=1), nn.Conv2d(DIM, DIM, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        x = x + self.down(self.up(x).relu())
        return x.permute(0, 2, 3, 1)


def test_a_stream_of_feature_maps_stays_as_it_is() -> None:
    program = flattened(GridViT(ConvolutionBlock(), ConvolutionBlock()))
    assert counts(program, "flatten grid") == {"flat": 0}


class OverGrid(Mlp):
    """An MLP whose hidden layer goes through an operator that depends on the grid."""

    def __init__(self, operator: Callable[[Tensor], Tensor]) -> None:
        super().__init__(DIM)
        self.operator = operator

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.operator(self.up(x)).relu())


# Each has a type on [B, N, C] too, where it would compute something else.
NEAR_MISSES: dict[str, Callable[[Tensor], Tensor]] = {
    "roll": lambda x: x.roll((1, 1), (1, 2)),
    "cumulative sum": lambda x: x.cumsum(dim=1),
    "flip": lambda x: x.flip(2),
    "softmax over rows": lambda x: x.softmax(dim=1),
    "normalised over columns": lambda x: x / x.norm(dim=2, keepdim=True),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_an_operator_that_depends_on_the_grid_gets_the_grid(name: str) -> None:
    torch.manual_seed(0)
    block = GridBlock(WindowAttention())
    block.mlp = OverGrid(NEAR_MISSES[name])
    model = GridViT(block, GridBlock(GlobalAttention())).eval()
    program = flattened(model)
    assert counts(program, "flatten grid")["flat"] > 0
    equal(model, program)
    shapes = [graph.shape(link.add)[1:] for link in residual_adds(DataFlow(program.graph))]
    assert shapes[0] == (SIDE * SIDE, DIM)


def test_a_grid_of_one_row_and_widths_that_collide() -> None:
    # H = W = C: an axis cannot be told by its length
    model = GridViT(GridBlock(GlobalAttention()), GridBlock(GlobalAttention())).eval()
    model.patches = nn.Conv2d(3, DIM, 4, 4)
    model.position = nn.Parameter(torch.randn(1, DIM, DIM, DIM))
    x = pixels(2, side=DIM)
    program = run_passes((Normalise(), FlattenGrid()), captured(model, x))
    with torch.no_grad():
        torch.testing.assert_close(run(program, x)[0], model(x), rtol=0, atol=1e-5)
