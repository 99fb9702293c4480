from __future__ import annotations

import pytest
import torch

from prunec import targets
from prunec.errors import TargetError, UsageError
from prunec.ir.program import ProgramModule
from prunec.targets import LoweredModule, device_of
from prunec.targets.eager import Eager
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
