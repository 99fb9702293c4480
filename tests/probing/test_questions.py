from __future__ import annotations

import unittest
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from prunec.probing.lengths import Lengths
from prunec.probing.numbers import Noise
from prunec.probing.probe import Probe
from prunec.probing.questions import (
    is_row_local,
    keeps_order,
    keeps_row_order,
    keeps_zero,
    rows_before,
    runs,
    treats_as_flat,
    treats_rows_alike,
)
from prunec.structure import NoMatch


def node_of(function: Callable[..., Any], *operands: Any) -> fx.Node:
    """A call in a graph, with the types of its operands."""
    graph = fx.Graph()
    nodes = []
    for number, operand in enumerate(operands):
        node = graph.placeholder(f"operand_{number}")
        node.meta["val"] = operand
        nodes.append(node)
    return graph.call_function(function, tuple(nodes))


def probe(function: Callable[..., Any], *operands: Any) -> Probe:
    return Probe(node_of(function, *operands), Lengths({}))


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
    call = probe(function, *operands)
    assert bool(is_row_local(call, call.call.all_input_nodes[watched], axes)) is local


def test_watching_leaves_the_random_state_alone() -> None:
    call = probe(F.gelu, ROWS)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    is_row_local(call, call.call.all_input_nodes[0], (1, 1))
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
    call = probe(function, torch.empty(2, 3, 7, 7))
    assert keeps_zero(call, call.call.all_input_nodes) is stay


def test_zeros_stay_zeros_whatever_the_other_operand_is() -> None:
    weights, other = torch.empty(2, 7, 7), torch.empty(2, 7, 7)
    times, plus = probe(torch.mul, weights, other), probe(torch.add, weights, other)
    assert keeps_zero(times, times.call.all_input_nodes[:1])
    assert not keeps_zero(plus, plus.call.all_input_nodes[:1])


# --- near misses ------------------------------------------------------------------------------


def watched(function: Callable[..., Any], *operands: Any) -> tuple[Probe, fx.Node]:
    call = probe(function, *operands)
    return call, call.call.all_input_nodes[0]


def test_a_row_that_reads_another_with_a_tiny_weight_reads_it() -> None:
    call, rows = watched(lambda x: x + 1e-6 * x.roll(1, 1), ROWS)
    found = is_row_local(call, rows, (1, 1))
    assert isinstance(found, NoMatch)
    assert "a row of the result reads more than one row" in str(found)
    call, rows = watched(lambda x: 1e-20 * x, ROWS)  # and one that is small reads no more than its own
    assert is_row_local(call, rows, (1, 1))
    call, rows = watched(lambda x: 1e-20 * x.cumsum(1), ROWS)
    assert not treats_rows_alike(call, {rows: 1}, 1)
    assert not keeps_row_order(call, rows, (1, 1))


def test_rows_put_before_others_are_counted_and_rows_cut_off_are_counted_below_zero() -> None:
    call, rows = watched(lambda x, y: torch.cat([y, x], dim=1), ROWS, ROWS[:, :2])
    assert rows_before(call, rows, (1, 1)) == 2
    call, rows = watched(lambda x: x[:, 2:], ROWS)
    assert rows_before(call, rows, (1, 1)) == -2


def test_an_order_is_kept_where_rows_meet_and_not_where_their_place_counts() -> None:
    for function, kept in ((lambda x: x.softmax(1), True), (lambda x: x.flip(1), False)):
        call, rows = watched(function, ROWS)
        assert keeps_row_order(call, rows, (1, 1)) is kept
    call, rows = watched(lambda x: x + torch.arange(7.0)[:, None], ROWS)
    assert is_row_local(call, rows, (1, 1))
    assert not treats_rows_alike(call, {rows: 1}, 1)


def test_only_what_moves_no_number_keeps_the_order() -> None:
    assert keeps_order(probe(lambda x: x.view(2, 7, 2, 2), ROWS))
    assert not keeps_order(probe(lambda x: x.mT, ROWS))
    assert not keeps_order(probe(lambda x: x * 1.0001, ROWS))


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_every_precision_is_judged_alike(kind: torch.dtype) -> None:
    grid = torch.empty(2, 4, 4, 8, dtype=kind)
    for function, alike in (
        (lambda x: F.layer_norm(x, (8,)), True),
        (lambda x: x + 1e-3 * x.mean(1, keepdim=True), False),
        (lambda x: x + x.cumsum(1), False),
    ):
        call, rows = watched(function, grid)
        assert bool(treats_as_flat(call, {rows})) is alike


def test_what_does_not_run_is_not_known_and_says_why() -> None:
    call = probe(lambda x: x.reshape(3, 3), ROWS)
    with unittest.TestCase().assertLogs("prunec.probing", "DEBUG") as logged:
        found = runs(call)
    assert isinstance(found, NoMatch)
    assert "it does not run on random numbers (RuntimeError: shape '[3, 3]' is invalid" in found.reason
    assert found.reason in logged.output[0]


def test_a_mistake_in_python_is_no_answer() -> None:
    with pytest.raises(AttributeError, match="no attribute 'resahpe'"):
        runs(probe(lambda x: x.resahpe(3, 3), ROWS))


def test_the_same_seed_draws_the_same_numbers() -> None:
    one, other = (Noise(seed).like(ROWS, Lengths({})) for seed in (0, 1))
    assert not torch.equal(one, other)
    assert torch.equal(one, Noise(0).like(ROWS, Lengths({})))
