"""A small artefact, saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunec.artefact import artefact
from prunec.artefact.checksums import digest
from prunec.policy.policy import Policy

MANIFEST: dict[str, Any] = {
    "source": "shapes", "weights": "shipped", "target": "eager", "plan": {}, "certificate": {},
    "policy": Policy.load("norm").model_dump(mode="json"),
}  # fmt: skip


def state(value: float = 1.0) -> dict[str, Tensor]:
    return {"a.weight": torch.full((2, 3), value), "steps": torch.tensor(7)}


def save(folder: Path, value: float = 1.0, **files: str | bytes) -> Path:
    return artefact.save(folder, MANIFEST, state(value), files)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rewritten(folder: Path, *without: str, **changes: Any) -> dict[str, Any]:
    """The manifest with keys left out or changed, its own checksum, where it has one, made right."""
    path = folder / "prunec.json"
    plain = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    kept = {key: value for key, value in plain.items() if key not in without}
    if "digest" in kept:
        kept["digest"] = digest(kept)
    path.write_text(json.dumps(kept), encoding="utf-8")
    return kept
