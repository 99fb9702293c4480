"""Which versions the tests run on, and whether exactly these were tested before.

`python tests/versions.py` prints the same as the head of every test run.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
COMPAT = ROOT / "benchmarks" / "results" / "compat.json"

#: What a result depends on most.
PACKAGES = ("torch", "torchvision", "timm", "transformers")

Versions = Mapping[str, str]


def installed() -> dict[str, str]:
    """Python's version and the packages', as installed here."""
    return {"python": platform.python_version(), **{package: _version(package) for package in PACKAGES}}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def constrained(text: str) -> dict[str, str]:
    """package -> version, of the lines of a constraints file that hold for this Python."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    wanted = [Requirement(line) for line in lines if line]
    return {
        each.name: next(iter(each.specifier)).version
        for each in wanted
        if each.marker is None or each.marker.evaluate()
    }


def recorded(path: Path = COMPAT) -> list[dict[str, Any]]:
    """The rows that `make compat` stored, one for each environment."""
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    return rows


def header(here: Versions, pinned: Versions, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Two lines: the versions, and whether exactly these were tested before."""
    listed = ", ".join(f"{name} {here[name]}" for name in ("python", *PACKAGES))
    return [f"versions: {listed}", f"tested: {_verdict(here, pinned, rows)}"]


def _verdict(here: Versions, pinned: Versions, rows: Sequence[Mapping[str, Any]]) -> str:
    for row in rows:
        if not _differences(here, row["versions"]) and _minor(here) == _minor(row["versions"]):
            outcome = f"{row['passed']} passed, {row['failed']} failed"
            return f"exactly these, by `make compat` on {row['date']} ({row['environment']}: {outcome})"
    differences = _differences(here, pinned)
    if not differences:
        return "exactly these packages, the versions of constraints.txt"
    return f"not exactly these; constraints.txt has {', '.join(differences)}"


def _differences(here: Versions, tested: Versions) -> list[str]:
    """`torch 2.14.1` for each package whose tested version is another than the one here."""
    return [
        f"{name} {tested.get(name, 'any')}"
        for name in PACKAGES
        if name not in tested or _public(here[name]) != _public(tested[name])
    ]


def _public(version: str) -> str:
    """Without what a build was made for: 2.14.1+cpu is 2.14.1."""
    return version if version == "none" else Version(version).public


def _minor(versions: Versions) -> str:
    return ".".join(versions["python"].split(".")[:2])


def report() -> list[str]:
    """What every test run says at its start."""
    return header(installed(), constrained(CONSTRAINTS.read_text(encoding="utf-8")), recorded())


if __name__ == "__main__":
    print("\n".join(report()))
