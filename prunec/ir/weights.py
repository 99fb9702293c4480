"""Where a transformed model's weights lie: parts that hold tensors and compute nothing.

    fast.blocks[0].attn.qkv     LinearWeights, with `weight` and `bias`, which the graph reads

Libraries that quantise look for nn.Linear. They find these, and are told that the graph cannot read integers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from prunec.errors import UsageError

#: What to do instead.
AFTERWARDS = "let prunec do it after pruning: --precision int8, in Python Measure(precision='int8')"


class LinearWeights(nn.Linear):
    """The weight and bias of a linear layer, read by a graph."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, Tensor) and (kind := quantised(value)):
            raise UsageError(
                f"a transformed model cannot be quantised ({kind}): its graph calls PyTorch's own operators",
                where=f"the {name} of a linear layer",
                remedy=AFTERWARDS,
            )
        super().__setattr__(name, value)


def quantised(tensor: Tensor) -> str:
    """The type of a tensor of another library that stands for numbers it does not hold; empty for others."""
    for kind in (type(tensor), type(tensor.data)):  # a parameter is called one, whatever it holds
        own = kind.__torch_dispatch__ is not Tensor.__torch_dispatch__
        if own and not kind.__module__.startswith("torch."):
            return kind.__name__
    return ""


def named_linear(module: fx.GraphModule) -> None:
    """Let parts whose weight a linear layer of the graph reads be `LinearWeights`."""
    for node in module.graph.nodes:
        if node.op != "call_function" or node.target is not torch.ops.aten.linear.default:
            continue
        weight = node.args[1]
        owner, _, name = str(weight.target).rpartition(".") if isinstance(weight, fx.Node) else ("", "", "")
        if name != "weight" or weight.op != "get_attr":
            continue
        part = module.get_submodule(owner)
        if type(part) is nn.Module:
            rows, columns = part.get_parameter("weight").shape
            vars(part).update(out_features=rows, in_features=columns)
            part.__class__ = LinearWeights
            part._parameters.setdefault("bias", None)


def value_at(module: nn.Module, path: str) -> Any:
    """What a module holds at a dotted path."""
    value: Any = module
    for name in path.split("."):
        value = getattr(value, name)
    return value
