"""Tensors by name as a file: .safetensors, or .npz where NumPy is installed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from prunec.errors import PruneError, UsageError

SUFFIXES = (".safetensors", ".npz")


def check_name(path: str | Path) -> None:
    """UsageError where a file of that name cannot be written; cheap, so that it is known before the work."""
    place = Path(path)
    if place.suffix not in SUFFIXES:
        raise UsageError(
            f"{place.name} is no file of numbers",
            where="--output",
            remedy=f"give a name that ends in {' or '.join(SUFFIXES)}",
        )
    if not place.parent.is_dir() or place.is_dir():
        raise UsageError(
            f"{place} cannot be written: {place if place.is_dir() else place.parent} is "
            f"{'a' if place.is_dir() else 'no'} folder",
            where="--output",
            remedy="give a file in a folder that exists",
        )


def write(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors; PruneError where that cannot be done."""
    place, found = Path(path), {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        if place.suffix == ".npz":
            import numpy as np

            np.savez(
                place, allow_pickle=False, **{name: tensor.float().numpy() for name, tensor in found.items()}
            )
        else:
            save_file(found, place)
    except (ImportError, OSError) as error:
        raise PruneError(
            f"{place} could not be written: {error}", remedy="give another file, or .safetensors"
        ) from error
