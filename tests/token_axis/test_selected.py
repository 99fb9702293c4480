"""Which values have rows that a selection left, and the lengths that stand in for their number."""

from __future__ import annotations

import sympy
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from prunec import compat
from prunec.token_axis.selected import Space, Spaces, stand_in


def two_spaces() -> tuple[Spaces, list[torch.Tensor]]:
    """Two selections one after the other, and what has the rows of each."""
    mode, spaces, values = FakeTensorMode(shape_env=ShapeEnv()), Spaces(), []
    for number, hint in enumerate((31, 29)):
        size = compat.new_symbol(mode, f"n{number + 1}", hint)
        symbol = compat.expression(size)
        assert isinstance(symbol, sympy.Symbol)
        parent = next(reversed(spaces.values()), None)
        spaces[symbol] = Space(number, symbol, fx.Graph().placeholder(f"selection_{number}"), parent)
        values.append(compat.fake_like(mode, (2, size, 4), torch.float32, torch.device("cpu")))
    return spaces, values


def test_the_deepest_space_is_that_of_the_last_selection() -> None:
    spaces, (outer, inner) = two_spaces()
    first, second = spaces.values()
    assert (spaces.of(outer), spaces.of(inner), spaces.of((outer, inner))) == (first, second, second)
    assert spaces.of(torch.empty(2, 31, 4)) is None
    assert spaces.of_selection(second.selection) is second


def test_token_axes_are_those_whose_size_holds_a_symbol() -> None:
    spaces, (outer, _) = two_spaces()
    assert spaces.axes(outer) == (1,)
    assert spaces.axes(outer.permute(1, 2, 0)) == (0,)
    assert spaces.axes([outer, outer.mT]) == (1, 2)
    assert spaces.axes(torch.empty(2, 31)) == ()


def test_stand_ins_are_primes_below_the_length_that_are_not_taken() -> None:
    taken: list[int] = []
    for _ in range(8):
        taken.append(stand_in(50, taken))
    assert taken[:4] == [31, 37, 41, 43]
    assert len(set(taken)) == 8
    assert all(number < 50 and sympy.isprime(number) for number in taken)
