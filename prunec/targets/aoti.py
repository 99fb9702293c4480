"""A file of machine code: what Inductor makes ahead of time, with any number of images.

On a CPU the weights are frozen into it, in the order that the matrix products read them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunec import compat
from prunec.errors import TargetError, first_sentence
from prunec.ir.program import Program
from prunec.policy.lowering import MODES
from prunec.targets import Flat, device_of
from prunec.targets.building import Built, through_files
from prunec.targets.exported import ELSEWHERE, exported
from prunec.targets.inductor import missing_compiler
from prunec.targets.precision import FLOATS, Precision, halved


@dataclass(frozen=True)
class Aoti:
    """Compile the program ahead of time, for this kind of machine."""

    precision: Precision = "fp32"
    summary = "AOTInductor: machine code in a file, for PyTorch without prunec"
    needs = "a C++ compiler"
    modes = MODES
    precisions = FLOATS
    files = ("model.aoti.pt2",)
    only_data = False  # it is machine code

    def missing(self) -> str | None:
        """The same as of Inductor."""
        return missing_compiler()

    def unwritable(self) -> str | None:
        """The same."""
        return self.missing()

    def prepared(self, program: Program) -> Program:
        """Converted, where PyTorch runs it in half precision."""
        return halved(program, self.precision)

    def lower(self, program: Program) -> Flat:
        """The compiled program."""
        return Built(program, through_files(self)).now()

    def write(self, program: Program, folder: Path) -> None:
        """Compile, which takes a minute or so, and write the file."""
        found = exported(self.prepared(program))
        frozen = device_of(program).type == "cpu"
        try:
            compat.compile_ahead(found, folder / self.files[0], frozen=frozen)
        except Exception as error:
            raise TargetError(
                f"AOTInductor cannot compile this program: {first_sentence(error)}", remedy=ELSEWHERE
            ) from error

    def read(self, folder: Path) -> Flat:
        """What the file runs: code of this machine's, so only read files of your own."""
        run, in_spec = compat.load_ahead(folder / self.files[0])

        def flat(*inputs: Any) -> tuple[Any, ...]:
            args, kwargs = compat.tree_unflatten(list(inputs), in_spec)
            return tuple(compat.tree_leaves(run(*args, **kwargs)))

        return flat
