"""The artefact: a folder that holds a pruned model, and everything needed to trust and rebuild it.

    out/prunec.json         source, policy, plan, certificate, versions, and which files were written
    out/model.safetensors   the weights, under the original names
    out/report.json, .html  what was found, done and measured

Nothing in it is unpickled: loading builds the model from its source, loads the weights and repeats the plan.
How it takes its place, and what may be deleted there, is in `placing.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from prunec import documents
from prunec.artefact.manifest import FORMAT, MANIFEST, WEIGHTS, Manifest, unreadable
from prunec.artefact.placing import aside, restore
from prunec.artefact.placing import check_place as check_place
from prunec.errors import brief


def save(
    folder: str | Path,
    manifest: Mapping[str, Any],
    state: Mapping[str, torch.Tensor],
    files: Mapping[str, str],
) -> Path:
    """Write an artefact; an older one in the same place is replaced, anything else there is an error."""
    target = Path(folder)
    check_place(target)
    with aside(target) as partial:
        data = {"format": FORMAT, **manifest, "files": [WEIGHTS, *files]}
        _write(partial / MANIFEST, json.dumps(data, indent=2) + "\n")  # first: it says which files are ours
        save_file(_distinct(state), partial / WEIGHTS)
        (partial / WEIGHTS).chmod(0o644)  # it would be for its owner only, unlike the rest
        for name, content in files.items():
            _write(partial / name, content)
    return target


def read(folder: str | Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The manifest, every key of it checked, and the weights of an artefact.

    Raises:
        SourceError: it is none, or is damaged.
        PolicyError: the policy in it is wrong.
    """
    target = Path(folder)
    restore(target)
    manifest = Manifest.read(target / MANIFEST)
    try:
        documents.open_file(target / WEIGHTS, 2**63).close()
        return manifest.model_dump(), load_file(target / WEIGHTS)
    except documents.Unreadable as error:
        raise unreadable(target, f"{WEIGHTS} {error}") from error
    except (OSError, ValueError, SafetensorError) as error:
        raise unreadable(target, f"{WEIGHTS}: {brief(str(error))}") from error


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _distinct(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every tensor with memory of its own: safetensors refuses tied ones."""
    return {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
