"""Operators by themselves, each the only call of a small program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from prunec.ir import graph
from tests.tiny import normalised


class Call(nn.Module):
    """A function of inputs, and of a layer's weights."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.weight, self.bias = nn.Parameter(torch.randn(30, 12)), nn.Parameter(torch.randn(30))

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


def last(function: Callable[..., Any], *inputs: Tensor) -> fx.Node:
    """The node that makes the output of a function that is one operator."""
    program = normalised(Call(function), *inputs)
    return graph.output_node(program.graph).all_input_nodes[0]
