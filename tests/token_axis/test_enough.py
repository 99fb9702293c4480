from __future__ import annotations

from collections.abc import Callable

import pytest
import sympy
import torch
from torch import Tensor, fx, nn

from prunec import compat
from prunec.errors import PolicyError
from prunec.token_axis.enough import check_enough

TOKENS = 11


def stream(function: Callable[[Tensor], Tensor]) -> tuple[fx.Graph, sympy.Symbol]:
    """A call on a stream [B, n, 4], at 11 tokens when it was captured, and n."""

    class Call(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    shapes = ({0: torch.export.Dim("b", min=2), 1: torch.export.Dim("n", min=9)},)
    graph = torch.export.export(Call(), (torch.randn(3, TOKENS, 4),), dynamic_shapes=shapes).graph
    (x,) = graph.find_nodes(op="placeholder")
    (symbol,) = compat.expression(x.meta["val"].shape[1]).free_symbols
    return graph, symbol


def top(count: int) -> Callable[[Tensor], Tensor]:
    return lambda x: x.topk(count, dim=1).values


@pytest.mark.parametrize("left", [1, 5])
def test_a_call_for_more_tokens_than_are_left_is_refused_with_both_numbers(left: int) -> None:
    graph, symbol = stream(top(6))
    with pytest.raises(PolicyError, match="6 tokens") as caught:
        check_enough(graph, {symbol: left}, TOKENS)
    assert f"{left} are left" in caught.value.what
    assert "topk" in caught.value.what
    assert caught.value.where
    assert "at least 6" in (caught.value.remedy or "")


@pytest.mark.parametrize("left", [6, 7, 11])
def test_as_many_as_are_asked_for_are_enough(left: int) -> None:
    graph, symbol = stream(top(6))
    check_enough(graph, {symbol: left}, TOKENS)


NUMBERS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels": lambda x: x.topk(3, dim=2).values,
    "an exponent": lambda x: x**7,
    "a slice, which takes what there is": lambda x: x[:, :8],
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_that_asks_for_no_tokens_is_none(name: str) -> None:
    graph, symbol = stream(NUMBERS[name])
    check_enough(graph, {symbol: 2}, TOKENS)


def test_of_several_the_largest_is_reported() -> None:
    graph, symbol = stream(lambda x: x.topk(7, dim=1).values.sum(1) + x.topk(5, dim=1).values.sum(1))
    with pytest.raises(PolicyError, match="7 tokens"):
        check_enough(graph, {symbol: 4}, TOKENS)
    with pytest.raises(PolicyError, match="7 tokens"):
        check_enough(graph, {symbol: 6}, TOKENS)
