"""A model repository of Triton Inference Server, out of an artefact.

    REPOSITORY/NAME/config.pbtxt     inputs, outputs, how requests are batched
    REPOSITORY/NAME/labels.txt       names of the classes, where the artefact knows them
    REPOSITORY/NAME/1/model.onnx     the model, as the artefact has it

Triton runs ONNX by its backend onnxruntime, and AOTInductor's files by its backend pytorch (platform
torch_aoti). Names and sizes of an ONNX file's inputs and outputs are read off the file itself.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunec.artefact import artefact
from prunec.errors import SourceError, UsageError
from prunec.serving.signature import Signature, Tensor, of_aoti, of_onnx
from prunec.targets.aoti import Aoti
from prunec.targets.onnx import Onnx

VERSION, CONFIG, LABELS = "1", "config.pbtxt", "labels.txt"
LABELS_OF_ARTEFACT = "labels.json"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Format:
    """A kind of file that Triton runs."""

    file: str  # in an artefact
    beside: tuple[str, ...]  # what it needs there
    called: str  # in the repository
    platform: str
    backend: str


#: By the name of the target that writes the file.
FORMATS: Mapping[str, Format] = {
    "onnx": Format(Onnx.files[0], Onnx.files[1:], "model.onnx", "onnxruntime_onnx", "onnxruntime"),
    "aoti": Format(Aoti.files[0], Aoti.files[1:], "model.pt2", "torch_aoti", "pytorch"),
}


@dataclass(frozen=True)
class Batching:
    """How Triton puts requests together."""

    most: int = 32  # images in a batch
    delay: int = 2000  # microseconds that a request waits for others, at most


def write(folder: Path, repository: Path, name: str, batching: Batching, wanted: str | None = None) -> Path:
    """Write a repository's model; an older one of the same name is an error.

    Args:
        folder: an artefact with a file of one of the formats.
        repository: where models lie, each in a folder of its own.
        name: of the model, by which clients ask for it.
        batching: how requests are put together.
        wanted: the format; None: the first that the artefact has.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no name for a model of Triton",
            where="--name",
            remedy="use letters, digits, underscores, dots and dashes",
        )
    place = repository / name
    if place.exists():
        raise UsageError(
            f"{place} exists already", remedy="choose another --name or repository, or remove that folder"
        )
    folder, manifest = artefact.opened(folder)
    chosen = _format(folder, wanted)
    found = FORMATS[chosen]
    for file in (found.file, *found.beside, LABELS_OF_ARTEFACT):
        artefact.check(folder, manifest, file)
    signature = of_onnx(folder / found.file) if chosen == "onnx" else of_aoti(folder)
    labels = _labels(folder)
    text = config(name, found, signature, batching, labels)
    repository.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".prunec.", dir=repository) as aside:  # whole, or not at all
        made = Path(aside) / name
        version = made / VERSION
        version.mkdir(parents=True)
        shutil.copyfile(folder / found.file, version / found.called)
        for other in found.beside:
            if (folder / other).exists():
                shutil.copyfile(folder / other, version / other)
        if labels:
            (made / LABELS).write_text("\n".join(labels) + "\n", encoding="utf-8")
        (made / CONFIG).write_text(text, encoding="utf-8")
        made.rename(place)
    return place


def _format(folder: Path, wanted: str | None) -> str:
    """The format of a file that is there."""
    there = [name for name, each in FORMATS.items() if (folder / each.file).is_file()]
    if wanted is not None and wanted not in FORMATS:
        raise UsageError(
            f"Triton's repositories are written of {', '.join(FORMATS)}, not of {wanted!r}", where="--engine"
        )
    if not there or (wanted is not None and wanted not in there):
        files = " or ".join(each.file for name, each in FORMATS.items() if wanted in (None, name))
        raise SourceError(
            f"{folder} has no {files}",
            remedy=f"make the artefact with `prunec optimize ... --target {wanted or 'onnx'} -o {folder}`",
        )
    return wanted or there[0]


def config(
    name: str, found: Format, signature: Signature, batching: Batching, labels: Sequence[str] = ()
) -> str:
    """The text of config.pbtxt.

    A model that takes any number of images is batched: Triton then adds the batch to all sizes itself. One
    that takes a fixed number gets requests one by one, with the batch among the sizes.
    """
    lines = [f'name: "{name}"', f'platform: "{found.platform}"', f'backend: "{found.backend}"']
    lines.append(f"max_batch_size: {batching.most if signature.batched else 0}")
    for word, tensors in (("input", signature.inputs), ("output", signature.outputs)):
        blocks = [_tensor(each, signature.batched, labels if word == "output" else ()) for each in tensors]
        lines.append(f"{word} [\n" + ",\n".join(blocks) + "\n]")
    if signature.batched:
        waits = f"max_queue_delay_microseconds: {batching.delay}"
        lines.append(f"dynamic_batching {{\n  {waits}\n}}")
    return "\n".join(lines) + "\n"


def _tensor(tensor: Tensor, batched: bool, labels: Sequence[str]) -> str:
    sizes = tensor.sizes[1:] if batched else tensor.sizes
    dims = ", ".join(str(-1 if size is None else size) for size in sizes)
    lines = [f'name: "{tensor.name}"', f"data_type: TYPE_{tensor.kind}", f"dims: [ {dims} ]"]
    if labels and tensor.sizes[-1] == len(labels) and len(tensor.sizes) == 2:
        lines.append(f'label_filename: "{LABELS}"')
    return "  {\n" + "\n".join(f"    {line}" for line in lines) + "\n  }"


def _labels(folder: Path) -> tuple[str, ...]:
    """The names of the classes that an artefact holds; a label in two lines would be two."""
    path = folder / LABELS_OF_ARTEFACT
    if not path.is_file():
        return ()
    names = json.loads(path.read_text(encoding="utf-8"))
    return tuple(" ".join(str(each).split()) for each in names)
