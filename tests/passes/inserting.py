"""Sites put into a small model."""

from __future__ import annotations

from typing import Any

import torch

from prunec.ir import graph
from prunec.ir.program import Program, Recognised
from prunec.passes import run_passes
from prunec.passes.insert_sites import InsertSites
from tests.tiny import planned


def inserted(dense: Recognised, **choices: Any) -> Program:
    return run_passes((InsertSites(),), planned(dense, **choices))


def site(program: Program, number: int = 0) -> dict[str, torch.fx.Node]:
    nodes = graph.by_name(program.graph)
    names = ("score", "select", "gather", "fuse")
    return {name: nodes[f"{name}_{number}"] for name in names if f"{name}_{number}" in nodes}
