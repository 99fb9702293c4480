"""Regions of a model's code that run under torch.autocast, as torch.export writes them down.

    with torch.autocast("cpu", torch.bfloat16):       wrap_with_autocast("cpu", bfloat16, True, None, part, x)
        y = self.part(x)

A region is opened by making the program functional: each conversion becomes an operator of the one graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from prunec import compat
from prunec.ir.graph import op, operand, place


def is_region(node: fx.Node) -> bool:
    """Whether a node runs a part of the graph under autocast."""
    return op(node) == compat.AUTOCAST_REGION


def idle_autocast(exported: ExportedProgram, inputs: Sequence[Any]) -> str:
    """What to say of an autocast of a device on which no input is; empty where there is none."""
    here = {leaf.device.type for leaf in inputs if isinstance(leaf, torch.Tensor)}
    for node in filter(is_region, exported.graph.nodes):
        device, _, enabled = node.args[:3]
        if enabled and device not in here:
            body = exported.graph_module.get_submodule(str(operand(node, 4).target))
            assert isinstance(body, fx.GraphModule)
            first = next(each for each in body.graph.nodes if each.op == "call_function")
            return (
                f"torch.autocast({device!r}) does nothing to an example on {', '.join(sorted(here))}, so the "
                f"captured program has nothing of it, on any device ({place(first)})"
            )
    return ""
