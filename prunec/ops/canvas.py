"""The canvas: class scores that are final for tokens that have left, painted over what the head says."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["paint", "remaining"]


def remaining(before: Tensor, kept: Tensor, rows: Tensor) -> Tensor:
    """Of all tokens those that have not exited: of `rows` [B, n], which were left, those that are `kept`."""
    return before.scatter(1, rows, kept)  # [B, T]


def paint(scores: Tensor, canvas: Tensor, active: Tensor, axis: int, prefix: int, suffix: int) -> Tensor:
    """The head's scores, but the canvas's where tokens have left.

    scores: class scores on `axis`, all tokens (without prefix and suffix) in order on the others behind the
    batch, be they one axis or a grid.
    """
    there = scores.movedim(axis, -1)  # [B, .., K]
    end = canvas.shape[1] - suffix
    painted = canvas[:, prefix:end].reshape(there.shape).to(there.dtype)
    stays = active[:, prefix:end].reshape(there.shape[:-1]).unsqueeze(-1)
    return torch.where(stays, there, painted).movedim(-1, axis)
