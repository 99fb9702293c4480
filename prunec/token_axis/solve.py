"""A number as an expression of the token count, solved from what it was at a few counts.

    26, 20, 10       ->  n              5.099, 4.472, 3.162   ->  n ** 0.5
    25, 19, 9        ->  n - 1          0.04, 0.0526, 0.1111  ->  1 / (n - 1)
    1.152, 1.059, .. ->  0.3536 log(n)  325, 190, 45          ->  n (n - 1) / 2

Two counts give the constants of a form, every other one must agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import sympy

#: The token count in an expression.
TOKENS = sympy.Symbol("tokens", integer=True, positive=True)

Points = Sequence[tuple[int, float]]  # token counts, and the number at each

_POWERS = [sympy.Rational(number, 4) for number in range(-16, 17) if number]


def solve(points: Points, shifts: Iterable[int], tolerance: float = 1e-9) -> sympy.Expr | None:
    """The expression in TOKENS that gives each number at its count; None if there is none of a known form.

    Args:
        points: at least three; whole numbers need an expression that is a whole number at every count.
        shifts: what may be added to the count, as in n - 1.
        tolerance: the largest relative difference.
    """
    whole = all(isinstance(value, int) for _, value in points)
    if not all(math.isfinite(value) and value for _, value in points):
        return None
    for expression in _candidates(points, list(dict.fromkeys((0, *shifts))), tolerance):
        if _agrees(expression, points, tolerance) and (not whole or _is_whole(expression)):
            real = not whole and _is_whole(expression)
            return expression * sympy.Float(1.0) if real else expression
    return None


def _candidates(points: Points, shifts: list[int], tolerance: float) -> Iterator[sympy.Expr]:
    """Simple forms, their reciprocals, and their products with a power of n."""
    yield from _simple(points, shifts, tolerance)
    yield from (1 / found for found in _simple(_scaled(points, lambda _, v: 1 / v), shifts, tolerance))
    for power in (1, -1, sympy.Rational(1, 2), sympy.Rational(-1, 2)):
        rest = _scaled(points, lambda n, v, power=float(power): v / n**power)  # type: ignore[misc]
        yield from (found * TOKENS**power for found in _simple(rest, shifts, tolerance))


def _simple(points: Points, shifts: list[int], tolerance: float) -> Iterator[sympy.Expr]:
    """A + c n, c (n + s) ** p, a + c log(n + s): the constants from the first and the last count."""
    (one, first), (other, last) = points[0], points[-1]
    slope = (first - last) / (one - other)
    yield _neat(first - slope * one, tolerance, first) + _neat(slope, tolerance) * TOKENS
    for shift in shifts:
        if other + shift < 2:
            continue
        ratio = math.log((one + shift) / (other + shift))
        if first / last > 0:
            power = min(_POWERS, key=lambda known: abs(float(known) - math.log(first / last) / ratio))
            yield _neat(first / (one + shift) ** float(power), tolerance) * (TOKENS + shift) ** power
        factor = (first - last) / ratio
        rest = _neat(first - factor * math.log(one + shift), tolerance, first)
        yield rest + _neat(factor, tolerance) * sympy.log(TOKENS + shift)


def _neat(number: float, tolerance: float, scale: float | None = None) -> sympy.Expr:
    """A number as what it is within the tolerance of: a multiple of a quarter, or itself."""
    near = round(number * 4) / 4
    if abs(number - near) <= 10 * tolerance * max(1.0, abs(number if scale is None else scale)):
        return sympy.Integer(near) if near == int(near) else sympy.Rational(round(near * 4), 4)
    return sympy.Float(number, 17)


def _scaled(points: Points, change: Callable[[int, float], float]) -> Points:
    return [(count, change(count, value)) for count, value in points]


def _agrees(expression: sympy.Expr, points: Points, tolerance: float) -> bool:
    if TOKENS not in expression.free_symbols:
        return False
    inner_first = (*points[1:-1], points[0], points[-1])  # the constants are from the first and the last
    return all(
        abs(float(expression.subs(TOKENS, count)) - value) <= tolerance * abs(value)
        for count, value in inner_first
    )


def _is_whole(expression: sympy.Expr) -> bool:
    """Whether it is a whole number at every count."""
    if not expression.is_polynomial(TOKENS):
        return False
    return bool(sympy.Poly(2 * expression, TOKENS).domain.is_ZZ) and all(
        expression.subs(TOKENS, count).is_Integer for count in range(4)
    )
