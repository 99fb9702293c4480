"""Attention of few queries, whose keys and values are never computed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["attend_states"]


def attend_states(
    query: Tensor,
    states: Tensor,
    keys: tuple[Tensor, Tensor | None],
    values: tuple[Tensor, Tensor | None],
    scale: float,
    mask: Tensor | None = None,
) -> Tensor:
    """Attention of queries to states whose keys and values are linear in them.

    The queries go through the keys' layer instead of the states, the results through that of the values. The
    keys' bias adds the same number to all scores of a query, which a softmax does not see.

    Args:
        query: [B, h, m, d]
        states: [B, n, C]
        keys: the weight [h * d, C] and bias [h * d] of the layer that would make keys of the states. The bias
            is only there to get its gradient in training, zeros: None where something else reads it.
        values: those of the layer that would make values; None for no bias.
        scale: of the scores.
        mask: true for keys that a query attends to, or what is added to the scores; as [B, h, m, n].

    Returns:
        [B, h, m, d], zero for a query whose keys are all hidden, as in fused attention.
    """
    batch, heads, rows, _ = query.shape
    (key_weight, key_bias), (value_weight, value_bias) = keys, values
    if key_bias is not None and torch.is_grad_enabled():
        query = query + 0.0 * key_bias.unflatten(0, (heads, 1, -1))
    states = states[:, None]  # [B, 1, n, C]: what each head asks for is one more query of a single head
    asked = torch.einsum("bhmd,hdc->bhmc", query, key_weight.unflatten(0, (heads, -1)))
    spread = None if mask is None else mask.expand(batch, heads, rows, states.shape[2]).flatten(1, 2)[:, None]
    taken = F.scaled_dot_product_attention(
        asked.flatten(1, 2)[:, None], states, states, attn_mask=spread, scale=scale
    )
    taken = taken[:, 0].unflatten(1, (heads, rows))  # [B, h, m, C]
    result = torch.einsum("bhmc,hdc->bhmd", taken, value_weight.unflatten(0, (heads, -1)))
    if value_bias is not None:
        result = result + value_bias.unflatten(0, (heads, 1, -1))
    return result if mask is None else result.masked_fill(_hides_all(mask), 0.0)


def _hides_all(mask: Tensor) -> Tensor:
    """Which queries have all their keys hidden: [.., m, 1]."""
    hidden = ~mask if mask.dtype == torch.bool else mask.isneginf()
    return hidden.all(dim=-1, keepdim=True)
