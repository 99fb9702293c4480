"""An example of what an artefact's model gives, recorded when it was written: inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from prunec import compat
from prunec.artefact.manifest import unreadable
from prunec.artefact.spec import Spec
from prunec.errors import brief
from prunec.ir.program import Program

FILE = "example.safetensors"


def record(program: Program, flat: Sequence[Any]) -> bytes:
    """What a program gives on flat inputs, as the content of the file."""
    with torch.no_grad():
        found = program.module(*flat)
    tensors = {**_named("input", flat), **_named("output", compat.tree_leaves(found))}
    return save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})


def read(folder: Path, spec: Spec) -> tuple[list[Any], list[Tensor]]:
    """Flat inputs, options among them, and the outputs that were recorded; SourceError without them."""
    try:
        found = load_file(folder / FILE)
        flat = [
            one.value if one.sizes is None else found[f"input.{place}"]
            for place, one in enumerate(spec.inputs)
        ]
        outputs = {int(name[7:]): tensor for name, tensor in found.items() if name.startswith("output.")}
    except Exception as error:  # a damaged file makes safetensors raise anything
        raise unreadable(folder, f"{FILE}: {brief(str(error))}") from error
    return flat, [outputs[place] for place in sorted(outputs)]


def _named(kind: str, leaves: Sequence[Any]) -> dict[str, Tensor]:
    return {f"{kind}.{place}": leaf for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
