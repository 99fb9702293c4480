"""What parts of operators read: right where it is less than everything, nothing where it is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunec.ir import graph
from prunec.probing.boxes import WHOLE, Box, Span
from prunec.probing.lengths import Lengths
from prunec.probing.reads import Reader
from prunec.probing.units import Reads, unit_of
from tests import tiny
from tests.probing.operators import Call, last

ROW = Span(0, 1)
X = (torch.randn(2, 7, 12),)


def reads(function: Callable[..., Any], box: Box, *inputs: Tensor) -> Reads | None:
    return Reader([Lengths({})]).reads(unit_of(last(function, *(inputs or X))), box)


def boxes(function: Callable[..., Any], box: Box, *inputs: Tensor) -> tuple[Box | None, ...] | None:
    found = reads(function, box, *inputs)
    return None if found is None else found.boxes


def qkv(heads: int = 2) -> tuple[Tensor, ...]:
    return tuple(torch.randn(2, heads, 7, 8) for _ in range(3))


# --- found ------------------------------------------------------------------------------------


def test_a_row_of_a_pointwise_operator_reads_that_row() -> None:
    assert boxes(lambda _, x: F.gelu(x), ((1, ROW),)) == (((1, ROW),),)
    assert boxes(lambda _, x: F.relu(x), ((1, ROW),)) == (((1, ROW),),)
    assert boxes(lambda _, x: F.layer_norm(x, (12,)), ((1, ROW),)) == (((1, ROW),),)


def test_rows_and_columns_of_a_linear_layer_read_rows_of_its_weight() -> None:
    def linear(module: Call, x: Tensor) -> Tensor:
        return F.linear(x, module.weight, module.bias)

    columns = Span(10, 20)
    row = ((1, ROW),)
    assert boxes(linear, row) == (row, WHOLE, WHOLE)
    assert boxes(linear, (*row, (2, columns))) == (row, ((0, columns),), ((0, columns),))
    found = reads(linear, row)
    assert found is not None
    assert (found.whole_flops, found.flops) == (2 * 2 * 7 * 12 * 30, 2 * 2 * 1 * 12 * 30)


def test_attention_reads_one_query_and_all_keys_and_values() -> None:
    def attend(_: Call, *inputs: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*inputs)

    row = ((2, ROW),)
    assert boxes(attend, row, *qkv()) == (row, WHOLE, WHOLE)
    assert boxes(attend, row, *qkv(), torch.rand(7, 7) > 0.2) == (row, WHOLE, WHOLE, ((0, ROW),))
    assert boxes(attend, row, *qkv(), torch.randn(1, 2, 7, 7)) == (row, WHOLE, WHOLE, row)


def test_causal_attention_reads_what_came_before() -> None:
    def attend(_: Call, *inputs: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*inputs, is_causal=True)

    assert boxes(attend, ((2, ROW),), *qkv()) == (((2, ROW),),) * 3
    assert reads(attend, ((2, Span(6, 7)),), *qkv()) is None  # would need another mask


def test_burnt_in_sizes_become_those_of_the_part() -> None:
    found = reads(lambda _, x: x.reshape(-1, 7, 3, 4), ((1, ROW), (2, Span(0, 1))))
    assert found is not None
    assert found.boxes == (((1, ROW), (2, Span(0, 4))),)
    assert dict(found.sizes) == {(1, 1): ROW, (1, 2): Span(0, 1)}


def test_elements_of_a_tuple_are_pieces() -> None:
    found = reads(lambda _, x: x.unbind(1)[3], WHOLE)
    assert found == Reads((((1, Span(3, 4)),),), piece=0, squeezed=(1,))
    found = reads(lambda _, x: x.chunk(3, -1)[1], WHOLE)
    assert found == Reads((((2, Span(4, 8)),),), piece=0)


def test_of_a_concatenation_only_the_operand_that_holds_the_row() -> None:
    first, second = torch.randn(2, 3, 12), torch.randn(2, 4, 12)
    found = reads(lambda _, *inputs: torch.cat(inputs, 1), ((1, Span(1, 2)),), first, second)
    assert found is not None
    assert (found.boxes, found.piece) == ((((1, Span(1, 2)),), None), 0)


# --- not found --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [
        lambda _, x: x.softmax(1),
        lambda _, x: x.cumsum(1),
        lambda _, x: x.sort(1).values,
        lambda _, x: x.cummax(1).values,
        lambda _, x: F.instance_norm(x.transpose(1, 2)),
        lambda _, x: F.conv1d(x.transpose(1, 2), torch.ones(12, 1, 3), padding=1, groups=12).transpose(1, 2),
        lambda _, x: F.dropout(x, 0.5),
    ],
    ids=["softmax", "cumsum", "sort", "cummax", "instance norm", "convolution", "dropout"],
)
def test_an_operator_that_looks_at_other_rows_reads_them_all(function: Callable[..., Any]) -> None:
    node = last(function, *X)
    if graph.op(node) == "transpose":
        node = node.all_input_nodes[0]
    axis = graph.shape(node).index(7)
    assert Reader([Lengths({})]).reads(unit_of(node), ((axis, Span(6, 7)),)) is None


@pytest.mark.parametrize(
    "function", [lambda _, x: x.mean(1), lambda _, x: x.amax(1), lambda _, x: x.median(1).values]
)
def test_a_summary_of_all_rows_reads_all(function: Callable[..., Any]) -> None:
    assert reads(function, WHOLE) is None


def test_integers_may_be_places_anywhere() -> None:
    def pick(_: Call, x: Tensor, index: Tensor) -> Tensor:
        return x.index_select(1, index)

    assert reads(pick, ((1, ROW),), *X, torch.tensor([5, 6, 3])) is None


def test_the_same_operator_wired_otherwise_is_watched_anew() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return x * x, x * y

    program = tiny.normalised(Two(), *X, torch.randn(2, 7, 12))
    square, product = graph.output_node(program.graph).all_input_nodes
    reader = Reader([Lengths({})])
    row = ((1, ROW),)
    found = [reader.reads(unit_of(node), row) for node in (square, product)]
    assert [len(each.boxes) for each in found if each] == [1, 2]


@pytest.mark.parametrize("place", range(7))
def test_a_mask_that_happens_to_hide_a_key_proves_nothing(place: int) -> None:
    def attend(_: Call, *inputs: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*inputs)

    row = Span(place, place + 1)
    found = boxes(attend, ((2, row),), *qkv(heads=1), torch.rand(7, 7) > 0.5)
    assert found == (((2, row),), WHOLE, WHOLE, ((0, row),))


def test_a_mask_of_the_keys_leaves_them_all() -> None:
    def attend(_: Call, *inputs: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*inputs)

    three = tuple(torch.randn(2, 1, 3, 8) for _ in range(3))
    row = ((2, ROW),)
    assert boxes(attend, row, *three, torch.rand(2, 1, 1, 3) > 0.5) == (row, WHOLE, WHOLE, WHOLE)
