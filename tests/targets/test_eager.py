from __future__ import annotations

import pytest
import torch

from prunec import targets
from prunec.errors import TargetError, UsageError
from prunec.ir.program import ProgramModule
from prunec.targets import LoweredModule, device_of
from prunec.targets.eager import Eager
from prunec.targets.precision import BOUNDS, halved
from tests.targets.cases import difference
from tests.tiny import ViT, pixels, pruned, recognised


def test_it_is_the_program_itself() -> None:
    program = pruned(recognised(ViT()))
    assert Eager().missing() is None
    assert Eager().lower(program) is program.module


def test_a_lowered_module_is_called_as_the_model_is() -> None:
    model, x = ViT().eval(), pixels(3)
    program = pruned(recognised(model))
    module = LoweredModule(program, targets.load("eager").lower(program))
    assert torch.equal(module(pixels=x), ProgramModule(program)(x))
    assert module.state_dict().keys() == model.state_dict().keys()
    with pytest.raises(UsageError, match=r"expected float32\[B, 3, 20, 20\]"):
        module(x[:, :, :16])


def test_in_half_precision_it_follows_the_weights_and_takes_what_the_model_takes() -> None:
    model, x = ViT().eval(), pixels(3)
    program = recognised(model)
    module = LoweredModule(program, targets.load("eager", "bf16").lower(program))
    with torch.no_grad():
        before = module(x)
        assert before.dtype == torch.float32
        assert torch.equal(before, halved(program, "bf16").module(x)[0])
        model.head.bias.add_(1)
        assert difference(module(x), before + 1) < BOUNDS["bf16"]


def test_a_precision_that_a_target_lacks_is_refused_with_those_that_have_it() -> None:
    with pytest.raises(
        TargetError, match="target 'eager': it runs in fp32, bf16, fp16, and not in int8"
    ) as caught:
        targets.load("eager", "int8")
    assert caught.value.where == "precision"
    assert str(caught.value.remedy).endswith("or a target that has it: onnx")


def test_an_unknown_target_is_answered_with_the_nearest() -> None:
    with pytest.raises(TargetError, match="unknown target 'inducter'; nearest: inductor") as caught:
        targets.load("inducter")
    assert caught.value.remedy == f"targets: {', '.join(targets.TARGETS)}"


@pytest.mark.parametrize("name", targets.TARGETS)
def test_every_target_says_in_a_line_what_it_is(name: str) -> None:
    target = targets.find(name)
    assert target.summary
    assert "\n" not in target.summary
    assert target.missing() is None or isinstance(target.missing(), str)


def test_the_device_is_that_of_the_parameters() -> None:
    assert device_of(recognised(ViT())) == torch.device("cpu")
