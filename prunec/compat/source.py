"""Whose code a file is, and its lines."""

from __future__ import annotations

import linecache
import os
from pathlib import Path

import torch

__all__ = ["is_users", "source_text"]

#: Folders of which no message should name a file: PyTorch's and prunec's.
_NOT_THE_USERS = tuple(
    f"{folder}{os.sep}" for folder in (Path(torch.__file__).parent, Path(__file__).parents[1])
)


def is_users(filename: str) -> bool:
    """Whether a source file is the user's (or a model library's), not PyTorch's and not prunec's."""
    return not filename.startswith(("<", *_NOT_THE_USERS))


def source_text(filename: str, line: int) -> str:
    """One line of a source file, stripped."""
    return linecache.getline(filename, line).strip()
