"""A file that PyTorch runs by itself: torch.export.load("model.pt2").module()(images), without prunec."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prunec import compat
from prunec.ir.program import Program
from prunec.policy.lowering import MODES
from prunec.targets import Flat
from prunec.targets.building import Built, flat
from prunec.targets.exported import exported
from prunec.targets.precision import FLOATS, Precision, halved


@dataclass(frozen=True)
class Pt2:
    """Write the program as torch.export does, in operators of ATen."""

    precision: Precision = "fp32"
    summary = "a file of torch.export, for PyTorch without prunec"
    needs = ""
    modes = MODES
    precisions = FLOATS
    files = ("model.pt2",)
    only_data = False  # PyTorch unpickles parts of it

    def missing(self) -> str | None:
        """It comes with PyTorch."""
        return None

    def unwritable(self) -> str | None:
        """The same."""
        return self.missing()

    def prepared(self, program: Program) -> Program:
        """Converted, where PyTorch runs it in half precision."""
        return halved(program, self.precision)

    def lower(self, program: Program) -> Flat:
        """What the file would run, on the program's own weights; in half precision on copies."""

        def build(own: Program) -> Flat:
            return flat(exported(self.prepared(own)))

        return Built(program, build, copies=self.precision != "fp32").now()

    def write(self, program: Program, folder: Path) -> None:
        """Write the file."""
        compat.save_exported(exported(self.prepared(program)), folder / self.files[0])

    def read(self, folder: Path) -> Flat:
        """What the file runs, whatever becomes of the program that it was written from."""
        return flat(compat.load_exported(folder / self.files[0]))
