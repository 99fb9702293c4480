from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunec.capture.capturable import check_capturable
from prunec.errors import UsageError
from prunec.ir.program import ProgramModule
from prunec.ir.weights import LinearWeights, quantised
from tests.tiny import ViT, pixels, pruned, recognised


class Integers(Tensor):
    """Weights as a library of quantisation keeps them: integers that look like floats."""

    integers: Tensor

    @staticmethod
    def __new__(cls, weight: Tensor) -> Integers:
        made = Tensor._make_wrapper_subclass(cls, weight.shape, dtype=weight.dtype)
        made.integers = (weight / weight.abs().max() * 127).to(torch.int8)
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(func)


def quantise(model: nn.Module) -> int:
    """As those libraries do it: every nn.Linear gets other weights."""
    layers = [part for part in model.modules() if isinstance(part, nn.Linear)]
    for layer in layers:
        layer.weight = nn.Parameter(Integers(layer.weight.detach()), requires_grad=False)
    return len(layers)


@pytest.mark.parametrize("change", [lambda fast: fast, copy.deepcopy])
def test_a_transformed_model_is_not_quantised_in_silence(change: Any) -> None:
    fast, x = change(ProgramModule(pruned(recognised(ViT().eval())))), pixels()
    before = fast(x)
    with pytest.raises(UsageError, match=r"a transformed model cannot be quantised \(Integers\)") as caught:
        quantise(fast)
    assert "--precision int8" in str(caught.value.remedy)
    assert torch.equal(fast(x), before)


def test_a_model_that_was_quantised_first_is_told_so() -> None:
    model = ViT().eval()
    assert quantise(model) > 0
    with pytest.raises(UsageError, match=r"weights are quantised \(Integers\)") as caught:
        check_capturable(model)
    assert caught.value.where == "blocks.0.attn.qkv.weight"
    assert "as it was before" in str(caught.value.remedy)


def test_the_parts_of_a_transformed_model_say_what_they_hold() -> None:
    fast = ProgramModule(recognised(ViT().eval()))
    head = fast.get_submodule("head")
    assert isinstance(head, LinearWeights)
    assert (head.in_features, head.out_features) == (16, 7)
    head.weight = nn.Parameter(torch.zeros(7, 16))
    head.bias = nn.Parameter(torch.arange(7.0))
    assert torch.equal(fast(pixels())[0], torch.arange(7.0))


def test_ordinary_tensors_are_not_quantised() -> None:
    assert quantised(torch.zeros(2)) == quantised(nn.Parameter(torch.zeros(2))) == ""
    assert quantised(nn.Parameter(Integers(torch.ones(2)), requires_grad=False)) == "Integers"
