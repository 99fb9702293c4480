"""Seeded random numbers to run operators on, and what it means that two results are the same.

*Precision.* Every floating-point number is single precision, whatever the model has: an effect that does not
show there makes no difference to the model either, and in half precision rounding would look like an effect.
Double precision would not survive the operators that compute in single.

*Tolerance.* `same` allows what another order of summation makes: a share of the largest number.
`changed_rows` allows nothing: where no input of a row has changed, the same kernel yields the same bits.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from prunec import compat
from prunec.probing.lengths import Lengths

Sign = Literal["both", "above zero", "below zero"]

PRECISION = torch.float32
_TOLERANCE = 1e-4  # of the largest number of a result
_PERIOD = 65537  # a prime, so that no two rows of a tensor are the same stretch of the noise


class Noise:
    """A source of random numbers; the same seed yields the same."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def like(self, value: Any, lengths: Lengths, sign: Sign = "both") -> Any:
        """Numbers of a recorded value's shape: normal ones, zeros and ones for integers and truth values."""
        if isinstance(value, list | tuple):
            return type(value)(self.like(item, lengths, sign) for item in value)
        if not isinstance(value, Tensor):
            return lengths.size(value)
        shape = lengths.shape(value)
        if not (value.is_floating_point() or value.is_complex()):
            bits = torch.randint(0, 2, shape, generator=self.generator)
            return bits.to(value.device, value.dtype)
        found = self._normal(shape)
        if value.is_complex():
            found = torch.complex(found, self._normal(shape))
        elif sign != "both":
            found = found.abs() if sign == "above zero" else -0.1 - found.abs()
        return found.to(value.device)

    def _normal(self, shape: tuple[int, ...]) -> Tensor:
        size = math.prod(shape)
        start = int(torch.randint(_PERIOD, (1,), generator=self.generator))
        noise = _normal_numbers().repeat((start + size) // _PERIOD + 1)
        return noise[start : start + size].reshape(shape)

    def order(self, length: int) -> Tensor:
        """An order of so many rows."""
        return torch.randperm(length, generator=self.generator)

    def half(self, length: int) -> Tensor:
        """About half of so many rows, as a mask."""
        return torch.rand(length, generator=self.generator) < 0.5

    def weights(self, result: Tensor) -> Tensor:
        """Positive weights for the entries of a result, none near zero."""
        return torch.rand(result.shape, generator=self.generator).to(result) + 0.5

    def row_numbers(self, length: int) -> Tensor:
        """A number for each row, no two the same, in no order."""
        return self.order(length) + 0.5 * torch.rand(length, generator=self.generator)


@functools.cache
def _normal_numbers() -> Tensor:
    """Drawn once: to draw them anew costs more than most operators."""
    return torch.randn(_PERIOD, generator=torch.Generator().manual_seed(0), dtype=PRECISION)


@contextlib.contextmanager
def seeded() -> Iterator[None]:
    """Operators draw the same numbers each time, keep no gradient, and leave the random state alone."""
    with torch.no_grad(), torch.random.fork_rng():
        compat.seed(0)
        yield


def single_precision(argument: Any) -> Any:
    """An argument of a call as it is, but for the names of other floating-point types."""
    if not isinstance(argument, torch.dtype):
        return argument
    if argument.is_complex:
        return PRECISION.to_complex()
    return PRECISION if argument.is_floating_point else argument


def same(found: Any, expected: Any) -> bool:
    """Whether results are equal up to rounding, tensor by tensor; never where one holds NaN."""
    pairs = list(_pairs(found, expected))
    return bool(pairs) and all(_same(*pair) for pair in pairs)


def _same(found: Any, expected: Any) -> bool:
    if not isinstance(found, Tensor) or not isinstance(expected, Tensor):
        return bool(found == expected)
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if not (found.is_floating_point() or found.is_complex()):
        return torch.equal(found, expected)
    if not found.numel():
        return True
    equal = found == expected  # infinities as well
    apart = torch.where(equal, 0.0, (found - expected).abs()).max()
    scale = torch.where(expected.isinf(), 0.0, expected.abs()).max()
    return bool(apart <= _TOLERANCE * scale)


def changed_rows(once: Any, again: Any, axis: int) -> list[Tensor]:
    """For each tensor of two results, which rows along an axis differ at all."""
    return [
        (one != other).movedim(axis, 0).flatten(1).any(dim=1)
        for one, other in _pairs(once, again)
        if isinstance(one, Tensor)
    ]


def _pairs(one: Any, other: Any) -> Iterator[tuple[Any, Any]]:
    yield from zip(compat.tree_leaves(one), compat.tree_leaves(other), strict=True)
