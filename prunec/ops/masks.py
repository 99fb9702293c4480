"""Masks and biases by token: which keys attention sees, how much each counts, and what padding holds."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["bias_keys", "fill", "key_bias", "key_mask", "mask_keys", "rescale", "valid_mask_among"]


def valid_mask_among(valid: Tensor, front: int, back: int) -> Tensor:
    """The mask of an operand with `front` and `back` rows more than the stream has, which are always valid.

    Below zero: the operand lacks so many of the stream's protected rows.
    """
    return torch.nn.functional.pad(valid, (front, back), value=True)  # [B, n] -> [B, front + n + back]


def key_mask(valid: Tensor, mask: Tensor | None = None) -> Tensor:
    """A mask for fused attention that hides padding from every query, combined with the mask it had."""
    keys = valid[:, None, None, :]  # [B, 1, 1, n]
    if mask is None:
        return keys
    return mask & keys if mask.dtype == torch.bool else mask.masked_fill(~keys, float("-inf"))


def mask_keys(logits: Tensor, valid: Tensor) -> Tensor:
    """The same for attention without a fused operator, before its softmax: [B, h, n, n]."""
    return logits.masked_fill(~valid[:, None, None, :], float("-inf"))


def fill(x: Tensor, valid: Tensor, value: float, dim: int, batch_dim: int, each: int = 1) -> Tensor:
    """An operand whose padding rows hold the neutral value of the operator that reads it.

    That is zero for a sum and minus infinity for a maximum. Every image has `each` entries on the batch axis,
    one after the other, such as heads. A mask of numbers, as in training, weighs the rows of a sum.
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
    """A mean over all rows of `x`, whose padding is zero, turned into the mean over its valid rows."""
    count = valid.sum(dim=1).clamp_min(1)  # [B]
    shape = [1] * y.dim()
    shape[batch_dim] = count.shape[0]
    return y * (x.shape[dim] / count).to(y.dtype).reshape(shape)


def key_bias(size: Tensor, mask: Tensor | None = None) -> Tensor:
    """A bias for fused attention by which a key counts once for each token it stands for, with any mask."""
    bias = size.log()[:, None, None, :]  # [B, n] -> [B, 1, 1, n]
    if mask is None:
        return bias
    return torch.where(mask, bias, float("-inf")) if mask.dtype == torch.bool else mask + bias


def bias_keys(logits: Tensor, size: Tensor) -> Tensor:
    """The same for attention without a fused operator, before its softmax: [B, h, n, n]."""
    return logits + size.log()[:, None, None, :].to(logits.dtype)
