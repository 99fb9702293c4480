"""Scores: one number for each token; tokens with high scores are kept."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "attention_map",
    "beside",
    "change",
    "class_attention",
    "class_row",
    "doubt",
    "random_score",
    "received",
    "times_values",
    "token_norm",
]


def class_attention(
    query: Tensor, key: Tensor, row: int, scale: float | None = None, mask: Tensor | None = None
) -> Tensor:
    """Attention that token `row` pays to every token, averaged over heads; one row, never the N x N map."""
    # query: [B, h, T, d], key: [B, h', T, d], mask: broadcastable to [B, h, T, T]
    if key.shape[1] != query.shape[1]:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    logits = (query[:, :, row : row + 1] * scale) @ key.transpose(-2, -1)  # [B, h, 1, T]
    if mask is not None:
        mask = mask[..., row : row + 1, :]
        logits = logits.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else logits + mask
    return torch.mean(logits.softmax(dim=-1)[:, :, 0], dim=1)


def class_row(attention: Tensor, row: int) -> Tensor:
    """The same from an attention map that the model computes itself."""
    return attention[:, :, row].mean(dim=1)  # [B, h, T, T] -> [B, T]


def token_norm(x: Tensor, dim: int = 1) -> Tensor:
    """The L2 norm of each token."""
    return torch.sqrt(x.movedim(dim, 1).square().sum(dim=-1))  # [B, T, C] -> [B, T]


def random_score(x: Tensor, dim: int = 1, among: Tensor | None = None) -> Tensor:
    """A random number for each token, for the random control. No gradient.

    Of pairs, scored `among` them, targets, whose score is infinite, stay targets.
    """
    chance = torch.rand_like(x.movedim(dim, 1)[..., 0].detach())
    return chance if among is None else torch.where(among.isposinf(), among.detach(), chance)


def beside(score: Tensor, x: Tensor, dim: int = 1) -> Tensor:
    """A score computed from the pixels, tied to a stream: if tokens have left it, the score loses theirs."""
    return score.expand(x.movedim(dim, 1).shape[:2])  # [B, T], x: [B, T, C] -> [B, T]


def attention_map(
    query: Tensor, key: Tensor, scale: float | None = None, mask: Tensor | None = None
) -> Tensor:
    """The attention map, computed again where the model's fused attention does not give it."""
    # query: [B, h, T, d], key: [B, h', T, d], mask: broadcastable to [B, h, T, T]
    if key.shape[1] != query.shape[1]:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    logits = (query * scale) @ key.transpose(-2, -1)
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else logits + mask
    return logits.softmax(dim=-1)


def times_values(score: Tensor, value: Tensor) -> Tensor:
    """Scores times the norm of the tokens' values, over all heads."""
    return score * value.square().sum(dim=(1, 3)).sqrt()  # [B, T], [B, h, T, d] -> [B, T]


def received(
    attention: Tensor, value: Tensor, prefix: int, suffix: int, valid: Tensor | None = None
) -> Tensor:
    """The attention that a token receives from all patches, plus a softmax of the values.

    Attention is the maximum over heads, relative to the token that receives most.
    """
    end = attention.shape[-1] - suffix  # attention: [B, h, T, T], value: [B, h, T, d]
    paid = attention[:, :, prefix:end, prefix:end].amax(dim=1)  # [B, N, N]
    worth = value[:, :, prefix:end].amax(dim=1).sum(dim=-1)  # [B, N]
    if valid is not None:
        there = valid[:, prefix:end]
        paid, worth = paid * there.unsqueeze(-1), worth.masked_fill(~there, float("-inf"))
    paid, share = paid.sum(dim=1), worth.softmax(dim=-1)
    score = paid / paid.amax(dim=1, keepdim=True) + share
    return torch.nn.functional.pad(score, (prefix, suffix))


def change(before: Tensor, after: Tensor, dim: int = 1) -> Tensor:
    """How far a block's MLP moved each token."""
    return token_norm(after - before, dim)


def doubt(logits: Tensor) -> Tensor:
    """How uncertain a token's class is: minus the largest probability."""
    return -logits.softmax(dim=-1).amax(dim=-1)  # [B, T, K] -> [B, T]


#: What scores tokens without parameters, out of what the model computes.
SCORES = (class_attention, class_row, attention_map, received, times_values, token_norm, random_score, change)
