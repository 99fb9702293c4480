"""What torch.save writes, read again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prunec.files import pickles


def read(content: Any, folder: Path, **options: Any) -> Any:
    torch.save(content, folder / "x.pt", **options)
    return pickles.read(folder / "x.pt")


@dataclass
class Stranger:
    """Of a class that nobody trusts."""

    name: str
