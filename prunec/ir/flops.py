"""Floating-point operations in closed form: counted from the shapes of every operator that multiplies.

    with FlopCounter() as counter:
        module(images)
    counter.total            # 2 for each multiply-add, forward only

The formulas are this file's own, so that a model has the same count under every version of PyTorch, whichever
kernel its dispatcher takes for an attention or a linear layer. Elementwise work, norms and softmax are not
counted, and neither is what a mask leaves out of an attention taken off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from prunec import compat

#: From the result of a call and its arguments to the operations that it takes.
Formula = Callable[..., int]


class FlopCounter(compat.DispatchMode):
    """Adds up the operations of all operators that run inside it."""

    #: Lets operators such as flex attention, which take functions, through to `__torch_dispatch__`.
    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator; count it, or what it is composed of."""
        kwargs = kwargs or {}
        formula = _formula(func)
        if formula is None:
            return compat.run_composed(func, self, args, kwargs)
        result = func(*args, **kwargs)
        self.total += formula(result, *compat.positional(func, args, kwargs))
        return result


def _formula(func: Any) -> Formula | None:
    """Also of the in-place form of an operator."""
    return FORMULAS.get(compat.qualified_name(func).rstrip("_"))


# Products of matrices ---------------------------------------------------------------------------------------


def _product(result: Any, left: Tensor, right: Tensor, *_: Any) -> int:
    """[.., n, k] by [.., k, m]; [n, k] by [k]; [k] by [k]."""
    return 2 * left.numel() * (right.shape[-1] if right.dim() > 1 else 1)


def _added_product(result: Any, _: Tensor, left: Tensor, right: Tensor, *__: Any) -> int:
    """A product that is added to the first argument."""
    return _product(result, left, right)


def _all_pairs(result: Tensor, left: Tensor, *_: Any) -> int:
    """Each result is made of two rows: a linear layer, a product that broadcasts, distances."""
    return 2 * result.numel() * left.shape[-1]


def _trilinear(result: Any, *args: Any) -> int:
    """What nn.Bilinear is: two inputs and the weight between them, made as large as each other."""
    shapes = [_with_axes(tensor, axes) for tensor, axes in zip(args[:3], args[3:6], strict=True)]
    return 2 * int(math.prod(map(max, *shapes)))


def _with_axes(tensor: Tensor, axes: Sequence[int]) -> list[int]:
    shape = list(tensor.shape)
    for axis in sorted(axes):
        shape.insert(axis, 1)
    return shape


# Convolutions -----------------------------------------------------------------------------------------------


def _filtered(result: Any, _: Tensor, weight: Tensor, *__: Any) -> int:
    """Each output is made by one filter; weight: [out, in / groups, *kernel]."""
    outputs: Tensor = result[0] if isinstance(result, tuple) else result
    return 2 * outputs.numel() * weight[0].numel()


def _spread(result: Any, inputs: Tensor, weight: Tensor, *_: Any) -> int:
    """Each input is spread by one filter; weight: [in, out / groups, *kernel]."""
    return 2 * inputs.numel() * weight[0].numel()


def _convolution(result: Any, *args: Any) -> int:
    """The seventh argument says whether it is a transposed one."""
    return _spread(result, *args) if args[6] else _filtered(result, *args)


# Attention --------------------------------------------------------------------------------------------------


