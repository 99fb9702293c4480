"""Attention of packed rows: those of each image attend to each other.

Images have different lengths that are unknown at compile time. On the CPU a fused attention runs for each
image in turn, on CUDA PyTorch's kernel for sequences of different lengths (compat.varlen_attention).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from prunec import compat

__all__ = ["attend"]


@torch.library.custom_op("prunec::attend", mutates_args=())
def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    counts: Tensor,
    scale: float,
    longest: Sequence[int],
    bias: Tensor | None = None,
) -> Tensor:
    """One operator for any number of images, so that nothing is compiled again for another batch.

    `counts` [2, B]: how many queries and keys each image has, at most `longest`; `bias` is added to the
    logits of each key.
    """
    if query.is_cuda and bias is None:  # its kernel takes none
        most_queries, most_keys = longest
        return compat.varlen_attention(
            query, key, value, (counts[0], counts[1]), scale, (most_queries, most_keys)
        )
    result = _empty(query, value)
    for one, others in _images(counts):
        rows = query[:, :, one], key[:, :, others], value[:, :, others]
        result[:, :, one] = scaled_dot_product_attention(*rows, attn_mask=_keys(bias, others), scale=scale)
    return result


def _keys(bias: Tensor | None, rows: slice) -> Tensor | None:
    """The bias of one image's keys: [1, S] to [1, 1, 1, n]."""
    return None if bias is None else bias[:, None, None, rows]


def _images(counts: Tensor) -> Iterator[tuple[slice, slice]]:
    """The rows of each image, among the queries and among the keys."""
    first = other = 0
    for count, others in counts.T.tolist():
        yield slice(first, first + count), slice(other, other + others)
        first, other = first + count, other + others


def _empty(query: Tensor, value: Tensor) -> Tensor:
    """[1, h, S, d] with the width of the values, in the memory layout that the projection after it reads."""
    return query.new_empty((1, query.shape[2], query.shape[1], value.shape[3])).transpose(1, 2)


@_attend.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> Tensor:
    return _empty(query, value)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, scale, _, bias = inputs
    ctx.save_for_backward(*tensors, bias)
    ctx.scale = scale


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, counts, bias = ctx.saved_tensors
    counted = bias is not None and bias.requires_grad
    found: list[list[Tensor]] = [[], [], [], []]
    for one, others in _images(counts):
        rows = query[:, :, one], key[:, :, others], value[:, :, others]
        one_query, one_key, one_value = parts = [row.detach().requires_grad_() for row in rows]
        one_bias = _keys(bias, others)
        if counted:
            one_bias = one_bias.detach().requires_grad_()  # type: ignore[union-attr]
            parts.append(one_bias)
        with torch.enable_grad():
            out = scaled_dot_product_attention(
                one_query, one_key, one_value, attn_mask=one_bias, scale=ctx.scale
            )
        for place, part in enumerate(torch.autograd.grad(out, parts, grad[:, :, one])):
            found[place].append(part)
    rows_of = [torch.cat(parts, dim=2) for parts in found[:3]]
    of_bias = torch.cat(found[3], dim=3)[:, 0, 0] if counted else None
    return *rows_of, None, None, None, of_bias


_attend.register_autograd(_backward, setup_context=_remember)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    valid: Tensor,
    among: Tensor,
    scale: float | None = None,
    size: Tensor | None = None,
) -> Tensor:
    """Attention of packed rows [1, h, S, d].

    Image i has as many queries as row i of `valid` [B, n] has true entries, and as many keys as row i of
    `among` has. With `size` [1, S] a key counts as many as the tokens that it stands for.
    """
    out: Tensor = _attend(query, key, value, *_given(query, valid, among, scale, size))
    return out


def attend_padded(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    valid: Tensor,
    among: Tensor,
    scale: float | None = None,
    size: Tensor | None = None,
) -> Tensor:
    """The same for files, in operators of ATen alone: rows padded to the longest image, and packed again."""
    counts, scale, longest, bias = _given(query, valid, among, scale, size)
    ends = counts.cumsum(dim=1)
    queries, _ = _places(counts[0], ends[0], longest[0], query)
    keys, there = _places(counts[1], ends[1], longest[1], key)
    mask = query.new_zeros(there.shape) if bias is None else bias[0][keys]
    mask = mask.masked_fill(~there, float("-inf"))[:, None, None]  # [B, 1, 1, n]
    rows = [
        x[0].transpose(0, 1)[at].transpose(1, 2) for x, at in ((query, queries), (key, keys), (value, keys))
    ]
    out = scaled_dot_product_attention(rows[0], rows[1], rows[2], attn_mask=mask, scale=scale)  # [B, h, n, d]
    row = torch.arange(query.shape[2], device=query.device)
    image = (row.unsqueeze(1) >= ends[0]).sum(dim=1)
    first = ends[0] - counts[0]
    return out.transpose(1, 2)[image, row - first[image]].unsqueeze(0).transpose(1, 2)


def _given(
    query: Tensor, valid: Tensor, among: Tensor, scale: float | None, size: Tensor | None
) -> tuple[Tensor, float, tuple[int, int], Tensor | None]:
    """How many queries and keys each image has, the scale, the most that there may be, the bias of keys."""
    counts = torch.stack([valid.sum(dim=1), among.sum(dim=1)])
    bias = None if size is None else size.log()
    return counts, query.shape[-1] ** -0.5 if scale is None else scale, (valid.shape[1], among.shape[1]), bias


def _places(counts: Tensor, ends: Tensor, longest: int, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The packed row in each padded place, and which of the places are filled: [B, n]."""
    place = torch.arange(longest, device=counts.device)
    found = (ends - counts).unsqueeze(1) + place
    return found.clamp_max(rows.shape[2] - 1), place < counts.unsqueeze(1)
