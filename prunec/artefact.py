"""The artefact: a folder that holds a pruned model, and everything needed to trust and rebuild it.

    out/prunec.json         source, policy, plan, certificate, versions
    out/model.safetensors   the weights, under the original names
    out/report.json, .html  what was found, done and measured

It is written beside its place and renamed at the end, so a half-written folder is never left behind. Nothing
in it is unpickled: loading builds the model from its source, loads the weights and repeats the plan.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from prunec.errors import PruneError, SourceError, UsageError

FORMAT = 1
MANIFEST = "prunec.json"
WEIGHTS = "model.safetensors"
KEYS = ("source", "weights", "target", "policy", "plan", "certificate")  # what a manifest holds at least


def save(
    folder: str | Path,
    manifest: Mapping[str, Any],
    state: Mapping[str, torch.Tensor],
    files: Mapping[str, str],
) -> Path:
    """Write an artefact; an older one in the same place is replaced, anything else there is an error."""
    target = Path(folder)
    check_place(target)
    with _aside(target) as partial:
        text = json.dumps({"format": FORMAT, **manifest}, indent=2)
        (partial / MANIFEST).write_text(text + "\n", encoding="utf-8")
        save_file(_distinct(state), partial / WEIGHTS)
        (partial / WEIGHTS).chmod(0o644)  # it would be for its owner only, unlike the rest
        for name, content in files.items():
            (partial / name).write_text(content, encoding="utf-8")
    return target


def check_place(folder: str | Path) -> None:
    """UsageError when no artefact can be written there; cheap, so that it is known before the work."""
    target = Path(folder)
    if target.exists() and not _is_artefact(target):
        raise UsageError(
            f"{target} exists and is no prunec artefact", remedy="choose another folder with -o, or remove it"
        )
    parent = next(parent for parent in target.absolute().parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        why = "may not be written to" if parent.is_dir() else "is a file"
        raise UsageError(
            f"{target} cannot be written: {parent} {why}", remedy="choose another folder with -o"
        )


def read(folder: str | Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The manifest and the weights of an artefact."""
    target = Path(folder)
    try:
        manifest = _manifest(target)
        _check_manifest(manifest, target)
        return manifest, load_file(target / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise SourceError(
            f"{target} is no readable prunec artefact: {error}",
            remedy="give a folder that `prunec optimize -o` wrote",
        ) from error


def _manifest(target: Path) -> dict[str, Any]:
    manifest = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise ValueError(f"{MANIFEST} is not the manifest of one")
    return manifest


def _check_manifest(manifest: Mapping[str, Any], target: Path) -> None:
    if manifest["format"] != FORMAT:
        raise SourceError(
            f"{target} has format {manifest['format']!r}, this prunec reads {FORMAT}",
            remedy="write it again with this version",
        )
    absent = [key for key in KEYS if key not in manifest]
    if absent:
        raise SourceError(
            f"{target / MANIFEST} lacks {', '.join(absent)}", remedy="write it again with this version"
        )


def _is_artefact(target: Path) -> bool:
    try:
        return bool(_manifest(target))
    except (OSError, ValueError):
        return False


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
        _take_place(partial, target)
    except (OSError, SafetensorError) as error:
        raise PruneError(
            f"{target} could not be written: {error}", remedy="nothing was left behind; is the disk full?"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _take_place(partial: Path, target: Path) -> None:
    if not target.exists():
        partial.rename(target)
        return
    old = partial.with_name(partial.name + ".old")
    target.rename(old)
    try:
        partial.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old)


def _distinct(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every tensor with memory of its own: safetensors refuses tied ones."""
    return {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
