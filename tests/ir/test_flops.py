from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from prunec import compat, ops
from prunec.ir import flops
from prunec.ir.flops import FlopCounter

Call = Callable[[], Any]


def rows(*shape: int) -> torch.Tensor:
    return torch.randn(*shape)


def counted(call: Call, *, grad: bool = False) -> int:
    with FlopCounter() as counter, torch.set_grad_enabled(grad):
        call()
    return counter.total


def weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.dim() > 1)


# Each figure is made by hand: 2 for each multiply-add, [n, k] by [k, m] has n * k * m of them.
PRODUCTS: dict[str, tuple[Call, int]] = {
    "mm": (lambda: rows(3, 5) @ rows(5, 7), 2 * 3 * 5 * 7),
    "bmm": (lambda: torch.bmm(rows(2, 3, 5), rows(2, 5, 7)), 2 * 2 * 3 * 5 * 7),
    "broadcast": (lambda: rows(4, 1, 3, 5) @ rows(6, 5, 7), 2 * 4 * 6 * 3 * 5 * 7),
    "matrix by vector": (lambda: rows(3, 5) @ rows(5), 2 * 3 * 5),
    "vectors": (lambda: torch.dot(rows(5), rows(5)), 2 * 5),
    "addmm": (lambda: torch.addmm(rows(7), rows(3, 5), rows(5, 7)), 2 * 3 * 5 * 7),
    "addmm by name": (lambda: torch.addmm(input=rows(7), mat2=rows(5, 7), mat1=rows(3, 5)), 2 * 3 * 5 * 7),
    "addmm in place": (lambda: rows(3, 7).addmm_(rows(3, 5), rows(5, 7)), 2 * 3 * 5 * 7),
    "addmm into": (lambda: torch.addmm(rows(7), rows(3, 5), rows(5, 7), out=rows(3, 7)), 2 * 3 * 5 * 7),
    "baddbmm": (lambda: torch.baddbmm(rows(2, 3, 7), rows(2, 3, 5), rows(2, 5, 7)), 2 * 2 * 3 * 5 * 7),
    "addbmm": (lambda: torch.addbmm(rows(3, 7), rows(2, 3, 5), rows(2, 5, 7)), 2 * 2 * 3 * 5 * 7),
    "addmv": (lambda: torch.addmv(rows(3), rows(3, 5), rows(5)), 2 * 3 * 5),
    "einsum": (lambda: torch.einsum("bnk,bmk->bnm", rows(2, 3, 5), rows(2, 7, 5)), 2 * 2 * 3 * 5 * 7),
    "linear": (lambda: F.linear(rows(2, 3, 5), rows(7, 5), rows(7)), 2 * 2 * 3 * 5 * 7),
    "bilinear": (lambda: F.bilinear(rows(3, 5), rows(3, 4), rows(7, 5, 4)), 2 * 3 * 7 * 5 * 4),
    "distances": (lambda: torch.cdist(rows(2, 3, 5), rows(2, 7, 5)), 2 * 2 * 3 * 7 * 5),
}
CONVOLUTIONS: dict[str, tuple[Call, int]] = {
    "patches": (lambda: F.conv2d(rows(2, 3, 8, 8), rows(5, 3, 4, 4), stride=4), 2 * 2 * 4 * 5 * 3 * 16),
    "grouped": (lambda: F.conv2d(rows(2, 6, 8, 8), rows(9, 2, 3, 3), groups=3), 2 * 2 * 36 * 9 * 2 * 9),
    "depthwise": (lambda: F.conv2d(rows(1, 6, 8, 8), rows(6, 1, 3, 3), groups=6), 2 * 36 * 6 * 9),
    "one axis": (lambda: F.conv1d(rows(2, 3, 8), rows(5, 3, 3)), 2 * 2 * 6 * 5 * 3 * 3),
    "tubelets": (lambda: F.conv3d(rows(1, 3, 4, 4, 4), rows(5, 3, 2, 2, 2), stride=2), 2 * 8 * 5 * 3 * 8),
    "transposed": (
        lambda: F.conv_transpose2d(rows(2, 3, 4, 4), rows(3, 5, 2, 2), stride=2),
        2 * 2 * 16 * 3 * 5 * 4,
    ),
    "unfolded": (lambda: F.unfold(rows(2, 3, 8, 8), 4), 0),
}
NOT_COUNTED: dict[str, tuple[Call, int]] = {
    "elementwise": (lambda: rows(3, 5) * rows(3, 5) + 1, 0),
    "softmax": (lambda: rows(3, 5).softmax(-1), 0),
    "norm": (lambda: F.layer_norm(rows(3, 5), (5,)), 0),
    "interpolation": (lambda: F.interpolate(rows(1, 3, 8, 8), scale_factor=2, mode="bilinear"), 0),
}


CALLS = {**PRODUCTS, **CONVOLUTIONS, **NOT_COUNTED}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_an_operator_has_the_count_made_by_hand(name: str, grad: bool) -> None:
    call, expected = CALLS[name]
    assert counted(call, grad=grad) == expected


@pytest.mark.parametrize("call", ["linear", "bmm", "broadcast", "einsum"])
def test_in_inference_mode_too(call: str) -> None:
    made, expected = PRODUCTS[call]
    with torch.inference_mode(), FlopCounter() as counter:
        made()
    assert counter.total == expected


# Attention, however it is spelled ---------------------------------------------------------------------------

B, H, N, M, D, E = 2, 3, 5, 7, 4, 6
BY_HAND = 2 * B * H * N * M * (D + E)


