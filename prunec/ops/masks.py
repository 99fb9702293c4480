"""Keys: what attention may look at, and how much each key counts."""

from __future__ import annotations

import torch
from torch import Tensor


def key_mask(live: Tensor, mask: Tensor | None = None) -> Tensor:
    """A mask for fused attention that hides padding rows from every query, on top of one that is there."""
    keys = live[:, None, None, :]  # [B, 1, 1, n]
    if mask is None:
        return keys
    return mask & keys if mask.dtype == torch.bool else mask.masked_fill(~keys, float("-inf"))


def mask_keys(logits: Tensor, live: Tensor) -> Tensor:
    """The same for attention that is spelled out, before its softmax: [B, h, n, n]."""
    return logits.masked_fill(~live[:, None, None, :], float("-inf"))


def key_bias(size: Tensor, mask: Tensor | None = None) -> Tensor:
    """A bias for fused attention by which each key counts as many as it stands for, on top of any mask."""
    bias = size.log()[:, None, None, :]  # [B, n] -> [B, 1, 1, n]
    if mask is None:
        return bias
    return torch.where(mask, bias, float("-inf")) if mask.dtype == torch.bool else mask + bias


def bias_keys(logits: Tensor, size: Tensor) -> Tensor:
    """The same for attention that is spelled out, before its softmax: [B, h, n, n]."""
    return logits + size.log()[:, None, None, :].to(logits.dtype)
