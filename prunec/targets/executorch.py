"""A file for ExecuTorch, PyTorch on phones and boards: with kernels of XNNPACK, and a fixed batch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from prunec import compat
from prunec.errors import TargetError, first_sentence
from prunec.ir.interface import images_in
from prunec.ir.program import Program
from prunec.ir.simpler import BY_RANK
from prunec.policy.modes import ModeName
from prunec.targets import Flat
from prunec.targets.building import Built, through_files
from prunec.targets.exported import ELSEWHERE, exported, same_counts
from prunec.targets.onnx import missing_packages, on_cpu, tensors_of
from prunec.targets.precision import Precision


@dataclass(frozen=True)
class ExecuTorch:
    """Lower the program for XNNPACK, and run it by ExecuTorch's own runtime."""

    precision: Precision = "fp32"
    batch: int = 1
    summary = "a file for ExecuTorch (phones, boards), with a fixed batch"
    needs = "pip install 'prunec[executorch]'"
    modes: ClassVar[tuple[ModeName, ...]] = ("static",)
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32",)
    files = ("model.pte",)
    only_data = False  # it is a program for a runtime that trusts it

    def missing(self) -> str | None:
        """One package."""
        return missing_packages(("executorch",), self.needs)

    def unwritable(self) -> str | None:
        """The same."""
        return self.missing()

    def with_batch(self, batch: int) -> ExecuTorch:
        """The same, for so many images at a time."""
        return replace(self, batch=batch)

    def prepared(self, program: Program) -> Program:
        """As it is."""
        return program

    def lower(self, program: Program) -> Flat:
        """The program as ExecuTorch runs it, built for each batch that comes."""
        return Built(program, lambda own: _EachBatch(self, own)).now()

    def write(self, program: Program, folder: Path) -> None:
        """Write the file."""
        on_cpu(program, "executorch")
        same_counts(program, "ExecuTorch")
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        found = compat.decomposed(exported(program, self.batch), BY_RANK)
        try:
            with compat.quietly():
                made = to_edge_transform_and_lower(found, partitioner=[XnnpackPartitioner()]).to_executorch()
        except Exception as error:
            raise TargetError(
                f"ExecuTorch does not take this program: {first_sentence(error)}", remedy=ELSEWHERE
            ) from error
        (folder / self.files[0]).write_bytes(bytes(made.buffer))

    def read(self, folder: Path) -> Flat:
        """What the file runs."""
        from executorch.runtime import Runtime

        content = (folder / self.files[0]).read_bytes()
        method = Runtime.get().load_program(content).load_method("forward")

        def run(*flat: Any) -> tuple[Any, ...]:
            found = method.execute([tensor.detach().contiguous() for tensor in tensors_of(flat)])
            return tuple(each.clone() for each in found)  # the runtime's memory is used again

        return run


@dataclass
class _EachBatch:
    """A program that is built for each batch by itself, when that first comes."""

    target: ExecuTorch
    program: Program
    runs: dict[int, Flat] = field(default_factory=dict)

    def __call__(self, *flat: Any) -> Any:
        batch = images_in(flat)
        if batch not in self.runs:
            self.runs[batch] = through_files(self.target.with_batch(batch))(self.program)
        return self.runs[batch](*flat)
