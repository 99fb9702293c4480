from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from prunec.ir import graph
from prunec.probing.units import Unit, unit_of
from tests.tiny import captured


def unit(function: Callable[..., Any], *inputs: Tensor) -> tuple[Unit, fx.Node]:
    class Call(nn.Module):
        def forward(self, *parts: Tensor) -> Any:
            return function(*parts)

    program = captured(Call(), *inputs)
    node = graph.output_node(program.graph).all_input_nodes[0]
    return unit_of(node), node


X = torch.randn(2, 6, 4)


def test_an_operator_is_its_own_call() -> None:
    found, node = unit(lambda x, y: x * y, X, X + 1)
    assert found.node is found.call is node
    assert found.element is None
    assert len(found.operands) == 2
    assert found.target is node.target


@pytest.mark.parametrize("element", [0, 1])
def test_of_a_tuple_the_call_is_the_one_that_made_it(element: int) -> None:
    found, node = (
        unit(lambda x: x.max(dim=1)[element].float(), X) if element else unit(lambda x: x.max(dim=1)[0], X)
    )
    if element:  # behind the change of precision
        found = unit_of(node.all_input_nodes[0])
    assert found.element == element
    assert graph.op(found.call) == "max"
    assert found.call is not found.node
    assert [operand.op for operand in found.operands] == ["placeholder"]


def test_an_operand_of_whole_or_truth_numbers_is_a_mask() -> None:
    assert not unit(lambda x: x.exp(), X)[0].is_masked
    assert unit(lambda x, kept: x.masked_fill(kept, 0.0), X, X > 0)[0].is_masked
