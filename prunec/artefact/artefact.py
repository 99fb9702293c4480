"""The artefact: a folder that holds a pruned model, and everything needed to trust and rebuild it.

    out/prunec.json          source, policy, plan, certificate, versions, what the model takes and gives, and
                             which files were written, with their checksums
    out/model.pt2            the pruned model with its weights, for PyTorch alone
    out/model.safetensors    the weights, under the original names
    out/example.safetensors  an example of inputs and outputs, for `prunec verify`
    out/labels.json          the names of its classes, where it has any
    out/export.json          what transformers reads beside `model.pt2`, of models that are called by names
    out/report.json, .html   what was found, done and measured
    out/README.md            the same for people, as a model card

All of it is relative to itself. Nothing in it is unpickled: loading reads `model.pt2`, or builds the model
from its source, loads the weights and repeats the plan. How it takes its place, and what may be deleted
there, is in `placing.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from prunec import documents
from prunec.artefact.checksums import DIGEST, digest, fault, record
from prunec.artefact.manifest import FORMAT, MANIFEST, WEIGHTS, Manifest, unreadable
from prunec.artefact.placing import aside, restore
from prunec.artefact.placing import check_place as check_place
from prunec.errors import brief

#: Every name that a file of an artefact may have, and those that loading it may need.
KNOWN = (
    MANIFEST, WEIGHTS, "model.pt2", "example.safetensors", "labels.json", "export.json", "report.json",
    "report.html", "README.md",
)  # fmt: skip
NEEDED = KNOWN[:5]
#: What a file is to hold: text, bytes, or what writes it to a path.
Content = str | bytes | Callable[[Path], object]
#: The manifest with the checksums, until it takes its place; called as what safetensors leaves half-written.
_COMPLETE = ".tmpprunec"


def save(
    folder: str | Path,
    manifest: Mapping[str, Any],
    state: Mapping[str, torch.Tensor],
    files: Mapping[str, Content],
) -> Path:
    """Write an artefact; an older one in the same place is replaced, anything else there is an error.

    Args:
        folder: its place.
        manifest: what is known of the model.
        state: its weights.
        files: what else there is: text, bytes, or what writes it to a path.
    """
    target = Path(folder)
    check_place(target)
    with aside(target) as partial:
        data: dict[str, Any] = {"format": FORMAT, **manifest, "files": [WEIGHTS, *files]}
        _write(partial / MANIFEST, _text(data))  # first: it says which files are ours
        save_file(_distinct(state), partial / WEIGHTS)
        (partial / WEIGHTS).chmod(0o644)  # it would be for its owner only, unlike the rest
        for name, content in files.items():
            _write(partial / name, content)
        data["checksums"] = {name: record(partial / name) for name in data["files"]}
        _write(partial / _COMPLETE, _text({**data, DIGEST: digest(data)}))
        (partial / _COMPLETE).replace(
            partial / MANIFEST
        )  # a half-written one would not say which files are ours
    return target


def read(folder: str | Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The manifest, every key of it checked, and the weights of an artefact.

    Raises:
        SourceError: it is none, or is damaged.
        PolicyError: the policy in it is wrong.
    """
    target, manifest = opened(folder)
    check(target, manifest, WEIGHTS)
    try:
        documents.open_file(target / WEIGHTS, 2**63).close()
        return manifest.model_dump(), load_file(target / WEIGHTS)
    except documents.Unreadable as error:
        raise unreadable(target, f"{WEIGHTS} {error}") from error
    except (OSError, ValueError, SafetensorError) as error:
        raise unreadable(target, f"{WEIGHTS}: {brief(str(error))}") from error


def opened(folder: str | Path) -> tuple[Path, Manifest]:
    """The folder of an artefact, and its manifest; SourceError where it is none."""
    target = Path(folder)
    restore(target)
    return target, Manifest.read(target / MANIFEST)


def check(folder: Path, manifest: Manifest, name: str) -> None:
    """SourceError unless a file is the one that was written; older artefacts do not say what it was."""
    found = fault_of(folder, manifest, name)
    if found is not None:
        raise unreadable(folder, f"{name} {found}")


def fault_of(folder: Path, manifest: Manifest, name: str) -> str | None:
    """What is wrong with a file of an artefact; None where nothing is, or nothing is known of it."""
    written = (manifest.checksums or {}).get(name)
    return None if written is None else fault(folder / name, written.size, written.sha256)


def _text(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=2) + "\n"


def _write(path: Path, content: Content) -> None:
    if callable(content):
        content(path)
    else:
        path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def _distinct(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every tensor with memory of its own: safetensors refuses tied ones."""
    return {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
