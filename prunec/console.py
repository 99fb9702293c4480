"""What all commands share: the two consoles, common options, progress, JSON."""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from prunec import files
from prunec.errors import NoGainError, UsageError
from prunec.figures import Progress
from prunec.report import Report

out = Console(highlight=False, soft_wrap=True)
chatter = Console(stderr=True, highlight=False)

SourceArgument = Annotated[
    str, typer.Argument(metavar="SOURCE", help="timm:ID, hf:ORG/NAME, pkg.mod:callable, a file, shapes")
]
ArchOption = Annotated[
    str | None, typer.Option("--arch", metavar="SOURCE", help="the model that a file of weights is for")
]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="unpickle any .pt or .pt2 file, and run any code that is in it")
]
ExampleOption = Annotated[
    str | None,
    typer.Option(
        "--example",
        metavar="SHAPES|FILE",
        help="an input: 2x3x224x224, pixel_values=2x3x224x224, or tensors in a .safetensors file",
    ),
]
ImageSizeOption = Annotated[
    str | None, typer.Option("--image-size", metavar="N|HxW", help="pixels of the model's input")
]
MeanOption = Annotated[
    str | None, typer.Option("--mean", metavar="R,G,B", help="what is subtracted from pictures in 0..1")
]
StdOption = Annotated[
    str | None, typer.Option("--std", metavar="R,G,B", help="what pictures are divided by afterwards")
]
CropOption = Annotated[
    float | None, typer.Option("--crop", help="share of the scaled picture that the centre crop keeps")
]
PolicyOption = Annotated[
    str, typer.Option("--policy", "-p", metavar="NAME|FILE", help="a preset or a policy file")
]
KeepOption = Annotated[
    float | None, typer.Option("--keep", help="share of the patch tokens that survives a site")
]
BlocksOption = Annotated[
    str | None, typer.Option("--blocks", metavar="3,6,9", help="blocks that have a site")
]
RestoreOption = Annotated[
    str | None,
    typer.Option("--restore", metavar="HOW", help="how tokens come back for a head that reads all of them"),
]
ModeOption = Annotated[
    str | None,
    typer.Option("--mode", metavar="MODE", help="static, padded, packed or masked; what suits, if left out"),
]
BucketsOption = Annotated[
    str | None, typer.Option("--buckets", metavar="64,128", help="lengths to round padded batches up to")
]
BoundOption = Annotated[
    int | None, typer.Option("--bound", min=1, help="tokens that a packed batch may have at most")
]
TargetOption = Annotated[str, typer.Option("--target", "-t", help="eager or inductor")]
ImagesOption = Annotated[str | None, typer.Option("--images", metavar="DIR", help="images to measure on")]
BatchOption = Annotated[int, typer.Option("--batch", min=1, help="images at a time when latency is measured")]
RoundsOption = Annotated[int, typer.Option("--rounds", min=5, help="interleaved rounds of the measurement")]
ThreadsOption = Annotated[int | None, typer.Option("--threads", min=1, help="compute threads (CPU)")]
UntrainedOption = Annotated[
    bool, typer.Option("--untrained", help="do not calibrate learned parts: for timing only")
]
OutputOption = Annotated[
    str | None, typer.Option("--output", "-o", metavar="OUT", help="folder of the artefact")
]
LatencyOption = Annotated[
    float | None,
    typer.Option("--latency", metavar="SHARE", help="plan: at most this share of the dense model's time"),
]
SpeedupOption = Annotated[
    float | None, typer.Option("--speedup", metavar="TIMES", help="plan: at least so many times as fast")
]
MaxDropOption = Annotated[
    float | None,
    typer.Option("--max-drop", metavar="LOSS", help="plan: the fastest that diverges no more from dense"),
]
SitesOption = Annotated[int, typer.Option("--sites", min=1, help="plan: how many sites at most")]
FirstOption = Annotated[
    int, typer.Option("--first", min=1, help="plan: the first block that may have a site")
]
FastOption = Annotated[
    bool, typer.Option("--fast", help="plan: estimate what is lost from one pass of the dense model")
]
TableOption = Annotated[
    str | None,
    typer.Option("--latency-table", metavar="FILE", help="plan by this table, see `prunec bench --table`"),
]
RequireOption = Annotated[
    bool, typer.Option("--require-speedup", help="exit with code 5 when pruning does not pay here")
]
RandomWeights = Annotated[bool, typer.Option("--random-weights", help="do not load pretrained weights")]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON")]


@contextmanager
def progress() -> Iterator[Progress]:
    """A spinner on a terminal, plain lines on stderr otherwise."""
    if chatter.is_terminal:
        with chatter.status("start") as status:
            yield lambda step: status.update(step)
    else:
        yield lambda step: chatter.print(f"prunec: {step}", markup=False)


def numbers(
    text: str | None, option: str = "--blocks", what: str = "block numbers such as 3,6,9"
) -> tuple[int, ...] | None:
    """The numbers of an option such as `3,6,9`; a usage error where it has others."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no list of {what}", param_hint=option) from error


def inputs_of(
    example: str | None,
    image_size: str | None,
    mean: str | None = None,
    std: str | None = None,
    crop: float | None = None,
) -> dict[str, Any]:
    """What --example, --image-size, --mean, --std and --crop say, as `sources.load` takes it."""
    if example is not None and image_size is not None:
        raise typer.BadParameter("an example has a size already: leave --image-size out")
    given: Any = example
    if example is not None and example.endswith(".safetensors"):
        tensors = files.read_safetensors(Path(example))
        numbered = sorted(tensors, key=int) if all(map(str.isdecimal, tensors)) else None
        given = dict(tensors) if numbered is None else tuple(tensors[name] for name in numbered)
    said = {"mean": _channels(mean, "--mean"), "std": _channels(std, "--std"), "crop": crop}
    preprocess = {name: value for name, value in said.items() if value is not None}
    return {"example": given, "image_size": _sides(image_size), "preprocess": preprocess or None}


def _channels(text: str | None, option: str) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} is no list of numbers such as 0.485,0.456,0.406", param_hint=option
        ) from error


def _sides(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", text, re.ASCII)
    if match is None:
        raise typer.BadParameter(f"{text!r} is no size such as 224 or 224x160", param_hint="--image-size")
    return int(match[1]), int(match[2] or match[1])


def folder_of(source: str, policy: str) -> str:
    """Where the artefact of a model and a policy lies, if nobody says."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{source}-{policy}").strip("-")
    return str(Path("prunec-out") / name)


def writable(name: str, option: str) -> Path:
    """The path of a file that can be written, its folder made; UsageError, before the work, where not."""
    path = Path(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, "it is a folder" if path.is_dir() else "it is protected")
    except OSError as error:
        raise UsageError(
            f"{name} cannot be written: {error.strerror}", where=option, remedy="name another file"
        ) from error
    return path


def print_json(data: Any) -> None:
    """Results as JSON, on stdout."""
    sys.stdout.write(json.dumps(data, indent=2) + "\n")


def warn(text: str) -> None:
    """What should be known and stops nothing, on stderr."""
    chatter.print(f"prunec: warning: {text}", markup=False, soft_wrap=True)


def show_report(report: Report, *, as_json: bool, require_speedup: bool) -> None:
    """A report on stdout; NoGainError when a gain is required and there is none."""
    if as_json:
        print_json(report.as_dict())
    else:
        out.print(report.text(), end="", markup=False)
    if require_speedup and report.no_gain:
        raise NoGainError(
            report.no_gain,
            where=report.source,
            remedy="use the model as it is, or try another batch, policy or target",
        )
