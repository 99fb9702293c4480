"""What rows that are added must hold so that an operator does not see them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from prunec import compat
from prunec.probing.lengths import Lengths
from prunec.probing.neutral import Neutral, neutral

aten = torch.ops.aten


def found_for(
    target: Any, *args: Any, keeps_rows: bool = False, kind: torch.dtype = torch.float32, **kwargs: Any
) -> Neutral | None:
    """What extra rows of [B, n, C], on axis 1, must hold for a call."""
    mode = compat.fake_mode_of(_graph())
    x = _graph().find_nodes(op="placeholder")[0].meta["val"]
    graph = fx.Graph()
    operand = graph.placeholder("x")
    with mode:
        operand.meta["val"] = x.to(kind)
    node = graph.call_function(target, (operand, *args), kwargs)
    with mode:
        node.meta["val"] = target(operand.meta["val"], *args, **kwargs)
    (symbol,) = compat.expression(x.shape[1]).free_symbols
    return neutral(node, operand, (1, 1 if keeps_rows else None), Lengths({symbol: 7}))


def _graph() -> fx.Graph:
    class Same(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    if not _GRAPHS:
        shapes = ({0: torch.export.Dim("b", min=2), 1: torch.export.Dim("n", min=2)},)
        _GRAPHS.append(torch.export.export(Same(), (torch.randn(3, 11, 4),), dynamic_shapes=shapes).graph)
    return _GRAPHS[0]


_GRAPHS: list[fx.Graph] = []


@pytest.mark.parametrize(
    ("target", "args", "expected"),
    [
        (aten.sum.dim_IntList, ([1],), Neutral(0.0, False)),
        (aten.mean.dim, ([1],), Neutral(0.0, True)),
        (aten.amax.default, ([1],), Neutral(float("-inf"), False)),
        (aten.amin.default, ([1],), Neutral(float("inf"), False)),
        (aten.logsumexp.default, ([1],), Neutral(float("-inf"), False)),
        (aten.prod.dim_int, (1,), None),
        (aten.var.correction, ([1],), None),
    ],
)
def test_what_a_reduction_does_not_see(target: Any, args: tuple[Any, ...], expected: Neutral | None) -> None:
    assert found_for(target, *args) == expected


def test_a_softmax_over_rows_does_not_see_minus_infinity() -> None:
    assert found_for(aten.softmax.int, 1, keeps_rows=True) == Neutral(float("-inf"), False)


def test_what_mixes_neighbours_sees_everything() -> None:
    kernel = torch.ones(3, 1, 1, 1)

    def convolved(x: Tensor) -> Tensor:
        weight = kernel[..., 0].to(x.device).permute(1, 2, 0).expand(4, 1, 3)
        return aten.conv1d.default(x.transpose(1, 2), weight, None, [1], [1], [1], 4).transpose(1, 2)

    assert found_for(convolved, keeps_rows=True) is None


def test_what_depends_on_the_order_of_rows_is_not_taken_for_a_sum() -> None:
    # a running sum does not see zeros, but rows before it
    assert found_for(aten.cumsum.default, 1, keeps_rows=True) is None


HALF = (torch.bfloat16, torch.float16, torch.float64)


@pytest.mark.parametrize("kind", HALF)
def test_every_precision_is_judged_alike(kind: torch.dtype) -> None:
    assert found_for(aten.mean.dim, [1], kind=kind) == Neutral(0.0, True)
    assert found_for(aten.sum.dim_IntList, [1], kind=kind) == Neutral(0.0, False)
    assert found_for(aten.cumsum.default, 1, keeps_rows=True, kind=kind) is None
    assert found_for(aten.var.correction, [1], kind=kind) is None


def test_a_mean_that_names_its_precision_is_judged_alike() -> None:
    assert found_for(aten.mean.dim, [1], False, dtype=torch.bfloat16) == Neutral(0.0, True)


def test_near_misses_of_a_mean_are_none() -> None:
    def shifted(x: Tensor) -> Tensor:
        return x.mean(1) + 1e-2

    def tiny(x: Tensor) -> Tensor:
        return 1e-20 * x.var(1)

    assert found_for(shifted) is None
    assert found_for(tiny) is None
