from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from prunec import compat
from prunec.ir.simpler import BY_RANK, BY_ROWS, flat_gather, order_by_rank, scatter_add_by_product

SCORES = torch.rand(3, 40, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize(
    "x",
    [
        SCORES,
        (SCORES * 4).round(),  # most are equal
        torch.where(SCORES > 0.7, float("inf"), SCORES),
        torch.where(SCORES > 0.7, float("-inf"), SCORES),
        (SCORES * 9).long(),
        SCORES.reshape(3, 5, 8),
    ],
)
def test_ranks_give_the_order_of_a_stable_sort(x: Tensor, descending: bool) -> None:
    for dim in (1, -1):
        expected = torch.sort(x, dim=dim, descending=descending, stable=True)
        values, places = order_by_rank(x, dim, descending)
        assert torch.equal(values, expected.values)
        assert torch.equal(places, expected.indices)
        assert values.dtype == x.dtype


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_rows_of_one_table_are_what_gather_gives(dim: int) -> None:
    x = torch.rand(3, 4, 5)
    sizes = [2 if axis == dim else size for axis, size in enumerate(x.shape)]
    every = torch.randint(x.shape[dim], sizes)
    assert torch.equal(flat_gather(x, dim, every), x.gather(dim, every))
    for axis in {0, 1, 2} - {dim}:  # the same all along an axis
        index = every.narrow(axis, 0, 1).expand(sizes)
        assert torch.equal(flat_gather(x, dim, index), x.gather(dim, index))
    short = every.narrow((dim + 1) % 3, 0, 1)
    assert torch.equal(flat_gather(x, dim, short), x.gather(dim, short))


def test_products_add_what_scatter_add_adds() -> None:
    group = torch.randint(4, (3, 9))
    total, weight = torch.rand(3, 4), torch.rand(3, 9)
    assert torch.allclose(
        scatter_add_by_product(total, 1, group, weight), total.scatter_add(1, group, weight), atol=1e-6
    )
    total, rows = torch.rand(3, 4, 6), torch.rand(3, 9, 6)
    spread = group.unsqueeze(-1).expand_as(rows)
    found = scatter_add_by_product(total, 1, spread, rows)
    assert torch.allclose(found, total.scatter_add(1, spread, rows), atol=1e-6)
    assert scatter_add_by_product(total, 1, spread.clone(), rows) is NotImplemented


class Ordered(nn.Module):
    """Every operator that has a simpler form."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        order = x.argsort(dim=1, descending=True, stable=True)
        index = order[:, :5].sort(dim=1).values
        best = x.topk(3, dim=1)
        total = torch.zeros_like(x).scatter_add(1, order, x)
        return index, x.gather(1, index), best.values, best.indices, total, x.sort(dim=1, stable=True).values


def test_a_program_has_none_of_them_left_and_computes_the_same() -> None:
    exported = torch.export.export(Ordered(), (SCORES,), strict=False)
    found = compat.decomposed(exported, {**BY_RANK, **BY_ROWS})
    left = {compat.op_name(node.target) for node in found.graph.nodes if node.op == "call_function"}
    assert not left & {"argsort", "sort", "topk", "gather", "scatter_add"}
    for made, expected in zip(found.module()(SCORES), Ordered()(SCORES), strict=True):
        assert torch.allclose(made, expected)
