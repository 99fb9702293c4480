from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from prunec import ops
from tests.token_axis.repairing import Repaired, check, heads, repair, rows_of


def taken(repaired: Repaired) -> list[tuple[Any, ...]]:
    return [node.args[2:] for node in repaired.module.graph.nodes if node.target is ops.take]


def check_table(
    chain: Callable[[Tensor, Tensor], Tensor],
    table: Tensor,
    shorten: Callable[[Tensor, Tensor], Tensor],
    **protected: int,
) -> Repaired:
    """The repaired chain with a table is, image by image, the chain on kept rows with `shorten`ed table."""
    tokens = 12
    repaired = repair(lambda x: chain(x, table), tokens, 8, **protected)
    assert repaired.repairs.region_ends == []
    for count in (5, 9, tokens):
        x, rows = torch.randn(3, tokens, 8), rows_of(tokens, count, **protected)
        found = repaired.at(x, rows)
        kept = ops.gather(x, rows)
        expected = torch.cat([chain(kept[i : i + 1], shorten(table, rows[i])) for i in range(3)])
        torch.testing.assert_close(found, expected)
    return repaired


def test_a_table_with_a_row_for_every_token() -> None:
    repaired = check_table(
        lambda x, table: x * table, torch.randn(12, 8), lambda table, rows: table[rows], prefix=2
    )
    assert repaired.repairs.literals == 0
    assert len(repaired.repairs.gathered) == 1
    assert taken(repaired) == [(1, 0, 0, 0)]


def test_a_table_without_rows_for_the_protected_tokens() -> None:
    repaired = check_table(
        lambda x, table: torch.cat([x[:, :2], x[:, 2:-1] + table, x[:, -1:]], dim=1),
        torch.randn(9, 8),
        lambda table, rows: table[rows[2:-1] - 2],
        prefix=2,
        suffix=1,
    )
    assert taken(repaired) == [(1, 0, 2, 1)]


def test_a_table_for_heads() -> None:
    repaired = check_table(
        lambda x, table: heads(x) * table, torch.randn(2, 12, 4), lambda table, rows: table[:, rows], prefix=1
    )
    assert taken(repaired) == [(2, 0, 0, 0)]


def test_a_bias_over_both_axes() -> None:
    repaired = check_table(
        lambda x, table: heads(x) @ heads(x).mT + table,
        torch.randn(2, 12, 12),
        lambda table, rows: table[:, rows][:, :, rows],
        prefix=1,
    )
    assert taken(repaired) == [(2, 0, 0, 0), (3, 0, 0, 0)]
    assert repaired.repairs.counts()["gathered"] == 1


def test_a_bias_over_keys_only() -> None:
    repaired = check_table(
        lambda x, table: heads(x) @ heads(x).mT + table,
        torch.randn(12),
        lambda table, rows: table[rows],
        prefix=1,
    )
    assert [place[0] for place in taken(repaired)] == [3]


def test_a_table_as_long_as_the_channels_is_no_table_by_token() -> None:
    weight = torch.randn(12)
    repaired = repair(lambda x: x * weight, 12, 12)
    x, rows = torch.randn(3, 12, 12), rows_of(12, 7)
    torch.testing.assert_close(repaired.at(x, rows), ops.gather(x, rows) * weight)
    assert repaired.repairs.gathered == []


def test_a_row_that_is_spread_over_the_tokens_is_taken_for_a_table() -> None:
    repaired = check(
        lambda x: x[:, :1].mean(2, keepdim=True).expand(-1, x.shape[1], 3) + x[..., :3], 13, 8, prefix=1
    )
    assert repaired.repairs.counts() == {"literals": 0, "gathered": 1, "scatters": 0, "region_ends": 0}


def test_a_table_that_is_read_twice_is_gathered_once() -> None:
    table = torch.randn(12, 8)
    repaired = repair(lambda x: (x * table) + (x.cos() * table), 12, 8)
    assert len(taken(repaired)) == 1
    assert len(repaired.repairs.gathered) == 2


def test_a_table_whose_length_is_no_number_does_not_fit() -> None:
    def chain(x: Tensor) -> Tensor:
        rows, columns = torch.tensor([[3, 4]])[0].tolist()
        return x * torch.arange(rows * columns).cos()[:, None]

    repaired = repair(chain, 12, 8)
    assert len(repaired.repairs.region_ends) == 1
    x = torch.randn(3, 12, 8)
    torch.testing.assert_close(repaired.at(x, rows_of(12, 5)), chain(x))
