"""Attention of packed rows: each image's among themselves.

There are as many sizes as images, and no compiler knows them: on the CPU one fused attention after the other,
on CUDA the kernel for sequences of different lengths where PyTorch has it (compat.varlen_attention).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import register_flop_formula

from prunec import compat


@torch.library.custom_op("prunec::attend", mutates_args=())
def _attend(query: Tensor, key: Tensor, value: Tensor, counts: Tensor, scale: float, longest: int) -> Tensor:
    """One operator for any number of images, so that nothing is compiled again for another batch."""
    if query.is_cuda:
        return compat.varlen_attention(query, key, value, counts, scale, longest)
    result = _empty(query)
    start = 0
    for count in counts.tolist():
        one = slice(start, start + count)
        result[:, :, one] = scaled_dot_product_attention(
            query[:, :, one], key[:, :, one], value[:, :, one], scale=scale
        )
        start += count
    return result


def _empty(query: Tensor) -> Tensor:
    """[1, h, S, d], laid out as the projection behind it wants to read it."""
    return query.new_empty((1, query.shape[2], query.shape[1], query.shape[3])).transpose(1, 2)


@_attend.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, counts: Tensor, scale: float, longest: int) -> Tensor:
    return _empty(query)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, scale, _ = inputs
    ctx.save_for_backward(*tensors)
    ctx.scale = scale


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, counts = ctx.saved_tensors
    found: list[list[Tensor]] = [[], [], []]
    start = 0
    for count in counts.tolist():
        one = slice(start, start + count)
        parts = [tensor[:, :, one].detach().requires_grad_() for tensor in tensors]
        with torch.enable_grad():
            query, key, value = parts
            out = scaled_dot_product_attention(query, key, value, scale=ctx.scale)
        for place, part in enumerate(torch.autograd.grad(out, parts, grad[:, :, one])):
            found[place].append(part)
        start += count
    return *(torch.cat(parts, dim=2) for parts in found), None, None, None


_attend.register_autograd(_backward, setup_context=_remember)


@register_flop_formula(torch.ops.prunec.attend)
def _flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """As if all rows were one image's: right for one image at a time, which is how prunec counts."""
    _, heads, rows, width = query
    return int(2 * heads * rows * key[2] * (width + value[3]))


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    live: Tensor,
    scale: float | None = None,
) -> Tensor:
    """Attention of packed rows [1, h, S, d]; of image i there are as many as row i of `live` [B, n] has."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    out: Tensor = _attend(query, key, value, live.sum(dim=1), scale, live.shape[1])
    return out
