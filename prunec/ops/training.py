"""Masks that can be trained: 0 or 1 in value, with a gradient by the score (straight through)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from prunec.ops.masks import key_mask
from prunec.ops.streams import spread_over

__all__ = ["attend_kept", "blend", "softmax_kept", "straight_through"]


def straight_through(
    kept: Tensor,
    score: Tensor,
    bound: Tensor | None,
    prefix: int,
    suffix: int,
    before: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """1 where a row is kept, else 0: [B, T]. Its gradient is that of a sigmoid of the score minus the bound.

    Without a bound it is the lowest score that was kept. Protected rows have no gradient; rows that are not
    in the mask `before` stay 0.
    """
    hard = kept.to(score.dtype)
    if bound is None:
        bound = score.masked_fill(~kept, float("inf")).amin(dim=1, keepdim=True).detach()
    soft = ((score - bound) / temperature).sigmoid()
    inner = torch.zeros_like(kept)
    inner[:, prefix : kept.shape[1] - suffix] = True
    soft = torch.where(inner, soft, 0.0)
    through = soft - soft.detach()
    mask = hard + through
    return mask if before is None else mask * before.to(mask.dtype)


def blend(base: Tensor, x: Tensor, mask: Tensor, dim: int = 1) -> Tensor:
    """Mask * x + (1 - mask) * base: kept rows of `x`, the others of `base`."""
    weight = spread_over(mask, x, dim)
    if mask.dtype == torch.bool:
        return torch.where(weight, x, base)
    return weight * x + (1 - weight) * base


def attend_kept(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    own: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Fused attention in which `mask` [B, n] weighs the keys, with `own`, the mask that it has already."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if mask.requires_grad and torch.is_grad_enabled():
        attend: Callable[..., Tensor] = _AttendKept.apply
        return attend(query, key, value, mask, own, scale)
    valid = mask if mask.dtype == torch.bool else mask > 0
    return scaled_dot_product_attention(query, key, value, attn_mask=key_mask(valid, own), scale=scale)


def softmax_kept(logits: Tensor, mask: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The same for attention without a fused operator: the softmax over its keys."""
    logits = logits if dtype is None else logits.to(dtype)  # [B, h, n, n]
    weight = mask[:, None, None, :].to(logits.dtype)
    shares = (logits - logits.amax(dim=-1, keepdim=True).detach()).exp() * weight
    return shares / shares.sum(dim=-1, keepdim=True).clamp_min(
        torch.finfo(logits.dtype).tiny
    )  # no key: zeros


class _AttendKept(torch.autograd.Function):
    """Forward is the fused kernel; backward computes the map again, one head at a time."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, own: Tensor | None, scale: float
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, mask, own)
        ctx.scale = scale
        return scaled_dot_product_attention(query, key, value, attn_mask=key_mask(mask > 0, own), scale=scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        query, key, value, mask, own = ctx.saved_tensors
        total = torch.zeros_like(mask)
        parts: list[tuple[Tensor, ...]] = []
        for head in range(query.shape[1]):
            one = slice(head, head + 1)
            given = [x[:, one].detach().requires_grad_() for x in (query, key, value)]
            weight = mask.detach().requires_grad_()
            bias = None if own is None else own if own.shape[1] == 1 else own[:, one]
            with torch.enable_grad():
                logits = (given[0] * ctx.scale) @ given[1].transpose(-2, -1)
                if bias is not None:
                    logits = (
                        logits.masked_fill(~bias, float("-inf"))
                        if bias.dtype == torch.bool
                        else logits + bias
                    )
                out = softmax_kept(logits, weight) @ given[2]
            *found, of_mask = torch.autograd.grad(out, [*given, weight], grad[:, one])
            total += of_mask
            parts.append(tuple(found))
        of_query, of_key, of_value = (torch.cat(heads, dim=1) for heads in zip(*parts, strict=True))
        return of_query, of_key, of_value, total, None, None
