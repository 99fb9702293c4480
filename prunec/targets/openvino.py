"""Files for OpenVINO, which runs them on CPUs (and elsewhere), with any number of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from prunec.errors import TargetError, first_sentence
from prunec.ir.program import Planned, Program
from prunec.policy.modes import ModeName
from prunec.targets import Flat
from prunec.targets.building import Built, through_files
from prunec.targets.exported import ELSEWHERE, exported
from prunec.targets.onnx import missing_packages, on_cpu, tensors_of


class OpenVino:
    """Convert the program and run it on the CPU, in the precision that it has.

    Only programs that keep as many tokens of every image: others it refuses, or gives other numbers for.
    """

    summary = "OpenVINO's two files, run on the CPU"
    needs = "pip install 'prunec[openvino]'"
    modes: tuple[ModeName, ...] = ("static",)
    files = ("model.xml", "model.bin")
    only_data = True

    def missing(self) -> str | None:
        """One package."""
        return missing_packages(("openvino",), self.needs)

    def lower(self, program: Program) -> Flat:
        """The program as OpenVINO runs it."""
        return Built(program, through_files(self)).now()

    def write(self, program: Program, folder: Path) -> None:
        """Write both files."""
        on_cpu(program, "openvino")
        if isinstance(program, Planned) and program.plan.rules.ragged:
            raise TargetError(
                "OpenVINO does not run programs in which images keep different numbers of tokens",
                where=f"policy {program.plan.policy}, mode {program.plan.lowering}",
                remedy="choose target onnx, aoti or inductor, or a policy that keeps as many of every image",
            )
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
        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        compiled = openvino.compile_model(model, "CPU", options)

        def run(*flat: Any) -> tuple[Any, ...]:
            found = compiled([tensor.detach().numpy() for tensor in tensors_of(flat)])
            return tuple(torch.from_numpy(found[place].copy()) for place in range(len(compiled.outputs)))

        return run