def test_attention_spelled_out() -> None:
    query, key, value = rows(B, H, N, D), rows(B, H, M, D), rows(B, H, M, E)
    assert counted(lambda: (query @ key.mT).softmax(-1) @ value) == BY_HAND


@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_fused_attention_has_one_count_whichever_kernel_runs(
    backend: SDPBackend, masked: bool, grad: bool
) -> None:
    query, key, value = rows(B, H, N, D), rows(B, H, M, D), rows(B, H, M, D)
    mask = rows(B, 1, N, M) if masked else None
    with sdpa_kernel(backend):
        found = counted(lambda: F.scaled_dot_product_attention(query, key, value, mask), grad=grad)
    assert found == 2 * B * H * N * M * (D + D)


def test_attention_whose_values_are_wider() -> None:
    query, key, value = rows(B, H, N, D), rows(B, H, M, D), rows(B, H, M, E)
    assert counted(lambda: F.scaled_dot_product_attention(query, key, value)) == BY_HAND


def test_attention_whose_heads_share_keys() -> None:
    query, key, value = rows(B, 4, N, D), rows(B, 2, M, D), rows(B, 2, M, D)
    found = counted(lambda: F.scaled_dot_product_attention(query, key, value, enable_gqa=True))
    assert found == 2 * B * 4 * N * M * (D + D)


@pytest.mark.parametrize(
    "name", ["_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention"]
)
def test_kernels_of_other_devices_are_counted_by_their_shapes(name: str) -> None:
    given = [rows(B, H, N, D), rows(B, H, M, D), rows(B, H, M, E)]
    assert flops.FORMULAS[f"aten::{name}"](None, *given) == BY_HAND


@pytest.mark.parametrize("name", ["aten::_flash_attention_forward", "aten::_efficient_attention_forward"])
def test_kernels_with_the_heads_last(name: str) -> None:
    given: list[Any] = [rows(B, N, H, D), rows(B, M, H, D), rows(B, M, H, E), None, None]
    assert flops.FORMULAS[name](None, *given) == BY_HAND


def test_a_kernel_for_sequences_of_different_lengths() -> None:
    queries, keys = torch.tensor([0, 2, 5]), torch.tensor([0, 3, 7])
    given = [rows(5, H, D), rows(7, H, D), rows(7, H, E), queries, keys]
    assert flops.FORMULAS["torch_attn::_varlen_attn"](None, *given) == 2 * H * (2 * 3 + 3 * 4) * (D + E)


def test_packed_rows_attend_to_their_own_image_only() -> None:
    valid, among = torch.zeros(2, 4, dtype=torch.bool), torch.zeros(2, 5, dtype=torch.bool)
    valid[0, :2], valid[1, :3], among[0, :3], among[1, :4] = True, True, True, True
    query, key, value = rows(1, H, 5, D), rows(1, H, 7, D), rows(1, H, 7, D)
    found = counted(lambda: ops.attend(query, key, value, valid, among))
    assert found == 2 * H * (2 * 3 + 3 * 4) * (D + D)


def test_flex_attention_is_known_by_its_name() -> None:
    """Called by itself it compiles, and then no mode sees it: it is met in captured graphs only."""
    given = [rows(B, H, N, D), rows(B, H, M, D), rows(B, H, M, E)]
    assert compat.qualified_name(torch.ops.higher_order.flex_attention) == "flex_attention"
    assert flops.FORMULAS["flex_attention"](None, *given) == BY_HAND


@pytest.mark.parametrize("fast", [False, True])
def test_pytorchs_own_attention_and_encoder_layer(fast: bool) -> None:
    """Without gradients PyTorch runs each as one operator."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fast)
    try:
        width, hidden = 8, 20
        attention = nn.MultiheadAttention(width, 2, batch_first=True).eval()
        layer = nn.TransformerEncoderLayer(width, 2, hidden, batch_first=True).eval()
        x = rows(B, N, width)
        attending = 2 * 2 * B * N * N * width
        assert counted(lambda: attention(x, x, x)) == 2 * B * N * weights(attention) + attending
        assert counted(lambda: layer(x)) == 2 * B * N * (4 * width**2 + 2 * width * hidden) + attending
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


# Nothing that multiplies is missing -------------------------------------------------------------------------

#: A name like these says that an operator may multiply.
MULTIPLIES = re.compile(
    r"mm$|mm_|mm\b|matmul|attention|attn|conv|linear(?!1d)|dot|mv$|cdist|trilinear(?!3d)|multi_head|encoder_layer"
)
#: What has such a name, and is not counted: gradients, and what the module says is out of scope.
OUT_OF_SCOPE = re.compile(
    r"backward|sparse|cslt|hspmm|int4|4bit|quantized|mixed_dtypes|rnn|lstm|gru|convert|reorder|prepack|upsample"
    r"|linear_combination|triton|nested|foreach|_search|conv_tbc|mps_conv|hamming|gamma|comm|dummy|cum"
    r"|no_dropout_inplace|_cudnn_attention_forward"
)


def test_every_operator_of_this_pytorch_that_multiplies_has_a_formula() -> None:
    overloads = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::")]
    composed = {name.split(".")[0] for name in overloads if is_composed(name)}
    primitive = {name.split(".")[0] for name in overloads} - composed
    multiplying = {
        name.rstrip("_") for name in primitive if MULTIPLIES.search(name) and not OUT_OF_SCOPE.search(name)
    }
    assert len(multiplying) > 30  # the pattern finds them
    assert multiplying - set(flops.FORMULAS) == set()


def is_composed(overload: str) -> bool:
    """Whether PyTorch runs it as other operators, which are then counted."""
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(overload, "CompositeImplicitAutograd"))
