"""Numbers that depend on how many tokens there are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["counts", "for_images", "log", "throughout"]


def counts(valid: Tensor) -> Tensor:
    """How many rows of each image are valid: [B]. No gradient."""
    return valid.sum(dim=1, dtype=torch.float64)


def log(number: Any) -> Any:
    """The natural logarithm of a number, or of each image's."""
    return number.log() if isinstance(number, Tensor) else math.log(number)


def for_images(number: Tensor, axis: int, rank: int, each: int, dtype: torch.dtype) -> Tensor:
    """A number of each image, in a shape that broadcasts; an image has `each` entries on its axis."""
    number = number.repeat_interleave(each) if each > 1 else number
    shape = [1] * rank
    shape[axis] = number.shape[0]
    return number.to(dtype).reshape(shape)  # [B] -> [1, .., B, .., 1]


def throughout(sizes: Sequence[int], number: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor that holds one number everywhere. No gradient."""
    return torch.full(tuple(sizes), number, dtype=dtype, device=device)
