"""Targets side by side: built, compared with the graph itself, and timed in one interleaved run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from prunec import targets
from prunec.errors import PruneError, first_sentence
from prunec.ir.interface import images_in
from prunec.ir.program import Planned, Program, Recognised
from prunec.measure import cost, figures
from prunec.report.target_table import OnTarget, Parity, TargetTable
from prunec.targets import Flat

#: What rounding does, relative to the largest output; of half precision, where only that is known, more.
SINGLE, HALF = 1e-4, 5e-2
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Chosen:
    """The target that was taken, what it made of both programs, and all of them side by side."""

    name: str
    lowered: dict[str, Flat]
    table: TargetTable


def fastest_target(
    dense: Recognised,
    pruned: Planned,
    flat: Sequence[Any],
    *,
    rounds: int,
    progress: Progress,
    names: Sequence[str] = tuple(targets.TARGETS),
) -> Chosen:
    """The target on which the pruned program is the fastest, of those that run here and agree with the graph.

    Eager is the graph itself, so that there always is one.
    """
    rows: dict[str, OnTarget] = {}
    built: dict[str, dict[str, Flat]] = {}
    for name in names:
        progress(f"build on {name}")
        rows[name], lowered = _built(name, dense, pruned, flat)
        if lowered:
            built[name] = lowered
    progress("measure targets")
    calls = {
        f"{kind} {name}": figures.bound(call, flat)
        for name, lowered in built.items()
        for kind, call in lowered.items()
    }
    timings = cost.measure(calls, device=targets.device_of(dense), rounds=rounds)
    for name in built:
        dense_time, pruned_time = timings[f"dense {name}"].median, timings[f"pruned {name}"].median
        rows[name] = replace(rows[name], dense=dense_time, pruned=pruned_time)
    agreeing = [name for name in built if rows[name].agrees]
    taken = min(agreeing, key=lambda name: timings[f"pruned {name}"].median)
    right = [name for name in built if rows[name].dense_agrees]
    fastest = min(right, key=lambda name: timings[f"dense {name}"].median)
    table = TargetTable(
        targets=tuple(rows.values()),
        batch=images_in(flat),
        taken=taken,
        fastest_dense=fastest,
        speedup=cost.ratio(timings, f"dense {fastest}", f"pruned {taken}"),
        same_target=cost.ratio(timings, f"dense {taken}", f"pruned {taken}"),
    )
    return Chosen(taken, built[taken], table)


def _built(
    name: str, dense: Recognised, pruned: Planned, flat: Sequence[Any]
) -> tuple[OnTarget, dict[str, Flat]]:
    """A target with both programs on it, or why it has none."""
    target = targets.find(name)
    missing = target.missing()
    if missing is None and pruned.plan.lowering.mode not in target.modes:
        missing = f"it does not run mode {pruned.plan.lowering.mode}"
    if missing is not None:
        return OnTarget(name, refused=missing), {}
    try:
        lowered = {"dense": target.lower(dense), "pruned": target.lower(pruned)}
        of_dense, of_pruned = parity(dense, lowered["dense"], flat), parity(pruned, lowered["pruned"], flat)
    except Exception as error:  # noqa: BLE001  engines raise what they like; the others are measured
        reason = error.what if isinstance(error, PruneError) else first_sentence(error)
        return OnTarget(name, refused=reason), {}
    return OnTarget(name, of_pruned, of_dense is None or of_dense.agrees), lowered


def parity(program: Program, lowered: Flat, flat: Sequence[Any]) -> Parity | None:
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
    return Parity(largest, mean, agreement, HALF if halves else SINGLE)


def _relative(found: Tensor, expected: Tensor, over: Callable[[Tensor], Tensor]) -> float:
    """A difference relative to what there is, both over all numbers; infinite where one is no number."""
    if found.shape != expected.shape or not bool(torch.equal(found.isfinite(), expected.isfinite())):
        return float("inf")
    found, expected = found[expected.isfinite()], expected[expected.isfinite()]
    if not len(expected):
        return 0.0
    scale = float(over(expected.abs()))
    return float(over((found - expected).abs())) / max(scale, torch.finfo(torch.float32).tiny)
