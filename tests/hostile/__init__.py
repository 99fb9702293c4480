"""Files that nobody should trust, and how each is given to the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import ViTConfig

#: What a payload makes, in the working folder, when it runs.
CANARY = "ran"


@dataclass(frozen=True)
class Hostile:
    """A case: what is hostile, what writes it, and words that the refusal must have.

    `concerns` says whether the installed libraries would do at all what it wants.

    `write` puts its files into an empty folder, and returns arguments for the command line.
    """

    name: str
    what: str
    write: Callable[[Path], list[str]]
    refusal: str
    concerns: Callable[[], bool] = lambda: True


def configurations_choose_attention() -> bool:
    """Whether this transformers takes the attention from a file; older ones pass over it."""
    read = ViTConfig.from_dict({"attn_implementation": "eager"})
    return read._attn_implementation == "eager"
