"""What is wrong before anything is rewritten is said so, and not that the rewriting failed."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunec
from tests.tiny import ViT, pixels


def transformed(model: nn.Module, example: Tensor | None = None) -> nn.Module:
    x = pixels() if example is None else example
    return prunec.transform(model.eval(), prunec.Policy.load("norm", keep=0.5, blocks=(1,)), example=x)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(value: float) -> None:
    model = ViT()
    with torch.no_grad():
        model.blocks[0].mlp.up.weight[0, 0] = value
    with pytest.raises(prunec.UsageError, match=r"weights hold NaN or infinity: blocks\.0\.mlp\.up\.weight"):
        transformed(model)


def test_an_example_that_is_no_number() -> None:
    x = pixels()
    x[1, 0, 0, 0] = float("nan")
    with pytest.raises(prunec.UsageError, match="the example holds NaN or infinity: pixels") as caught:
        transformed(ViT(), x)
    assert caught.value.where == "example="


def test_outputs_that_overflow() -> None:
    class Overflows(ViT):
        def forward(self, pixels: Tensor) -> Tensor:
            return super().forward(pixels) * 1e38 * 1e38

    with pytest.raises(prunec.UsageError, match="outputs on the example are not finite"):
        transformed(Overflows())


def test_infinity_that_no_output_sees_is_no_reason() -> None:
    class Bounded(ViT):
        def __init__(self) -> None:
            super().__init__()
            self.limit = nn.Parameter(torch.tensor(float("inf")))

        def forward(self, pixels: Tensor) -> Tensor:
            return torch.minimum(super().forward(pixels), self.limit)

    assert transformed(Bounded())(pixels(3)).isfinite().all()


def test_two_runs_that_differ() -> None:
    class Random(ViT):
        def forward(self, pixels: Tensor) -> Tensor:
            return super().forward(pixels * random.random())

    with pytest.raises(
        prunec.VerificationError, match="two runs of the model itself on the same input"
    ) as caught:
        transformed(Random())
    assert "depend on its inputs and weights alone" in (caught.value.remedy or "")


def test_dropout_in_eval_mode_is_said_to_be_unproven() -> None:
    class Drops(ViT):
        def forward(self, pixels: Tensor) -> Tensor:
            return super().forward(F.dropout(pixels, 0.5, training=True))

    notes = str(transformed(Drops()).program.stages[-1].notes)
    assert "not proven at its own counts: the model draws random numbers" in notes


def test_a_model_that_is_another_while_it_is_exported() -> None:
    class Two(ViT):
        def forward(self, pixels: Tensor) -> Tensor:
            return super().forward(pixels) * (2 if torch.compiler.is_exporting() else 1)

    with pytest.raises(prunec.VerificationError, match=r"the graph that torch\.export captured differs"):
        transformed(Two())
