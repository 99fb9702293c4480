"""A file of ONNX that TensorRT takes as it is, and its engine, where the package tensorrt is installed.

    trtexec --onnx=model.tensorrt.onnx --saveEngine=model.plan

Every size in it is a number, the batch too: one static profile. Rows are gathered by Gather over one long
table, where GatherElements has no good kernel, and merged by products, where scatters that add are not to be
relied on.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from prunec import compat
from prunec.errors import TargetError
from prunec.ir.program import Program
from prunec.ir.simpler import BY_RANK, BY_ROWS
from prunec.policy.modes import ModeName
from prunec.targets import Flat
from prunec.targets.exported import ELSEWHERE, exported, same_counts
from prunec.targets.onnx import OPSET, missing_packages, on_cpu, run_file, written
from prunec.targets.precision import Precision

#: What TensorRT's TopK takes at most; longer streams are sorted by ranks.
MOST = 3840
#: Kinds of nodes that must not be in the file.
AVOIDED = ("GatherElements", "GatherND", "NonZero", "Loop", "If")


@dataclass(frozen=True)
class TensorRt:
    """Write the file; prunec does not run it."""

    precision: Precision = "fp32"
    batch: int = 1
    summary = "a file for TensorRT, with a fixed batch; written, not run"
    needs = "pip install 'prunec[tensorrt]'"
    modes: ClassVar[tuple[ModeName, ...]] = ("static",)
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32",)
    files = ("model.tensorrt.onnx", "model.tensorrt.onnx.data", "model.plan")
    only_data = False  # an engine is machine code

    def missing(self) -> str | None:
        """It never runs here."""
        return "prunec writes its file, and trtexec makes the engine of it"

    def unwritable(self) -> str | None:
        """Two packages."""
        return missing_packages(("onnx", "onnxscript"), self.needs)

    def with_batch(self, batch: int) -> TensorRt:
        """The same, for so many images at a time."""
        return replace(self, batch=batch)

    def prepared(self, program: Program) -> Program:
        """As it is: engines are made in other precisions by TensorRT's own flags."""
        return program

    def lower(self, program: Program) -> Flat:
        """TargetError: it is for another machine."""
        raise TargetError(f"target tensorrt does not run here: {self.missing()}", remedy=ELSEWHERE)

    def write(self, program: Program, folder: Path) -> None:
        """Write the file, and the engine for this machine's GPU where TensorRT is installed."""
        on_cpu(program, "tensorrt")
        same_counts(program, "TensorRT")
        found = compat.decomposed(exported(program, self.batch), BY_ROWS)
        file = folder / self.files[0]
        written(found, file)
        if any(count > MOST for count in _counts(file)):
            written(compat.decomposed(found, BY_RANK), file)
        check(file)
        if importlib.util.find_spec("tensorrt"):
            (folder / self.files[2]).write_bytes(_engine(file))

    def read(self, folder: Path) -> Flat:
        """What the file computes, by ONNX Runtime on the CPU."""
        return run_file(folder / self.files[0])


def _counts(file: Path) -> list[int]:
    """How many values each TopK of a file gives, where that is a number in it."""
    import onnx

    graph = onnx.load(file).graph
    known = {each.name: each for each in graph.initializer}
    given = [node.input[1] for node in graph.node if node.op_type == "TopK"]
    return [int(onnx.numpy_helper.to_array(known[name]).item()) for name in given if name in known]


def check(file: Path) -> None:
    """TargetError where a file is not what TensorRT takes: kinds of nodes, or sizes that are no numbers."""
    import onnx

    onnx.checker.check_model(str(file))
    graph = onnx.load(file, load_external_data=False).graph
    known = {each.name for each in graph.initializer}
    faults = {node.op_type for node in graph.node if node.op_type in AVOIDED}
    if any(node.op_type == "TopK" and node.input[1] not in known for node in graph.node):
        faults.add("TopK of a count that is computed")
    for value in (*graph.input, *graph.output):
        if any(not each.HasField("dim_value") for each in value.type.tensor_type.shape.dim):
            faults.add(f"a size of {value.name} that is no number")
    if faults:
        raise TargetError(
            f"TensorRT's file would hold {', '.join(sorted(faults))}",
            where=f"{file.name}, opset {OPSET}",
            remedy="choose target onnx or aoti, or another policy",
        )


def _engine(file: Path) -> bytes:
    """The file as TensorRT builds it for the GPU of this machine."""
    import tensorrt

    logger: Any = tensorrt.Logger(tensorrt.Logger.WARNING)
    builder = tensorrt.Builder(logger)
    network = builder.create_network(0)
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(file)):
        said = "; ".join(str(parser.get_error(place)) for place in range(parser.num_errors))
        raise TargetError(f"TensorRT does not take the file: {said}", where=file.name, remedy=ELSEWHERE)
    made = builder.build_serialized_network(network, builder.create_builder_config())
    if made is None:
        raise TargetError("TensorRT built no engine", where=file.name, remedy="see what it said above")
    return bytes(made)
