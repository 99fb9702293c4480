"""A file that PyTorch runs by itself: torch.export.load("model.pt2").module()(images), without prunec."""

from __future__ import annotations

from pathlib import Path

from prunec import compat
from prunec.ir.program import Program
from prunec.policy.lowering import MODES
from prunec.policy.modes import ModeName
from prunec.targets import Flat
from prunec.targets.building import Built, flat
from prunec.targets.exported import exported


class Pt2:
    """Write the program as torch.export does, in operators of ATen."""

    summary = "a file of torch.export, for PyTorch without prunec"
    needs = ""
    modes: tuple[ModeName, ...] = MODES
    files = ("model.pt2",)
    only_data = False  # PyTorch unpickles parts of it

    def missing(self) -> str | None:
        """It comes with PyTorch."""
        return None

    def lower(self, program: Program) -> Flat:
        """What the file would run, on the program's own weights."""
        return Built(program, lambda own: flat(exported(own)), copies=False).now()

    def write(self, program: Program, folder: Path) -> None:
        """Write the file."""
        compat.save_exported(exported(program), folder / self.files[0])

    def read(self, folder: Path) -> Flat:
        """What the file runs, whatever becomes of the program that it was written from."""
        return flat(compat.load_exported(folder / self.files[0]))
