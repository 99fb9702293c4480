from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from prunec.ir.program import Program
from prunec.targets.building import Built
from tests.tiny import ViT, pixels, recognised


class Backend:
    """It copies the weights, and counts how often it was asked to."""

    def __init__(self) -> None:
        self.built: list[Program] = []

    def __call__(self, program: Program) -> Callable[..., Any]:
        self.built.append(program)
        return copy.deepcopy(program.module)


@pytest.fixture
def program() -> Program:
    return recognised(ViT().eval())


def test_it_is_built_when_it_is_first_called(program: Program) -> None:
    backend, x = Backend(), pixels()
    run = Built(program, backend)
    assert backend.built == []
    for _ in range(3):
        assert torch.equal(run(x)[0], program.module(x)[0])
    assert len(backend.built) == 1
    Built(program, backend).now()
    assert len(backend.built) == 2


def step(module: nn.Module) -> None:
    with torch.no_grad():
        next(module.parameters()).add_(0.5)


def load(module: nn.Module) -> None:
    module.load_state_dict({name: tensor + 1 for name, tensor in module.state_dict().items()})


def assign(module: nn.Module) -> None:
    module.load_state_dict({name: tensor + 1 for name, tensor in module.state_dict().items()}, assign=True)


@pytest.mark.parametrize("change", [step, load, assign])
def test_what_has_new_weights_is_built_again(program: Program, change: Callable[[nn.Module], None]) -> None:
    backend, x = Backend(), pixels()
    run = Built(program, backend)
    before = run(x)[0]
    change(program.module)
    assert torch.equal(run(x)[0], program.module(x)[0])
    assert not torch.equal(run(x)[0], before)
    assert len(backend.built) == 2


def test_what_has_another_precision_is_built_again(program: Program) -> None:
    for copies in (True, False):
        backend = Backend()
        run = Built(program, backend, copies=copies)
        run(pixels())
        program.module.double()
        assert run(pixels().double())[0].dtype == torch.float64
        program.module.float()
        assert len(backend.built) == 2


def test_what_shares_the_weights_is_not_built_again_for_other_values(program: Program) -> None:
    backend = Backend()
    run = Built(program, backend, copies=False)
    run(pixels())
    step(program.module)
    run(pixels())
    assert len(backend.built) == 1


def test_weights_made_for_inference_have_no_history(program: Program) -> None:
    with torch.inference_mode():
        program.module.load_state_dict(copy.deepcopy(program.module.state_dict()), assign=True)
    backend = Backend()
    run = Built(program, backend)
    run(pixels())
    run(pixels())
    assert len(backend.built) == 1


def test_a_copy_builds_the_copy_of_the_program(program: Program) -> None:
    backend, x = Backend(), pixels()
    run = Built(program, backend)
    before = run(x)[0]
    twin = copy.deepcopy(run)
    step(program.module)
    assert torch.equal(twin(x)[0], before)
    assert len(backend.built) == 2
