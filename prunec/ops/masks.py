"""Keys: what attention may look at, and how much each key counts."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["bias_keys", "fill", "key_bias", "key_mask", "mask_keys", "rescale", "valid_mask_among"]


def valid_mask_among(valid: Tensor, front: int, back: int) -> Tensor:
    """Which rows count of an operand with so many rows more than the stream at its ends: those always do.

    Below zero: with so many of the stream's protected rows less.
    """
    return torch.nn.functional.pad(valid, (front, back), value=True)  # [B, n] -> [B, front + n + back]


def key_mask(valid: Tensor, mask: Tensor | None = None) -> Tensor:
    """A mask for fused attention that hides padding rows from every query, on top of one that is there."""
    keys = valid[:, None, None, :]  # [B, 1, 1, n]
    if mask is None:
        return keys
    return mask & keys if mask.dtype == torch.bool else mask.masked_fill(~keys, float("-inf"))


def mask_keys(logits: Tensor, valid: Tensor) -> Tensor:
    """The same for attention that is spelled out, before its softmax: [B, h, n, n]."""
    return logits.masked_fill(~valid[:, None, None, :], float("-inf"))


def fill(x: Tensor, valid: Tensor, value: float, dim: int, batch_dim: int, each: int = 1) -> Tensor:
    """Padding rows of an operand hold what makes no difference to the operator that reads it.

    Zero to a sum, minus infinity to a maximum. Every image has `each` entries of the operand, one after the
    other, such as heads. A mask that is trained (numbers) weighs the rows of a sum.
    """
    valid = valid.repeat_interleave(each, dim=0)  # [B * each, n]
    valid = valid.T if dim < batch_dim else valid
    shape = [1] * x.dim()
    shape[min(batch_dim, dim)], shape[max(batch_dim, dim)] = valid.shape
    valid = valid.reshape(shape)
    if valid.dtype != torch.bool and value == 0.0:
        return x * valid.to(x.dtype)
    return x.masked_fill(valid == 0, value)


def rescale(y: Tensor, x: Tensor, valid: Tensor, dim: int, batch_dim: int) -> Tensor:
    """A mean over all rows of `x`, padding filled with zeros, as the mean over those that count."""
    count = valid.sum(dim=1).clamp_min(1)  # [B]
    shape = [1] * y.dim()
    shape[batch_dim] = count.shape[0]
    return y * (x.shape[dim] / count).to(y.dtype).reshape(shape)


def key_bias(size: Tensor, mask: Tensor | None = None) -> Tensor:
    """A bias for fused attention by which each key counts as many as it stands for, on top of any mask."""
    bias = size.log()[:, None, None, :]  # [B, n] -> [B, 1, 1, n]
    if mask is None:
        return bias
    return torch.where(mask, bias, float("-inf")) if mask.dtype == torch.bool else mask + bias


def bias_keys(logits: Tensor, size: Tensor) -> Tensor:
    """The same for attention that is spelled out, before its softmax: [B, h, n, n]."""
    return logits + size.log()[:, None, None, :].to(logits.dtype)
