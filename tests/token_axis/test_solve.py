from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from prunec.token_axis.solve import TOKENS, solve

FORMS: dict[str, Callable[[int], float]] = {
    "n": lambda n: n,
    "n - 1": lambda n: n - 1,
    "2 n + 3": lambda n: 2 * n + 3,
    "float(n)": float,
    "n / 2": lambda n: n / 2,
    "1 / n": lambda n: 1 / n,
    "0.7 / (n - 1)": lambda n: 0.7 / (n - 1),
    "n ** 2": lambda n: n**2,
    "n ** 0.5": lambda n: n**0.5,
    "n ** -0.5 / 8": lambda n: n**-0.5 / 8,
    "n ** 0.75": lambda n: n**0.75,
    "log(n)": math.log,
    "-log(n - 1)": lambda n: -math.log(n - 1),
    "log2(n) / 7": lambda n: math.log2(n) / 7,
    "log_26(n)": lambda n: math.log(n, 26),
    "1 + log(n)": lambda n: 1 + math.log(n),
    "1 / log(n)": lambda n: 1 / math.log(n),
    "n (n - 1) / 2": lambda n: n * (n - 1) // 2,
    "1 / (n (n - 1))": lambda n: 1 / (n * (n - 1)),
    "log(n) / n": lambda n: math.log(n) / n,
    "1 - 1 / n": lambda n: 1 - 1 / n,
}


def solved(form: Callable[[int], float], counts: tuple[int, ...] = (26, 21, 11)) -> sympy.Expr | None:
    return solve([(count, form(count)) for count in counts], range(-2, 2))


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("counts", [(26, 21, 11), (197, 127, 71), (1025, 641, 385), (10, 7, 4)])
def test_a_form_is_found_from_three_counts_and_right_at_all_others(
    name: str, counts: tuple[int, ...]
) -> None:
    form = FORMS[name]
    found = solved(form, counts)
    assert found is not None
    assert float(found.subs(TOKENS, 17)) == pytest.approx(form(17), rel=1e-8)
    value = sympy.lambdify(TOKENS, found, "math")
    wrong = [n for n in range(3, 2 * counts[0]) if not math.isclose(value(n), form(n), rel_tol=1e-8)]
    assert wrong == []


OTHERS: dict[str, Callable[[int], float]] = {
    "n // 2": lambda n: n // 2,
    "n % 7": lambda n: n % 7 + 1,
    "a sine": lambda n: math.sin(n),
    "a polynomial": lambda n: n**2 + 3 * n + 7,
    "a root, rounded": lambda n: int(n**0.5),
    "nothing at one count": lambda n: n - 21,
    "not a number": lambda n: math.nan,
}


@pytest.mark.parametrize("name", OTHERS)
def test_any_other_form_is_none(name: str) -> None:
    assert solved(OTHERS[name]) is None


def test_whole_numbers_stay_whole_and_others_stay_real() -> None:
    assert solved(lambda n: n - 1) == TOKENS - 1
    real = solved(lambda n: float(n - 1))
    assert real != TOKENS - 1
    assert float(real.subs(TOKENS, 5)) == 4.0


def test_numbers_in_single_precision_need_their_tolerance() -> None:
    points = [(count, round(count**-0.5, 7)) for count in (26, 21, 11)]
    assert solve(points, range(-2, 2)) is None
    assert solve(points, range(-2, 2), 2e-6) == TOKENS ** sympy.Rational(-1, 2)


@settings(deadline=None, max_examples=30)
@given(st.floats(0.01, 50), st.sampled_from([-2, -1, -0.5, 0.25, 0.5, 1, 2]), st.integers(-2, 1))
def test_any_multiple_of_a_power_is_found(factor: float, power: float, shift: int) -> None:
    def form(n: int) -> float:
        return factor * float(n + shift) ** power

    found = solved(form)
    assert found is not None
    assert float(found.subs(TOKENS, 17)) == pytest.approx(form(17), rel=1e-8)
