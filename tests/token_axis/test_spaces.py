from __future__ import annotations

import operator

import pytest
import torch
from torch import Tensor

from prunec import ops
from tests.token_axis.repairing import Chain, check, heads, repair, rows_of

GRIDS: dict[str, tuple[Chain, str]] = {
    "a reshape to rows and columns": (
        lambda x: x[:, 1:].mT.reshape(x.shape[0], 8, 3, 4) + 1,
        "the whole grid",
    ),
    "a linear over the tokens": (
        lambda x: torch.nn.functional.linear(x.mT, torch.ones(5, 13)),
        "the whole grid",
    ),
    "every second patch": (lambda x: x[:, 1::2] * 2, "patch rows are read by position"),
    "a patch in the middle": (lambda x: x[:, 6] * 2, "patch rows are read by position: [6]"),
}


def test_keys_that_are_longer_than_their_values_do_not_fit() -> None:
    def attend(grid: Tensor, x: Tensor) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(grid, 2 * grid, x)

    repaired = repair(lambda x: attend(x.unflatten(1, (3, 4)).flatten(1, 2)[:, None], x[:, None]), 12, 8)
    x, rows = torch.randn(3, 12, 8), rows_of(12, 5)
    kept = ops.gather(x, rows)[:, None]
    expected = torch.nn.functional.scaled_dot_product_attention(x[:, None], 2 * kept, kept)
    torch.testing.assert_close(repaired.at(x, rows), expected)


def test_an_operator_is_typed_by_its_decomposition_and_leaves_the_batch_free() -> None:
    def chain(x: Tensor) -> Tensor:  # one map for each token, resized
        maps = torch.nn.functional.interpolate(x.unflatten(2, (2, 4)), (3, 5), mode="bilinear")
        return maps.flatten(2).mT.reshape(x.shape[0] * 15, 12)

    repaired = repair(chain, 12, 8)
    assert repaired.repairs.region_ends == []
    kinds = [node.meta["val"] for node in repaired.module.graph.nodes if node.op == "call_function"]
    assert all(isinstance(kind.shape[0], torch.SymInt) for kind in kinds if isinstance(kind, Tensor))
    x, rows = torch.randn(1, 12, 8), rows_of(12, 5)
    torch.testing.assert_close(repaired.at(x, rows[:1]), chain(x)[:, rows[0]])


@pytest.mark.parametrize("name", GRIDS)
def test_what_needs_the_grid_gets_the_whole_stream(name: str) -> None:
    chain, reason = GRIDS[name]
    repaired = repair(chain, 13, 8, prefix=1)
    (end,) = repaired.repairs.region_ends
    assert reason in end
    assert "repairing.py" in end
    x = torch.randn(3, 13, 8)
    torch.testing.assert_close(repaired.at(x, rows_of(13, 5, prefix=1)), chain(x))


READS: dict[str, tuple[Chain, tuple[int, int, tuple[int, ...]]]] = {
    "the first row": (lambda x: x[:, 0], (1, 0, (0,))),
    "the second row": (lambda x: x[:, 1], (2, 0, (1,))),
    "the last row": (lambda x: x[:, -1], (0, 1, (12,))),
    "all but the first three": (lambda x: x[:, 3:], (3, 0, tuple(range(3, 13)))),
    "the last two": (lambda x: x[:, -2:], (0, 2, (11, 12))),
    "all but both ends": (lambda x: x[:, 2:-1], (2, 1, tuple(range(2, 12)))),
}


@pytest.mark.parametrize("name", READS)
def test_protected_rows_may_be_read_by_position(name: str) -> None:
    chain, expected = READS[name]
    repaired = check(chain, 13, 8, prefix=3, suffix=2)
    (read,) = repaired.repairs.reads
    assert (read.front, read.back, read.rows) == expected


def test_a_read_behind_a_slice_counts_the_rows_that_were_sliced_off() -> None:
    repaired = check(lambda x: x[:, 1:][:, 2:], 13, 8, prefix=3)
    assert [(read.front, read.back) for read in repaired.repairs.reads] == [(1, 0), (3, 0)]
    short = repair(lambda x: x[:, 1:][:, 2:] + 0, 13, 8, prefix=2)
    assert len(short.repairs.region_ends) == 1  # row 2 is a patch


def test_a_mean_reads_no_rows_by_position() -> None:
    assert check(lambda x: x.amax(dim=1), 13, 8).repairs.reads == []


def test_the_axes_of_every_value_are_known() -> None:
    repaired = check(lambda x: (heads(x) @ heads(x).mT).mean(dim=-1), 13, 8)
    assert repaired.repairs.axes["matmul"] == (2, 3)
    assert repaired.repairs.axes["mean"] == (2,)


def test_sizes_of_the_new_graph_have_types() -> None:
    repaired = repair(lambda x: x[:, 1:].reshape(x.shape[0] * (x.shape[1] - 1), -1), 13, 8, prefix=1)
    sizes = [node for node in repaired.module.graph.nodes if node.target in (operator.add, operator.mul)]
    assert sizes
    assert all(isinstance(node.meta["val"], torch.SymInt) for node in sizes)
