"""Literals that tracing burnt into size arguments, and the expressions that may replace them.

    reshape(x: [b, n, 576], [b, 197, 3, 3, 64])        197 -> n              an axis of the input
    view(x: [b, n - 1, 8, 24], [b, 196, 192])          196 -> n - 1          the same, shifted
    reshape(x: [b, n, 192], [394, 192])                394 -> b * n          what the other sizes leave over

An expression is a candidate only if it gives the recorded size back at the original length. Which candidate
is right is decided by typing the call (see calls.py); here they only come in a good order.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import fx

from prunec import compat

Position = tuple[int, ...]  # (argument,) or (argument, element)
Substitution = Mapping[Position, sympy.Expr]
AtFullLength = Callable[[sympy.Expr], sympy.Expr]


def sizes_of(value: torch.Tensor) -> tuple[sympy.Expr, ...]:
    """A tensor's shape as expressions."""
    return tuple(compat.expression(size) for size in value.shape)


def at(args: Sequence[Any], where: Position) -> Any:
    """The argument, or the element of a list argument, at a position."""
    value = args[where[0]]
    return value if len(where) == 1 else value[where[1]]


def with_sizes(args: Sequence[Any], values: Mapping[Position, Any]) -> tuple[Any, ...]:
    """`args` with some positions replaced."""
    result = [list(arg) if isinstance(arg, list | tuple) else arg for arg in args]
    for where, value in values.items():
        value = int(value) if isinstance(value, sympy.Integer) else value
        if len(where) == 1:
            result[where[0]] = value
        else:
            result[where[0]][where[1]] = value
    return tuple(result)


def substitutions(
    recorded: Mapping[Position, sympy.Expr],
    shapes: Sequence[tuple[sympy.Expr, ...]],
    tokens: Collection[sympy.Symbol],
    at_full_length: AtFullLength,
) -> Iterator[Substitution]:
    """Candidate repairs, likeliest first: one position, then two positions that hold the same size.

    Args:
        recorded: the size at each position as it was at capture.
        shapes: the shapes of the tensor inputs now.
        tokens: the token symbols.
        at_full_length: puts the original length back into an expression.
    """
    axes = {
        (axis, size) for shape in shapes for axis, size in enumerate(shape) if size.free_symbols & set(tokens)
    }
    ranked: list[tuple[float, Position, sympy.Expr]] = []
    for where, size in recorded.items():
        for axis, length in axes:
            elsewhere = 0.0 if where[-1] == axis else 0.25  # the position of the axis itself comes first
            ranked.extend(
                (rank + elsewhere, where, found) for rank, found in _fitting(size, length, at_full_length)
            )
        rest = _left_over(where, recorded, shapes, at_full_length)
        if rest is not None:
            elsewhere = 0.0 if any(where[-1] == axis for axis, _ in axes) else 0.25
            # Of [b * 6, 12] from [b, n, 12] the 12 is that axis again, and not 2 * n.
            kept = 0.5 if any(size in shape for shape in shapes) else 0.0
            ranked.append((0.5 + elsewhere + kept, where, rest))
    ranked.sort(key=lambda entry: (entry[0], entry[1], str(entry[2])))
    for _, where, found in ranked:
        yield {where: found}
    exact = [(where, found) for rank, where, found in ranked if rank < 1]
    for (first, one), (second, other) in itertools.combinations(exact, 2):
        if first != second:
            yield {first: one, second: other}


