"""The canvas: the final class scores of tokens that have exited, which replace what the head gives them."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["paint", "remaining"]


def remaining(before: Tensor, kept: Tensor, rows: Tensor) -> Tensor:
    """The mask [B, T] of tokens that have not exited: `before`, with `kept` [B, n] at `rows` [B, n]."""
    return before.scatter(1, rows, kept)  # [B, T]


def paint(scores: Tensor, canvas: Tensor, active: Tensor, axis: int, prefix: int, suffix: int) -> Tensor:
    """The head's class scores for tokens that are active, those of the canvas for tokens that have exited.

    scores: classes on `axis`; the patch tokens in order on the other axes but the batch, one axis or a grid.
    """
    there = scores.movedim(axis, -1)  # [B, .., K]
    end = canvas.shape[1] - suffix
    painted = canvas[:, prefix:end].reshape(there.shape).to(there.dtype)
    stays = active[:, prefix:end].reshape(there.shape[:-1]).unsqueeze(-1)
    return torch.where(stays, there, painted).movedim(-1, axis)
