from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from prunec.verify.differences import (
    TOLERANCE,
    in_float32,
    one,
    relative_difference,
    seeded,
    tolerance_of,
    worst,
)
from tests.tiny import captured, run


def test_differences_are_relative_to_the_largest_value() -> None:
    expected = torch.tensor([1.0, -100.0])
    assert relative_difference(torch.tensor([2.0, -100.0]), expected) == pytest.approx(0.01)
    assert relative_difference(expected, expected) == 0.0
    assert relative_difference(expected[:1], expected) == float("inf")
    assert relative_difference(expected * float("nan"), expected) == float("inf")
    assert relative_difference(torch.empty(0, 3), torch.empty(0, 3)) == 0.0
    assert relative_difference(torch.zeros(2), torch.zeros(2)) == 0.0


def test_the_worst_output_counts_each_on_its_own_scale() -> None:
    expected = (torch.tensor([1.0, 2.0]), torch.tensor([1000.0]), None, 3)
    found = (torch.tensor([1.0, 2.2]), torch.tensor([1001.0]), None, 4)
    assert worst(found, expected) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="zip"):
        worst(found[:3], expected)


def test_random_numbers_repeat_themselves() -> None:
    assert torch.equal(seeded(torch.rand, (3,)), seeded(torch.rand, (3,)))


def test_of_a_batch_each_image_by_itself_and_what_is_no_batch_whole() -> None:
    x = torch.randn(3, 2)
    assert torch.equal(one(x, 1, 3), x[1:2])
    assert one(x, 1, 2) is x
    assert one(5, 1, 3) == 5
    scalar = torch.tensor(1.0)
    assert one(scalar, 0, 3) is scalar


@pytest.mark.parametrize(("kind", "allowed"), TOLERANCE.items())
def test_the_coarsest_precision_of_the_graph_decides(kind: torch.dtype, allowed: float) -> None:
    class Narrowed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.to(kind).exp().to(x.dtype)

    coarsest = max(allowed, TOLERANCE[torch.float32])
    assert tolerance_of(captured(Narrowed(), torch.randn(2, 4))) == coarsest


def test_in_single_precision_nothing_narrow_is_left_and_ties_stay() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
            self.other.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.other(self.one(x).float().to(torch.bfloat16))

    x = torch.randn(2, 4, dtype=torch.bfloat16)
    program = captured(Tied().to(torch.bfloat16), x)
    wide, same, (flat,) = in_float32(program, program, (x,))
    assert flat.dtype == torch.float32
    kinds = {parameter.dtype for parameter in wide.module.parameters()}
    assert kinds == {torch.float32}
    assert len(list(wide.module.parameters())) == 1
    assert next(wide.module.parameters()) is next(same.module.parameters())
    assert run(wide, flat)[0].dtype == torch.float32
    assert {parameter.dtype for parameter in program.module.parameters()} == {torch.bfloat16}