def _fitting(
    size: sympy.Expr, length: sympy.Expr, at_full_length: AtFullLength
) -> Iterator[tuple[float, sympy.Expr]]:
    """Expressions in one token axis that equal `size` at the original length, each with a rank."""
    full = at_full_length(length)
    if size == full:
        yield 0.0, length
    elif size.is_Integer and full.is_Integer and size > 1:
        if size % full == 0:
            yield 1.0, length * (size // full)
        # The smaller the shift, the likelier: of [5, 192] the 192 is n - 5, the 5 is not n - 192.
        yield 2.0 + abs(int(full - size)) / int(full), length - (full - size)


def _left_over(
    where: Position,
    recorded: Mapping[Position, sympy.Expr],
    shapes: Sequence[tuple[sympy.Expr, ...]],
    at_full_length: AtFullLength,
) -> sympy.Expr | None:
    """What the other sizes of a shape leave for this position, if it divides exactly."""
    if len(shapes) != 1 or len(where) != 2:
        return None
    others = sympy.prod([size for other, size in recorded.items() if other[0] == where[0] and other != where])
    if others == 0:
        return None
    quotient = sympy.cancel(sympy.prod(shapes[0]) / others)
    if not quotient.free_symbols or not quotient.is_polynomial():
        return None
    exact = all(coefficient.is_Integer for coefficient in sympy.Poly(quotient).coeffs())
    return quotient if exact and at_full_length(quotient) == recorded[where] else None


def same_stride(before: Sequence[sympy.Expr], after: Sequence[sympy.Expr], token: sympy.Symbol) -> bool:
    """Whether rows lie as far apart in memory after a reshape as before it, which keeps the order of numbers.

    [b, 6, n, 64] -> [6 * b, n, 64] does, and so do [b * 6, n * 64] and [b, 6 * n, 64]; with n = 64 at the
    original length [6 * b, 64, n] has the same sizes, but its n counts channels. Where the tokens are not
    on one axis each before and after, there is nothing to compare.
    """
    axes = [
        [axis for axis, size in enumerate(shape) if token in size.free_symbols] for shape in (before, after)
    ]
    if any(len(found) != 1 for found in axes):
        return True
    (source,), (result,) = axes
    beside_before, beside_after = (_without(token, size) for size in (before[source], after[result]))
    # An axis may hold the tokens and, on their right, other things: their strides may differ by as much.
    strides = sympy.Mul(*before[source + 1 :]), sympy.Mul(*after[result + 1 :])
    further, nearer = sympy.fraction(sympy.cancel(strides[0] / strides[1]))
    return _divides(further, beside_after) and _divides(nearer, beside_before)


def _without(token: sympy.Symbol, size: sympy.Expr) -> sympy.Expr:
    """What an axis holds beside the tokens: 6 * b of 6 * b * (n - 1)."""
    constant, factors = sympy.factor_list(size)
    return constant * sympy.prod([base**power for base, power in factors if token not in base.free_symbols])


def _divides(part: sympy.Expr, whole: sympy.Expr) -> bool:
    quotient = sympy.cancel(whole / part)
    symbols = quotient.free_symbols or {sympy.Dummy()}
    whole_numbers = quotient.is_polynomial() and all(
        coefficient.is_Integer for coefficient in sympy.Poly(quotient, *symbols).coeffs()
    )
    return bool(whole_numbers)


class SizeNodes:
    """Size expressions as nodes of a graph, each made once, where it is first needed."""

    def __init__(self, graph: fx.Graph, call: Callable[[Any, tuple[Any, ...], str], fx.Node]) -> None:
        self.graph = graph
        self.call = call  # (function, arguments, name) -> a new, typed node
        self.selections: dict[sympy.Expr, tuple[int, fx.Node]] = {}  # token symbol -> number, rows [B, n]
        self.made: dict[sympy.Expr, fx.Node] = {}

    def node(self, size: sympy.Expr) -> fx.Node:
        """The node that computes an expression in token counts and the batch."""
        if size not in self.made:
            self.made[size] = self._make(size)
        return self.made[size]

    def _make(self, size: sympy.Expr) -> fx.Node:
        if size in self.selections:
            number, selection = self.selections[size]
            return self.call(torch.ops.aten.sym_size.int, (selection, 1), f"tokens_{number}")
        if size.is_Symbol:
            return self._input_size(size)
        function = operator.add if size.is_Add else operator.mul
        assert size.is_Add or size.is_Mul or size.is_Pow, f"a token size of an unexpected form: {size}"
        parts = [size.base] * int(size.exp) if size.is_Pow else size.args
        first, *rest = [int(part) if part.is_Integer else self.node(part) for part in parts]
        for part in rest:
            first = self.call(function, (first, part), "tokens_size")
        assert isinstance(first, fx.Node)
        return first

    def _input_size(self, symbol: sympy.Expr) -> fx.Node:
        """The batch, read off an input that has it."""
        for node in self.graph.nodes:
            value = node.meta.get("val")
            if node.op == "placeholder" and isinstance(value, torch.Tensor) and symbol in sizes_of(value):
                dim = sizes_of(value).index(symbol)
                return self.call(torch.ops.aten.sym_size.int, (node, dim), "batch")
        raise ValueError(f"no input carries the size {symbol}")
