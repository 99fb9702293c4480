"""Names, sizes and precision of what a model's file takes and gives, read off the file."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunec.artefact.manifest import MANIFEST, Manifest
from prunec.artefact.spec import Spec
from prunec.errors import PruneError, SourceError, first_sentence

#: Triton's words for precisions, by PyTorch's.
KINDS: Mapping[str, str] = {
    "float32": "FP32",
    "float16": "FP16",
    "bfloat16": "BF16",
    "float64": "FP64",
    "bool": "BOOL",
    **{f"int{bits}": f"INT{bits}" for bits in (8, 16, 32, 64)},
    "uint8": "UINT8",
}


@dataclass(frozen=True)
class Tensor:
    """One input or output."""

    name: str
    sizes: tuple[int | None, ...]  # None: any
    kind: str  # Triton's word


@dataclass(frozen=True)
class Signature:
    """What a file takes and gives."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @property
    def batched(self) -> bool:
        """Whether all begin with one size that may be any: images."""
        every = (*self.inputs, *self.outputs)
        return all(tensor.sizes[:1] == (None,) for tensor in every)


def of_onnx(path: Path) -> Signature:
    """Of a file of ONNX; its weights are not read.

    Raises:
        PruneError: the package onnx is not installed.
        SourceError: the file is none of ONNX, or has a precision that Triton has no word for.
    """
    if importlib.util.find_spec("onnx") is None:
        raise PruneError("the package onnx is not installed", remedy="pip install 'prunec[onnx]'")
    import onnx

    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as error:
        raise SourceError(
            f"{path} is no readable file of ONNX: {first_sentence(error)}",
            remedy="write the artefact again",
        ) from error
    numpy_name = onnx.helper.tensor_dtype_to_np_dtype

    def tensor(value: Any) -> Tensor:
        kind = value.type.tensor_type
        sizes = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)
        return Tensor(value.name, sizes, kind_of(str(numpy_name(kind.elem_type)), path))

    weights = {each.name for each in graph.initializer}
    inputs = tuple(tensor(value) for value in graph.input if value.name not in weights)
    return Signature(inputs, tuple(map(tensor, graph.output)))


def of_aoti(folder: Path) -> Signature:
    """Of the file of AOTInductor in an artefact: sizes are the spec's, and Triton numbers the names."""
    spec: Spec | None = Manifest.read(folder / MANIFEST).spec
    if spec is None:
        raise SourceError(
            f"{folder} does not say what its model takes: it was made by an older prunec",
            remedy="write it again with this version",
        )
    taken = [each for each in spec.inputs if each.sizes is not None]
    inputs = tuple(
        Tensor(f"INPUT__{number}", _free(each.sizes or (), spec), kind_of(each.dtype, folder))
        for number, each in enumerate(taken)
    )
    precision = next(
        (each.dtype for each in taken if each.name == spec.pixels and "float" in each.dtype), "float32"
    )
    outputs = tuple(
        Tensor(f"OUTPUT__{number}", _free(each.sizes, spec), kind_of(precision, folder))
        for number, each in enumerate(spec.outputs)
    )
    return Signature(inputs, outputs)


def _free(sizes: tuple[int | None, ...], spec: Spec) -> tuple[int | None, ...]:
    """Sizes in which the batch is any number, or the one that the model was captured with."""
    return tuple(spec.batch if size is None else size for size in sizes)


def kind_of(precision: str, where: Path) -> str:
    """Triton's word for a precision; SourceError where it has none."""
    if precision not in KINDS:
        raise SourceError(
            f"{where} takes or gives {precision}, which Triton has no word for",
            remedy=f"precisions that it has: {', '.join(KINDS)}",
        )
    return KINDS[precision]
