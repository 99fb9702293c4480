"""Targets side by side: built, compared with the graph itself, and timed in one interleaved run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from prunec import targets
from prunec.errors import PruneError, TargetError, first_sentence
from prunec.ir.interface import images_in
from prunec.ir.program import Planned, Program, Recognised
from prunec.measure import cost, figures
from prunec.report.target_table import OnTarget, Parity, TargetTable
from prunec.targets import Flat
from prunec.targets.precision import BOUNDS, Precision

Progress = Callable[[str], None]
#: In the model's own precision, where that is half of single.
HALF = BOUNDS["bf16"]


@dataclass(frozen=True)
class Chosen:
    """The target that was taken, what it made of both programs, and all of them side by side."""

    name: str
    precision: Precision
    lowered: dict[str, Flat]
    dense: Flat  # in the model's own precision
    table: TargetTable


@dataclass(frozen=True)
class _Way:
    """A target in a precision."""

    name: str
    precision: Precision = "fp32"

    def __str__(self) -> str:
        return self.name if self.precision == "fp32" else f"{self.name} {self.precision}"


def fastest_target(
    dense: Recognised,
    pruned: Planned,
    flat: Sequence[Any],
    *,
    rounds: int,
    progress: Progress,
    names: Sequence[str] = tuple(targets.TARGETS),
    precision: Precision = "fp32",
) -> Chosen:
    """The target on which the pruned program is the fastest, of those that run here and agree with the graph.

    Another precision is tried on each beside the model's own. Where nothing agrees the first is taken that
    was built; TargetError where nothing was.
    """
    rows: dict[_Way, OnTarget] = {}
    built: dict[_Way, dict[str, Flat]] = {}
    for way in (_Way(name, kind) for kind in dict.fromkeys(("fp32", precision)) for name in names):
        progress(f"build on {way}")
        rows[way], lowered = _built(way, dense, pruned, flat)
        if lowered:
            built[way] = lowered
    if not built:
        reason = next(iter(rows.values()))
        raise TargetError(f"target {reason.name!r}: {reason.refused}", remedy="choose another target")
    progress("measure targets")
    calls = {
        f"{kind} {way}": figures.bound(call, flat)
        for way, lowered in built.items()
        for kind, call in lowered.items()
    }
    timings = cost.measure(calls, device=targets.device_of(dense), rounds=rounds)
    for way in built:
        dense_time, pruned_time = timings[f"dense {way}"].median, timings[f"pruned {way}"].median
        rows[way] = replace(rows[way], dense=dense_time, pruned=pruned_time)
    first = [next(iter(built))]
    agreeing = [way for way in built if rows[way].agrees] or first
    taken = min(agreeing, key=lambda way: timings[f"pruned {way}"].median)
    right = [way for way in built if rows[way].dense_agrees] or first
    fastest = min(right, key=lambda way: timings[f"dense {way}"].median)
    table = TargetTable(
        targets=tuple(rows.values()),
        batch=images_in(flat),
        taken=str(taken),
        fastest_dense=str(fastest),
        speedup=cost.ratio(timings, f"dense {fastest}", f"pruned {taken}"),
        same_target=cost.ratio(timings, f"dense {taken}", f"pruned {taken}"),
    )
    single = built.get(_Way(taken.name))
    exact = dense.module if single is None else single["dense"]
    return Chosen(taken.name, taken.precision, built[taken], exact, table)


def not_taken(table: TargetTable, precision: Precision) -> str:
    """Why a precision that was asked for is not used."""
    others = [row for row in table.targets if row.name.endswith(f" {precision}")]
    best = min((row for row in others if row.pruned is not None and row.agrees), key=_time, default=None)
    taken = next(row for row in table.targets if row.name == table.taken)
    if best is not None:
        why = f"it is not faster: {_time(best) * 1e3:.2f} ms, {taken.name} {_time(taken) * 1e3:.2f} ms"
    else:
        why = "; ".join(f"{row.name}: {row.refused or row.parity}" for row in others)
    return f"precision {precision} was asked for and is not used: {why}"


def _time(row: OnTarget) -> float:
    assert row.pruned is not None
    return row.pruned


def _built(
    way: _Way, dense: Recognised, pruned: Planned, flat: Sequence[Any]
) -> tuple[OnTarget, dict[str, Flat]]:
    """A target with both programs on it, or why it has none."""
    target, name = targets.find(way.name, way.precision), str(way)
    missing = targets.unfit(target) or target.missing()
    if not missing and pruned.plan.lowering.mode not in target.modes:
        missing = f"it does not run mode {pruned.plan.lowering.mode}"
    if missing:
        return OnTarget(name, refused=missing), {}
    try:
        lowered = {"dense": target.lower(dense), "pruned": target.lower(pruned)}
        of_dense, of_pruned = (
            parity(program, lowered[kind], flat, way.precision)
            for kind, program in (("dense", dense), ("pruned", pruned))
        )
    except Exception as error:  # noqa: BLE001  engines raise what they like; the others are measured
        reason = error.what if isinstance(error, PruneError) else first_sentence(error)
        return OnTarget(name, refused=reason), {}
    return OnTarget(name, of_pruned, of_dense is None or of_dense.agrees), lowered


def parity(
    program: Program, lowered: Flat, flat: Sequence[Any], precision: Precision = "fp32"
) -> Parity | None:
    """How far a lowered program is from its graph, on these inputs; None where that draws at random."""
    with torch.no_grad():
        expected, again, found = program.module(*flat), program.module(*flat), lowered(*flat)
    if not all(
        torch.equal(*each) for each in zip(expected, again, strict=True) if isinstance(each[0], Tensor)
    ):
        return None
    pairs = [
        (one.detach().float(), other.detach().float())
        for one, other in zip(found, expected, strict=True)
        if isinstance(other, Tensor) and other.is_floating_point()
    ]
    halves = any(
        isinstance(each, Tensor) and each.dtype in (torch.float16, torch.bfloat16) for each in expected
    )
    largest = max((_relative(one, other, torch.amax) for one, other in pairs), default=0.0)
    mean = max((_relative(one, other, torch.mean) for one, other in pairs), default=0.0)
    scores = [(one, other) for one, other in pairs if other.dim() == 2 and other.shape[1] > 1]
    agreement = None
    if scores:
        one, other = scores[0]
        agreement = float((one.argmax(dim=1) == other.argmax(dim=1)).float().mean())
    return Parity(largest, mean, agreement, max(BOUNDS[precision], HALF if halves else 0.0))


def _relative(found: Tensor, expected: Tensor, over: Callable[[Tensor], Tensor]) -> float:
    """A difference relative to what there is, both over all numbers; infinite where one is no number."""
    if found.shape != expected.shape or not bool(torch.equal(found.isfinite(), expected.isfinite())):
        return float("inf")
    found, expected = found[expected.isfinite()], expected[expected.isfinite()]
    if not len(expected):
        return 0.0
    scale = float(over(expected.abs()))
    return float(over((found - expected).abs())) / max(scale, torch.finfo(torch.float32).tiny)
