from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from prunec.probing import watch


def node_of(function: Callable[..., Any], *operands: Any) -> fx.Node:
    """A call in a graph, with the types of its operands."""
    graph = fx.Graph()
    nodes = []
    for number, operand in enumerate(operands):
        node = graph.placeholder(f"operand_{number}")
        node.meta["val"] = operand
        nodes.append(node)
    return graph.call_function(function, tuple(nodes))


ROWS = torch.empty(2, 7, 4)


# the call, its operands, which one is watched, the axes of rows in it and in the result; whether it is local
CALLS: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...], int, tuple[int, int], bool]] = {
    "linear": (F.linear, (ROWS, torch.empty(3, 4)), 0, (1, 1), True),
    "gelu": (F.gelu, (ROWS,), 0, (1, 1), True),
    "sum of two": (torch.add, (ROWS, ROWS), 1, (1, 1), True),
    "norm over channels": (lambda x: F.layer_norm(x, (4,)), (ROWS,), 0, (1, 1), True),
    "moved axis": (lambda x: x.permute(2, 0, 1), (ROWS,), 0, (1, 2), True),
    "parts": (lambda x: x.chunk(2, dim=2), (ROWS,), 0, (1, 1), True),
    "queries": (F.scaled_dot_product_attention, (ROWS, ROWS, ROWS), 0, (1, 1), True),
    "keys": (F.scaled_dot_product_attention, (ROWS, ROWS, ROWS), 1, (1, 1), False),
    "values": (F.scaled_dot_product_attention, (ROWS, ROWS, ROWS), 2, (1, 1), False),
    "running sum": (lambda x: x.cumsum(1), (ROWS,), 0, (1, 1), False),
    "rolled rows": (lambda x: x.roll(1, 1), (ROWS,), 0, (1, 1), False),
    "norm over rows": (lambda x: F.normalize(x, dim=1), (ROWS,), 0, (1, 1), False),
    "shares": (lambda x: x.softmax(1), (ROWS,), 0, (1, 1), False),
    "convolution over rows": (lambda x: F.avg_pool1d(x.mT, 3, 1, 1).mT, (ROWS,), 0, (1, 1), False),
    "without the first rows": (lambda x: x[:, 2:], (ROWS,), 0, (1, 1), True),
    "first rows and the others": (lambda x: x.split([2, 5], dim=1), (ROWS,), 0, (1, 1), True),
    "rows put before them": (lambda x, y: torch.cat([y, x], dim=1), (ROWS, ROWS[:, :2]), 0, (1, 1), True),
    "every other row": (lambda x: x[:, ::2], (ROWS,), 0, (1, 1), False),
    "pairs of rows": (lambda x: x[:, :6].unflatten(1, (3, 2)).sum(2), (ROWS,), 0, (1, 1), False),
    "halves laid over each other": (lambda x: x[:, :3] + x[:, 4:], (ROWS,), 0, (1, 1), False),
    "what does not run": (lambda x: x.reshape(3, 3), (ROWS,), 0, (1, 1), False),
}


@pytest.mark.parametrize("name", CALLS)
def test_which_calls_work_row_by_row(name: str) -> None:
    function, operands, watched, axes, local = CALLS[name]
    node = node_of(function, *operands)
    assert watch.is_row_local(node, node.all_input_nodes[watched], axes) is local


def test_numbers_have_the_type_that_was_recorded() -> None:
    assert watch.numbers(torch.empty(2, 3, dtype=torch.bfloat16), 0).dtype == torch.bfloat16
    assert watch.numbers(torch.empty(5, dtype=torch.bool), 0).dtype == torch.bool
    assert set(watch.numbers(torch.empty(50, dtype=torch.int64), 0).tolist()) == {0, 1}
    assert watch.numbers([torch.empty(2), 3, None], 0)[1:] == [3, None]
    one, other = (watch.numbers(torch.empty(9), seed) for seed in (0, 1))
    assert not torch.equal(one, other)
    torch.testing.assert_close(one, watch.numbers(torch.empty(9), 0))


def test_watching_leaves_the_random_state_alone() -> None:
    node = node_of(F.gelu, ROWS)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    watch.is_row_local(node, node.all_input_nodes[0], (1, 1))
    torch.testing.assert_close(torch.rand(3), expected)


ZEROS: dict[str, tuple[Callable[..., Any], bool]] = {
    "a multiple": (lambda weights: weights * 3, True),
    "a share": (lambda weights: weights / weights.sum(-1, keepdim=True).clamp_min(1e-6), True),
    "those over a threshold": (lambda weights: torch.where(weights > 0.1, weights, 0.0), True),
    "less a number": (lambda weights: weights - 0.1, False),
    "one less": (lambda weights: 1 - weights, False),
    "exponential": (torch.exp, False),
}


@pytest.mark.parametrize("name", ZEROS)
def test_whether_zeros_stay_zeros(name: str) -> None:
    function, stay = ZEROS[name]
    node = node_of(function, torch.empty(2, 3, 7, 7))
    assert watch.keeps_zero(node, node.all_input_nodes) is stay


def test_zeros_stay_zeros_whatever_the_other_operand_is() -> None:
    weights, other = torch.empty(2, 7, 7), torch.empty(2, 7, 7)
    times, plus = node_of(torch.mul, weights, other), node_of(torch.add, weights, other)
    assert watch.keeps_zero(times, times.all_input_nodes[:1])
    assert not watch.keeps_zero(plus, plus.all_input_nodes[:1])
