"""Whether an artefact is what was written, and whether its files still compute what they did."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from prunec import compat, targets
from prunec.api.loading import load
from prunec.api.running import called
from prunec.artefact import artefact, portable, recorded
from prunec.artefact.manifest import Manifest
from prunec.errors import PruneError
from prunec.ir.program import ProgramModule
from prunec.targets import FileTarget
from prunec.targets.precision import BOUNDS, Precision
from prunec.verify.differences import TOLERANCE, worst

Verdict = Literal["ok", "failed", "not checked"]
#: Largest difference relative to an output's scale, by precision: kernels differ from one machine to another.
ALLOWED = {kind: max(1e-4, 2 * tolerance) for kind, tolerance in TOLERANCE.items()}


@dataclass(frozen=True)
class Row:
    """One thing that was looked at."""

    what: str
    verdict: Verdict
    detail: str = ""


def verify(folder: str | Path, *, rebuild: bool = True) -> tuple[Row, ...]:
    """Look at every file of an artefact, and compare what its models compute with what was recorded.

    Args:
        folder: the artefact.
        rebuild: build the model anew from its source too, where that can be had.

    Raises:
        SourceError: it is no artefact.
    """
    place, manifest = artefact.opened(folder)
    rows = [_file(place, manifest, name) for name in manifest.files]
    broken = {row.what for row in rows if row.verdict == "failed"}
    if manifest.spec is None or recorded.FILE not in manifest.files:
        return *rows, Row("outputs", "not checked", "an older prunec wrote it, which recorded none")
    if recorded.FILE in broken:
        return *rows, Row("outputs", "not checked", f"{recorded.FILE} is damaged")
    flat, expected = recorded.read(place, manifest.spec)

    def compared(
        what: str, make: Callable[[], nn.Module], *, needed: bool, precision: Precision = "fp32"
    ) -> Row:
        try:
            return _compared(what, make(), (flat, expected), BOUNDS[precision])
        except PruneError as error:
            return Row(what, "failed" if needed else "not checked", error.what)

    if manifest.portable.file is None:
        rows.append(Row(portable.FILE, "not checked", f"there is none: {manifest.portable.reason}"))
    elif portable.FILE not in broken:
        rows.append(
            compared(
                f"outputs of {portable.FILE}",
                lambda: load(folder, target="eager"),
                needed=True,
                precision=manifest.precision,
            )
        )
    for name, backend in _readable(manifest, broken):
        rows.append(
            compared(
                f"outputs of {backend.files[0]}",
                partial(load, folder, target=name),
                needed=False,
                precision=backend.precision,
            )
        )
    if rebuild:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = compared(
                f"outputs as built from {manifest.source}",
                lambda: load(folder, target="eager", rebuild=True),
                needed=False,
            )
        rows.append(made)
    return tuple(rows)


def _readable(manifest: Manifest, broken: Set[str]) -> list[tuple[str, FileTarget]]:
    """The backends with whole files in the artefact that are only data: machine code is not run here."""
    every = [(name, targets.find(name, _precision(manifest, name))) for name in targets.TARGETS]
    return [
        (name, backend)
        for name, backend in every
        if portable.has_files(backend, manifest.files) and not broken & set(backend.files)
    ]


def _precision(manifest: Manifest, name: str) -> Precision:
    """In which a target's files are."""
    return manifest.precision if name == manifest.target else "fp32"


def _file(folder: Path, manifest: Manifest, name: str) -> Row:
    found = artefact.fault_of(folder, manifest, name)
    if manifest.checksums is None or name not in manifest.checksums:
        return Row(name, "not checked", "no checksum was written")
    return Row(name, "ok" if found is None else "failed", found or "as it was written")


def _compared(what: str, model: nn.Module, example: tuple[list[Any], list[Tensor]], bound: float) -> Row:
    """How far the outputs of a model are from those that were recorded."""
    flat, expected = example
    outputs = _tensors(called(model, flat))
    if len(outputs) != len(expected):
        return Row(what, "failed", f"{len(outputs)} outputs, and {len(expected)} were recorded")
    difference = worst(outputs, expected)
    assert isinstance(model, ProgramModule)
    kinds = [tensor.dtype for tensor in (*model.parameters(), *expected)]
    allowed = max([bound, *(ALLOWED.get(kind, 1e-4) for kind in kinds if kind.is_floating_point)])
    verdict: Verdict = "ok" if difference <= allowed else "failed"
    return Row(what, verdict, f"largest relative difference {difference:.1e}, allowed {allowed:.0e}")


def _tensors(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, dict):
        outputs = list(outputs.values())
    if isinstance(outputs, list | tuple):
        return [leaf for one in outputs for leaf in _tensors(one)]
    return [leaf for leaf in compat.tree_leaves(outputs) if isinstance(leaf, Tensor)]
