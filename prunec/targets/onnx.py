"""A file for ONNX Runtime, and for whatever else reads ONNX, with any number of images."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.export import ExportedProgram

from prunec import compat
from prunec.errors import TargetError, first_sentence
from prunec.ir.program import Program
from prunec.ir.simpler import BY_RANK
from prunec.policy.lowering import MODES
from prunec.targets import Flat, device_of
from prunec.targets.building import Built, through_files
from prunec.targets.exported import ELSEWHERE, exported
from prunec.targets.precision import Precision, check_single

#: The version of ONNX's operators that is written: the oldest that PyTorch's exporter knows.
OPSET = 18
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Onnx:
    """Write the program by PyTorch's exporter and run it by ONNX Runtime, on the CPU."""

    precision: Precision = "fp32"
    ranks: bool = False  # sort by counting ranks, for engines whose TopK is slow or limited
    summary = "a file of ONNX, run by ONNX Runtime on the CPU"
    needs = "pip install 'prunec[onnx]'"
    modes = MODES
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "fp16", "int8")
    files = ("model.onnx", "model.onnx.data")
    only_data = True

    def missing(self) -> str | None:
        """Three packages."""
        return missing_packages(PACKAGES, self.needs)

    def unwritable(self) -> str | None:
        """The same packages."""
        return self.missing()

    def prepared(self, program: Program) -> Program:
        """As it is: the file is converted."""
        return program

    def lower(self, program: Program) -> Flat:
        """The program as ONNX Runtime runs it."""
        return Built(program, through_files(self)).now()

    def write(self, program: Program, folder: Path) -> None:
        """Write the file, and the weights beside it."""
        on_cpu(program, "onnx")
        found = exported(program)
        if self.ranks:
            found = compat.decomposed(found, BY_RANK)
        if self.precision == "fp32":
            written(found, folder / self.files[0])
            return
        check_single(program, self.precision)
        with tempfile.TemporaryDirectory() as place:
            single = Path(place) / self.files[0]
            written(found, single)
            CONVERSIONS[self.precision](single, folder / self.files[0])

    def read(self, folder: Path) -> Flat:
        """What the file runs, with as many threads as PyTorch has now."""
        return run_file(folder / self.files[0])


def written(found: ExportedProgram, file: Path) -> None:
    """Write a program in ONNX, and the weights beside it; TargetError where there is no ONNX for it."""
    try:
        made = compat.to_onnx(found, OPSET, TRANSLATIONS)
    except Exception as error:
        reason = error.__cause__ if isinstance(error.__cause__, Exception) else error  # names the operator
        raise TargetError(
            f"PyTorch has no ONNX for this program: {first_sentence(reason)}", remedy=ELSEWHERE
        ) from error
    made.save(file, external_data=True)


def run_file(file: Path) -> Flat:
    """What a file computes, by ONNX Runtime with as many threads as PyTorch has now."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(*flat: Any) -> tuple[Any, ...]:
        given = zip(names, tensors_of(flat), strict=True)
        found = session.run(None, {name: tensor.detach().numpy() for name, tensor in given})
        return tuple(map(torch.from_numpy, found))

    return run


def _sorted(self: Any, stable: Any = None, dim: int = -1, descending: bool = False) -> Any:
    """A stable sort: TopK of all, which gives the lower index first where values are equal, as it does."""
    from onnxscript import opset18 as op

    length = op.Slice(op.Shape(self), [dim], [dim + 1] if dim != -1 else [2**31 - 1])
    return op.TopK(self, length, axis=dim, largest=int(descending), sorted=1)


def _to_int8(single: Path, file: Path) -> None:
    """Weights of matrix products in int8, each row by its own scale; activations are quantised in each call.

    Seven bits of a weight are used: on CPUs without VNNI a sum of two products of eight would overflow.
    Attention, norms, scores and sorts stay in float.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with compat.quietly():
        quantize_dynamic(
            single,
            file,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
            extra_options={"MatMulConstBOnly": True},
        )


def _to_fp16(single: Path, file: Path) -> None:
    """Everything in float16 but inputs, outputs and what ONNX Runtime's tool leaves out, sorts among them."""
    import onnx
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    single_only = [*DEFAULT_OP_BLOCK_LIST, "IsInf"]  # ONNX has no other
    with compat.quietly():
        made = convert_float_to_float16(onnx.load(single), keep_io_types=True, op_block_list=single_only)
        onnx.save(made, file, save_as_external_data=True, location=Onnx.files[1])


#: How a file in single precision becomes one in another.
CONVERSIONS: Mapping[Precision, Callable[[Path, Path], None]] = {"int8": _to_int8, "fp16": _to_fp16}
#: What PyTorch's exporter does not know.
TRANSLATIONS = {torch.ops.aten.sort.stable: _sorted}


def missing_packages(names: tuple[str, ...], how: str) -> str | None:
    """Which of these packages are not installed; None where all are."""
    absent = [name for name in names if importlib.util.find_spec(name) is None]
    return f"{', '.join(absent)} not installed ({how})" if absent else None


def on_cpu(program: Program, target: str) -> None:
    """TargetError where the model is elsewhere."""
    device = device_of(program)
    if device.type != "cpu":
        raise TargetError(
            f"target {target} runs on the CPU, and the model is on {device}",
            remedy="move the model there first: model.cpu()",
        )


def tensors_of(flat: tuple[Any, ...]) -> list[Tensor]:
    """The tensors among flat inputs: what else there is stands in the file."""
    return [leaf for leaf in flat if isinstance(leaf, Tensor)]
