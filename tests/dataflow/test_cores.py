from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunec.dataflow.cores import find_cores
from prunec.dataflow.flow import DataFlow
from prunec.structure import Core
from tests.tiny import Attention, Block, ViT, normalised

BIAS = torch.linspace(-1, 0, 5 * 5).view(5, 5)


class Calls(nn.Module):
    """One attention of a stream [B, 2, 5, 4], written as a test wants it."""

    def __init__(self, call: Any) -> None:
        super().__init__()
        self.call = call
        self.register_buffer("bias", BIAS)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x, x.exp(), x.sin(), self.bias)


def cores_of(call: Any) -> list[Core]:
    flow = DataFlow(normalised(Calls(call), torch.randn(2, 2, 5, 4)).graph)
    return list(find_cores(flow).values())


CORES: dict[str, tuple[Any, str]] = {
    "fused": (lambda q, k, v, _: F.scaled_dot_product_attention(q, k, v), "fused"),
    "spelled out": (lambda q, k, v, _: (q @ k.mT / 2).softmax(-1) @ v, "spelled"),
    "with a bias": (lambda q, k, v, bias: (q @ k.mT + bias).softmax(-1) @ v, "spelled"),
    "einsum": (
        lambda q, k, v, _: torch.einsum(
            "bhqk,bhkd->bhqd", torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1), v
        ),
        "spelled",
    ),
}


@pytest.mark.parametrize("name", CORES)
def test_an_attention_is_found_in_the_form_in_which_it_is_written(name: str) -> None:
    call, form = CORES[name]
    (core,) = cores_of(call)
    assert core.form == form


def test_a_fused_call_tells_its_scale_and_its_mask() -> None:
    (core,) = cores_of(
        lambda q, k, v, bias: F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=0.3)
    )
    assert core.scale == pytest.approx(0.3)
    assert core.mask is not None
    (plain,) = cores_of(CORES["fused"][0])
    assert (plain.scale, plain.mask) == (None, None)


NONE: dict[str, Any] = {
    "a softmax of channels": lambda q, k, v, _: q.softmax(-1) * v,
    "a product without a softmax": lambda q, k, v, _: (q @ k.mT) @ v,
    "a softmax that nothing is multiplied by": lambda q, k, v, _: (q @ k.mT).softmax(-1),
}


@pytest.mark.parametrize("name", NONE)
def test_what_only_looks_like_one_is_none(name: str) -> None:
    assert cores_of(NONE[name]) == []


@pytest.mark.parametrize("form", ["fused", "spelled"])
def test_every_block_has_its_own(form: str) -> None:
    model = ViT(lambda: Block(lambda: Attention(form=form)), depth=3)
    found = find_cores(DataFlow(normalised(model).graph))
    assert [core.form for core in found.values()] == [form] * 3
    assert list(found) == [core.node for core in found.values()]
