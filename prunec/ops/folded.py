"""Attention of few queries, whose keys and values are never made."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["attend_states"]


def attend_states(
    query: Tensor,
    states: Tensor,
    key_weight: Tensor,
    value_weight: Tensor,
    value_bias: Tensor | None,
    scale: float,
    mask: Tensor | None = None,
    key_bias: Tensor | None = None,
) -> Tensor:
    """What each query takes from the values of the states that it looks at, by their keys.

    The queries go through the keys' layer instead of the states, the results through that of the values. The
    keys' bias adds the same number to all scores of a query, which a softmax does not see.

    Args:
        query: [B, h, m, d]
        states: [B, n, C], which a layer would make keys, and another one values.
        key_weight: [h * d, C]
        value_weight: [h * d, C]
        value_bias: [h * d]
        scale: of the scores.
        mask: true for what may be looked at, or what is added to the scores; as [B, h, m, n].
        key_bias: [h * d], if nothing else reads it: in training it gets the gradient that it has, zeros.

    Returns:
        [B, h, m, d], zero for a query that may look at nothing, as in fused attention.
    """
    batch, heads, rows, _ = query.shape
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
    """Which queries may look at nothing: [.., m, 1]."""
    hidden = ~mask if mask.dtype == torch.bool else mask.isneginf()
    return hidden.all(dim=-1, keepdim=True)