def _attention(result: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> int:
    """Query [.., n, d], key [.., m, d], value [.., m, e]."""
    return _attended(query.numel() // query.shape[-1] * key.shape[-2], query, value)


def _attended(pairs: int, query: Tensor, value: Tensor) -> int:
    """For each pair of a query and a key: a score, and a share of the value."""
    return 2 * pairs * (query.shape[-1] + value.shape[-1])


def _heads_last(result: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> int:
    """Query [B, n, h, d]; or [T, h, d] of several sequences, with the offsets of queries and keys."""
    offsets = [leaf for leaf in rest[:3] if isinstance(leaf, Tensor) and leaf.dim() == 1]
    if len(offsets) == 2:
        queries, keys = (offset.diff() for offset in offsets)
        return _attended(int((queries * keys).sum()) * query.shape[-2], query, value)
    return _attended(query.numel() // query.shape[-1] * key.shape[-3], query, value)


def _packed(result: Any, query: Tensor, _: Tensor, value: Tensor, counts: Tensor, *__: Any) -> int:
    """Query [1, h, S, d] of several images, and how many queries and keys each has: [2, B]."""
    return _attended(int(counts.prod(dim=0).sum()) * query.shape[1], query, value)


def _multi_head(result: Any, query: Tensor, key: Tensor, _: Tensor, width: int, *__: Any) -> int:
    """What nn.MultiheadAttention runs at inference: four projections around an attention [B, n, width]."""
    rows, others = query.numel() // width, key.numel() // width
    return 2 * width * width * (2 * rows + 2 * others) + 4 * rows * key.shape[1] * width


def _encoder_layer(result: Any, source: Tensor, width: int, *rest: Any) -> int:
    """What nn.TransformerEncoderLayer runs at inference: four matrices around an attention [B, n, width]."""
    rows = source.numel() // width
    matrices = [leaf for leaf in rest if isinstance(leaf, Tensor) and leaf.dim() == 2][:4]
    return 2 * rows * sum(matrix.numel() for matrix in matrices) + 4 * rows * source.shape[1] * width


#: By the operator's name. What is missing multiplies nothing, is composed of what is here, or is out of
#: scope: recurrent layers, sparse and quantised kernels, FFT and linear algebra.
FORMULAS: dict[str, Formula] = {
    **dict.fromkeys(("aten::mm", "aten::bmm", "aten::mv", "aten::dot", "aten::vdot"), _product),
    **dict.fromkeys(("aten::_int_mm", "aten::_scaled_mm", "aten::_scaled_mm_v2"), _product),
    **dict.fromkeys(
        ("aten::_grouped_mm", "aten::_scaled_grouped_mm", "aten::_scaled_grouped_mm_v2"), _product
    ),
    **dict.fromkeys(("aten::addmm", "aten::baddbmm", "aten::addbmm", "aten::addmv"), _added_product),
    **dict.fromkeys(("aten::_addmm_activation", "aten::_scaled_addmm"), _added_product),
    **dict.fromkeys(("aten::linear", "aten::mkldnn_linear", "aten::_weight_int8pack_mm"), _all_pairs),
    **dict.fromkeys(("mkldnn::_linear_pointwise", "mkl::_mkl_linear"), _all_pairs),
    **dict.fromkeys(("aten::matmul", "aten::_cdist_forward"), _all_pairs),
    "aten::_trilinear": _trilinear,
    **dict.fromkeys(
        ("aten::convolution", "aten::_convolution", "aten::convolution_overrideable"), _convolution
    ),
    **dict.fromkeys(
        ("aten::_slow_conv2d_forward", "aten::slow_conv3d_forward", "aten::_conv_depthwise2d"), _filtered
    ),
    **dict.fromkeys(
        ("aten::conv_depthwise3d", "aten::slow_conv_dilated2d", "aten::slow_conv_dilated3d"), _filtered
    ),
    **dict.fromkeys(
        ("aten::mkldnn_convolution", "aten::_nnpack_spatial_convolution", "aten::_mps_convolution"), _filtered
    ),
    **dict.fromkeys(
        tuple(f"aten::cudnn_convolution{then}" for then in ("", "_relu", "_add_relu")), _filtered
    ),
    **dict.fromkeys(
        tuple(f"aten::miopen_convolution{then}" for then in ("", "_relu", "_add_relu")), _filtered
    ),
    **dict.fromkeys(("aten::miopen_depthwise_convolution", "mkldnn::_convolution_pointwise"), _filtered),
    **dict.fromkeys(("aten::slow_conv_transpose2d", "aten::slow_conv_transpose3d"), _spread),
    **dict.fromkeys(("aten::cudnn_convolution_transpose", "aten::miopen_convolution_transpose"), _spread),
    **dict.fromkeys(
        ("aten::_mps_convolution_transpose", "mkldnn::_convolution_transpose_pointwise"), _spread
    ),
    "aten::scaled_dot_product_attention": _attention,
    **dict.fromkeys(
        tuple(
            f"aten::_scaled_dot_product_{kind}"
            for kind in (
                "attention_math",
                "attention_math_for_mps",
                "flash_attention",
                "flash_attention_for_cpu",
                "efficient_attention",
                "cudnn_attention",
                "fused_attention_overrideable",
            )
        ),
        _attention,
    ),
    "flex_attention": _attention,
    **dict.fromkeys(("aten::_flash_attention_forward", "aten::_efficient_attention_forward"), _heads_last),
    "torch_attn::_varlen_attn": _heads_last,
    "prunec::attend": _packed,
    "aten::_native_multi_head_attention": _multi_head,
    "aten::_transformer_encoder_layer_fwd": _encoder_layer,
}
