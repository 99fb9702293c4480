"""Files for OpenVINO, which runs them on CPUs (and elsewhere), with any number of images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from prunec.errors import TargetError, first_sentence
from prunec.ir.program import Program
from prunec.policy.modes import ModeName
from prunec.targets import Flat
from prunec.targets.building import Built, through_files
from prunec.targets.exported import ELSEWHERE, exported, same_counts
from prunec.targets.onnx import missing_packages, on_cpu, tensors_of
from prunec.targets.precision import FLOATS, Precision, check_single

#: What OpenVINO calls them: as hints, and as what a device can do.
NAMES = {"fp32": ("f32", "FP32"), "bf16": ("bf16", "BF16"), "fp16": ("f16", "FP16")}


@dataclass(frozen=True)
class OpenVino:
    """Convert the program and run it on the CPU: in single precision, or in half where the CPU has it.

    Only programs that keep as many tokens of every image: others it refuses, or gives other numbers for.
    """

    precision: Precision = "fp32"
    summary = "OpenVINO's two files, run on the CPU"
    needs = "pip install 'prunec[openvino]'"
    modes: ClassVar[tuple[ModeName, ...]] = ("static",)
    precisions = FLOATS
    files = ("model.xml", "model.bin")
    only_data = True

    def missing(self) -> str | None:
        """One package, and instructions for a precision."""
        absent = missing_packages(("openvino",), self.needs)
        if absent or self.precision == "fp32":
            return absent
        import openvino

        can = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        has = NAMES[self.precision][1] in can
        return None if has else f"OpenVINO has no {self.precision} on this CPU, which does {', '.join(can)}"

    def unwritable(self) -> str | None:
        """One package."""
        return missing_packages(("openvino",), self.needs)

    def prepared(self, program: Program) -> Program:
        """As it is: the file is converted."""
        return program

    def lower(self, program: Program) -> Flat:
        """The program as OpenVINO runs it."""
        return Built(program, through_files(self)).now()

    def write(self, program: Program, folder: Path) -> None:
        """Write both files."""
        on_cpu(program, "openvino")
        if self.precision != "fp32":
            check_single(program, self.precision)
        same_counts(program, "OpenVINO")
        import openvino

        found = exported(program)
        try:
            converted = openvino.convert_model(found)
        except Exception as error:
            raise TargetError(
                f"OpenVINO does not take this program: {first_sentence(error)}", remedy=ELSEWHERE
            ) from error
        openvino.save_model(converted, folder / self.files[0], compress_to_fp16=False)

    def read(self, folder: Path) -> Flat:
        """What the files run, with as many threads as PyTorch has now."""
        import openvino

        model = openvino.Core().read_model(folder / self.files[0])
        options = {
            "INFERENCE_PRECISION_HINT": NAMES[self.precision][0],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        compiled = openvino.compile_model(model, "CPU", options)

        def run(*flat: Any) -> tuple[Any, ...]:
            found = compiled([tensor.detach().numpy() for tensor in tensors_of(flat)])
            return tuple(torch.from_numpy(found[place].copy()) for place in range(len(compiled.outputs)))

        return run
