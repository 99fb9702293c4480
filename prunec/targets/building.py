"""Programs on a backend that takes them as they are now: built again where they have changed since."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram

from prunec import compat
from prunec.ir.program import Program
from prunec.targets import FileTarget, Flat


class Built:
    """A program as its backend runs it, a callable on flat inputs.

    A backend that copies the weights (`copies`) would go on with old ones where the program's are trained,
    loaded or moved. So they are looked at in each call, which takes microseconds, and where they have changed
    it is built again. What is written through `tensor.data` PyTorch does not count as a change.
    """

    def __init__(self, program: Program, build: Callable[[Program], Flat], *, copies: bool = True) -> None:
        self.program, self.build, self.copies = program, build, copies
        self.weights: Any = None
        self.runs: Flat | None = None

    def now(self) -> Built:
        """The same, built already."""
        self._current()
        return self

    def __call__(self, *flat: Any) -> Any:
        """The flat outputs."""
        return self._current()(*flat)

    def _current(self) -> Flat:
        weights = self._weights()
        if self.runs is None or weights != self.weights:
            self.runs, self.weights = self.build(self.program), weights
        return self.runs

    def _weights(self) -> list[Any]:
        """What tells the weights of now from those of before."""
        module = self.program.module
        tensors = [*module.parameters(), *module.buffers()]
        return [_identity(tensor, self.copies) for tensor in tensors]

    def __deepcopy__(self, memo: dict[int, Any]) -> Built:
        return Built(copy.deepcopy(self.program, memo), self.build, copies=self.copies)


def _identity(tensor: Tensor, with_values: bool) -> tuple[Any, ...]:
    version = tensor._version if with_values and not tensor.is_inference() else 0
    return id(tensor), tensor.dtype, tensor.data_ptr(), version


def through_files(target: FileTarget) -> Callable[[Program], Flat]:
    """What builds a program by writing the target's files, and reading them again."""

    def build(program: Program) -> Flat:
        with tempfile.TemporaryDirectory() as folder:  # AOTInductor unpacks elsewhere, others read it whole
            target.write(program, Path(folder))
            return target.read(Path(folder))

    return build


def flat(exported: ExportedProgram) -> Flat:
    """An exported program as a callable on flat inputs that gives flat outputs."""
    module, in_spec = compat.unlifted(exported), exported.call_spec.in_spec

    def run(*inputs: Any) -> tuple[Any, ...]:
        args, kwargs = compat.tree_unflatten(list(inputs), in_spec)
        return tuple(compat.tree_leaves(module(*args, **kwargs)))

    return run
