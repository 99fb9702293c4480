"""The artefact: a folder that holds a pruned model, and everything needed to trust and rebuild it.

    out/prunec.json         source, policy, plan, certificate, versions
    out/model.safetensors   the weights, under the original names
    out/report.json, .html  what was found, done and measured

It is written beside its place and renamed at the end, so a half-written folder is never left behind. Nothing
in it is unpickled: loading builds the model from its source, loads the weights and repeats the plan.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from prunec.errors import SourceError, UsageError

FORMAT = 1
MANIFEST = "prunec.json"
WEIGHTS = "model.safetensors"


def save(
    folder: str | Path,
    manifest: Mapping[str, Any],
    state: Mapping[str, torch.Tensor],
    files: Mapping[str, str],
) -> Path:
    """Write an artefact; an older one in the same place is replaced, anything else there is an error."""
    target = Path(folder)
    if target.exists() and not (target / MANIFEST).is_file():
        raise UsageError(
            f"{target} exists and is no prunec artefact", remedy="choose another folder with -o, or remove it"
        )
    with _aside(target) as partial:
        text = json.dumps({"format": FORMAT, **manifest}, indent=2)
        (partial / MANIFEST).write_text(text + "\n", encoding="utf-8")
        save_file(_distinct(state), partial / WEIGHTS)
        for name, content in files.items():
            (partial / name).write_text(content, encoding="utf-8")
    return target


def read(folder: str | Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The manifest and the weights of an artefact."""
    target = Path(folder)
    try:
        manifest = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
        state = load_file(target / WEIGHTS)
    except (OSError, ValueError) as error:
        raise SourceError(
            f"{target} is no readable prunec artefact: {error}",
            remedy="give a folder that `prunec optimize -o` wrote",
        ) from error
    if manifest.get("format") != FORMAT:
        raise SourceError(
            f"{target} has format {manifest.get('format')!r}, this prunec reads {FORMAT}",
            remedy="write it again with this version",
        )
    return manifest, state


@contextmanager
def _aside(target: Path) -> Iterator[Path]:
    """A new folder beside `target` that takes its place when all went well, and is removed when not."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise UsageError(
            f"{target} cannot be written: {error.strerror}", remedy="choose another folder with -o"
        ) from error
    try:
        yield partial
        partial.chmod(0o755)
        if target.exists():
            old = partial.with_name(partial.name + ".old")
            target.rename(old)
            partial.rename(target)
            shutil.rmtree(old)
        else:
            partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _distinct(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every tensor with memory of its own: safetensors refuses tied ones."""
    return {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
