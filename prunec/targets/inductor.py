"""torch.compile with Inductor, on the CPU and on CUDA by the same code.

One compilation for all batches of two or more: the batch dimension is marked dynamic. A batch of one is
compiled by itself: PyTorch takes a size of one for a constant.

A program is one graph (fullgraph=True). On a CPU, one in which images keep different numbers of tokens is
compiled region by region (prunec/ir/regions.py): blocks that are alike once, and what chooses tokens not at
all. That takes half of the time, and each region costs a call.
"""

from __future__ import annotations

import copy
import shutil
from dataclasses import dataclass
from typing import Any

import torch

from prunec import compat, ops
from prunec.ir.program import Planned, Program
from prunec.policy.lowering import MODES
from prunec.targets import Flat, device_of
from prunec.targets.building import Built
from prunec.targets.precision import FLOATS, Precision, halved
from prunec.targets.regional import Regional


@dataclass(frozen=True)
class Inductor:
    """Compile the graph.

    Args:
        dynamic_batch: whether one compilation serves every batch of two or more; else each has its own.
        regional: whether to compile it region by region; None: on a CPU, where images keep different numbers.
        precision: in which it runs.
    """

    dynamic_batch: bool = True
    regional: bool | None = None
    precision: Precision = "fp32"
    summary = "torch.compile with Inductor, CPU and CUDA"
    needs = "a C++ compiler"
    modes = MODES
    precisions = FLOATS

    def missing(self) -> str | None:
        """A C++ compiler is needed for CPU code."""
        return missing_compiler()

    def prepared(self, program: Program) -> Program:
        """Converted, where PyTorch runs it in half precision."""
        return halved(program, self.precision)

    def lower(self, program: Program) -> Flat:
        """The compiled program."""
        if self.precision == "fp32":
            return self._lower(program)
        return Built(program, lambda own: self._lower(self.prepared(own))).now()

    def _lower(self, program: Program) -> Flat:
        regional = self.regional
        if regional is None:
            ragged = isinstance(program, Planned) and program.plan.rules.ragged
            regional = ragged and device_of(program).type == "cpu"
        if regional:
            return Regional(program, self.compiled, dynamic=self.dynamic_batch)
        return _Compiled(self, program)

    def compiled(self, call: Flat, *, ragged: bool = False) -> Flat:
        """One graph, compiled when it is called; `ragged`: a length in it is read off a tensor."""
        # Such a length counts as zero when Inductor plans memory: it would hold every buffer for as long as
        # another could use it.
        options: dict[str, Any] | None = {"allow_buffer_reuse": False} if ragged else None
        dynamic = None if self.dynamic_batch else False
        return torch.compile(call, fullgraph=True, dynamic=dynamic, options=options)


def missing_compiler() -> str | None:
    """What to do where there is no C++ compiler; None where there is one."""
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        return "no C++ compiler was found (Debian, Ubuntu: apt-get install g++)"
    return None


class _Compiled:
    """One program as one graph, compiled; a copy of it compiles the copy of the program."""

    def __init__(self, target: Inductor, program: Program) -> None:
        self.target, self.program = target, program
        ragged = any(node.target in (ops.pack, ops.kept_rows) for node in program.graph.nodes)
        self.run = target.compiled(program.module, ragged=ragged)
        batch = program.interface.batch
        self.batched = [
            isinstance(leaf, torch.Tensor) and leaf.dim() > 0 and leaf.shape[0] == batch
            for leaf in program.interface.example
        ]

    def __call__(self, *flat: Any) -> Any:
        if self.target.dynamic_batch:
            for leaf, dynamic in zip(flat, self.batched, strict=True):
                if dynamic and leaf.shape[0] > 1:
                    compat.mark_dynamic(leaf)
        with compat.scalar_outputs():
            return self.run(*flat)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Compiled:
        return _Compiled(self.target, copy.deepcopy(self.program, memo))
