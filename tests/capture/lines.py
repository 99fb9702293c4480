"""Where a text stands in a file, as errors name it."""

from __future__ import annotations

from pathlib import Path


def line_of(file: str, text: str) -> str:
    """`file:number`, where the text stands for the first time."""
    lines = Path(file).read_text(encoding="utf-8").splitlines()
    return f"{file}:{next(number for number, line in enumerate(lines, 1) if text in line)}"
