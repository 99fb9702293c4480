"""Random numbers are single precision; one rule says when two results are the same."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from prunec.probing.lengths import Lengths
from prunec.probing.numbers import Noise, changed_rows, same, single_precision

NONE = Lengths({})


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_floating_point_operand_is_in_single_precision(kind: torch.dtype) -> None:
    found = Noise(0).like(torch.empty(2, 3, dtype=kind), NONE)
    assert found.dtype == torch.float32
    assert torch.equal(found, Noise(0).like(torch.empty(2, 3), NONE))
    assert single_precision(kind) == torch.float32


def test_other_operands_keep_their_type() -> None:
    for kind in (torch.bool, torch.int64, torch.uint8):
        found = Noise(0).like(torch.empty(50, dtype=kind), NONE)
        assert found.dtype == kind
        assert set(found.tolist()) == {0, 1}
        assert single_precision(kind) == kind
    assert Noise(0).like([torch.empty(2), 3, None], NONE)[1:] == [3, None]
    assert Noise(0).like(torch.empty(2, dtype=torch.complex128), NONE).imag.abs().min() > 0
    assert single_precision(torch.complex128) == torch.complex64
    assert single_precision("gelu") == "gelu"


def test_a_sign_can_be_asked_for() -> None:
    assert Noise(0).like(torch.empty(99), NONE, "above zero").min() >= 0
    assert Noise(0).like(torch.empty(99), NONE, "below zero").max() < 0


def test_row_numbers_are_all_different() -> None:
    assert len(set(Noise(0).row_numbers(5000).tolist())) == 5000


X = torch.linspace(-2, 2, 12).view(3, 4)

PAIRS: dict[str, tuple[Tensor, Tensor, bool]] = {
    "itself": (X, X, True),
    "rounded": (X * (1 + 1e-6), X, True),
    "a small difference": (X * (1 + 1e-3), X, False),
    "rounded, and tiny": (1e-20 * X * (1 + 1e-6), 1e-20 * X, True),
    "tiny numbers and zeros": (1e-20 * X, 0 * X, False),
    "both infinite": (X.clamp_max(math.inf) - math.inf, X - math.inf, True),
    "one infinite": (X - math.inf, X, False),
    "nothing known": (X * math.nan, X * math.nan, False),
    "another shape": (X[:1], X, False),
    "another type": (X.double(), X, False),
    "whole numbers": (torch.arange(3), torch.arange(3), True),
    "other whole numbers": (torch.arange(3), torch.arange(3) + 1, False),
}


@pytest.mark.parametrize("name", PAIRS)
def test_what_is_the_same(name: str) -> None:
    found, expected, equal = PAIRS[name]
    assert same(found, expected) is equal


def test_several_results_are_the_same_one_by_one() -> None:
    assert same((X, [X]), (X, [X]))
    assert not same((X, X), (X, X + 1))
    assert not same((), ())


def test_a_row_has_changed_where_one_bit_has() -> None:
    again = X.clone()
    again[1, 2] = torch.nextafter(again[1, 2], torch.tensor(9.0))
    (rows,) = changed_rows(X, again, 0)
    assert rows.tolist() == [False, True, False]
