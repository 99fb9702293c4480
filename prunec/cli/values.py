"""What the text of an option means; a usage error, with the option's name, where it means nothing."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from prunec.errors import UsageError

if TYPE_CHECKING:
    from prunec.frontend.sources import Source


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
        from prunec.files import files

        tensors = files.read_safetensors(Path(example))
        numbered = sorted(tensors, key=int) if all(map(str.isdecimal, tensors)) else None
        given = dict(tensors) if numbered is None else tuple(tensors[name] for name in numbered)
    said = {"mean": _channels(mean, "--mean"), "std": _channels(std, "--std"), "crop": crop}
    preprocess = {name: value for name, value in said.items() if value is not None}
    return {"example": given, "image_size": _sides(image_size), "preprocess": preprocess or None}


def read_source(
    source: str,
    *,
    pretrained: bool,
    arch: str | None,
    allow_pickle: bool,
    inputs: dict[str, Any],
    submodule: str | None,
) -> Source:
    """The model that SOURCE names, or a part of it, with what the options and `inputs_of` say."""
    from prunec.frontend import sources
    from prunec.frontend.sources import Asked

    asked = Asked(pretrained=pretrained, arch=arch, allow_pickle=allow_pickle, submodule=submodule, **inputs)
    return sources.read(source, asked)


def folder_of(source: str, policy: str) -> str:
    """Where the artefact of a model and a policy is saved by default."""
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
