"""Files that nobody should trust, and how each is given to the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

#: What a payload makes, in the working folder, when it runs.
CANARY = "ran"


@dataclass(frozen=True)
class Hostile:
    """A case: what is hostile, what writes it, and words that the refusal must have.

    `write` puts its files into an empty folder, and returns arguments for the command line.
    """

    name: str
    what: str
    write: Callable[[Path], list[str]]
    refusal: str
