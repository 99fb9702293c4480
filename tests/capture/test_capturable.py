"""Wrapped, compiled, scripted, quantised and empty models are met with what to give instead."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import prunec
from prunec.capture.capturable import check_capturable
from tests.tiny import ViT, pixels


class TorchScript(torch.jit.ScriptModule):
    """What torch.jit.script and trace return, without their warnings."""


def quantised() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(ViT().eval(), {nn.Linear})


def holding(part: nn.Module) -> nn.Module:
    model = ViT().eval()
    model.neck = part
    return model


WRONG: list[tuple[Callable[[], Any], str, str | None, str]] = [
    (lambda: nn.DataParallel(ViT()), "DataParallel wraps a model", None, "model.module"),
    (lambda: torch.compile(ViT()), "OptimizedModule is a model compiled", None, "model._orig_mod"),
    (lambda: holding(torch.compile(nn.Identity())), "OptimizedModule is a", "part neck", "_orig_mod"),
    (TorchScript, "TorchScript is TorchScript", None, "the Python module"),
    (quantised, "Linear holds packed integer weights", "part blocks.0.attn.qkv", "before it was quantised"),
    (
        lambda: ViT().to("meta"),
        "the model has no numbers: on the meta device are embed.front",
        None,
        "to_empty",
    ),
    (lambda: torch.relu, "a model is an nn.Module, got a builtin_function_or_method", None, "model itself"),
]


@pytest.mark.parametrize(("make", "what", "where", "remedy"), WRONG)
def test_what_cannot_be_captured_is_met_with_what_to_give(
    make: Callable[[], Any], what: str, where: str | None, remedy: str
) -> None:
    model = make()
    for verb in (prunec.transform, prunec.optimize):
        with pytest.raises(prunec.UsageError) as caught:
            verb(model, "norm", example=pixels())
        assert caught.value.what.startswith(what)
        assert caught.value.where == where
        assert remedy in (caught.value.remedy or "")


def test_a_transformed_model_is_not_transformed_again_and_its_original_is() -> None:
    model, x = ViT().eval(), pixels()
    fast = prunec.transform(model, prunec.Policy.load("norm", keep=0.5, blocks=(1,)), example=x)
    with pytest.raises(prunec.UsageError, match="the model was transformed already") as caught:
        prunec.transform(fast, prunec.Policy.load("norm", keep=0.5, blocks=(1,)), example=x)
    assert "transform the model that it was made from" in (caught.value.remedy or "")
    with pytest.raises(prunec.UsageError, match="the model was transformed already"):
        prunec.transform(holding(fast), prunec.Policy.load("norm", keep=0.5, blocks=(1,)), example=x)


def test_distributed_data_parallel() -> None:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(ViT().eval())
    finally:
        torch.distributed.destroy_process_group()
    with pytest.raises(prunec.UsageError, match="DistributedDataParallel wraps"):
        check_capturable(wrapped)


def test_a_model_with_parts_of_any_other_kind_is_captured() -> None:
    check_capturable(nn.Sequential(ViT(), nn.BatchNorm1d(7), nn.LazyLinear(3).cls_to_become(3, 3)))
