"""What a policy's site takes, where the blocks were timed before with another policy's site between them.

table of one policy:     front, blocks at every length, pairs of blocks with its site between
of another, beside it:   only the pairs, each as a multiple of the same pair of the first
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, combinations

import numpy as np
import torch

from prunec.latency.latency import ROUNDS, SECONDS, Pieces, Workload, work_of
from prunec.latency.table import LatencyTable
from prunec.measure import cost
from prunec.measure.figures import Progress
from prunec.targets import Target, device_of


def beside(
    base: LatencyTable,
    first: Workload,
    others: Sequence[Workload],
    target: Target,
    *,
    rounds: int = ROUNDS,
    progress: Progress = lambda step: None,
) -> list[LatencyTable]:
    """Tables of other policies on the same model: the blocks of `base`, their own sites timed now.

    Args:
        base: the table of the first.
        first: what `base` was measured of.
        others: the same model and inputs with other policies.
        target: what compiles the pieces.
        rounds: interleaved rounds of the measurement.
        progress: called with each step's name.
    """
    if not others:
        return []
    plain, pieces = Pieces(first), [Pieces(each) for each in others]
    wanted = tuple(dict.fromkeys(pair for each in pieces for pair in each.pairs))
    calls = plain.pair_calls(wanted, target)
    for number, each in enumerate(pieces):
        own = each.pair_calls(each.pairs, target)
        calls |= {f"{number} {name}": call for name, call in own.items()}
    progress("compile a site of each policy")
    with torch.no_grad():
        for call in calls.values():
            call()
    progress(f"time {len(calls)} pieces")
    device = device_of(first.dense)
    timings = cost.measure(calls, device=device, rounds=rounds, warmup=1, seconds=SECONDS)
    found = []
    for number, (each, workload) in enumerate(zip(pieces, others, strict=True)):
        names = {pair: f"{number} pair@{pair[0]}>{pair[1]}" for pair in each.pairs}
        more = {
            (n, k): _pair(base, n, k) * (cost.ratio(timings, name, f"pair@{n}>{k}") - 1)
            for (n, k), name in names.items()
        }
        facts = work_of(workload, str(base.work.get("target")))
        taken = tuple(known + added for known, added in zip(base.sites, _added(base, more), strict=True))
        found.append(
            replace(
                base,
                work={**base.work, "sites": facts["sites"], "mode": facts["mode"]},
                sites=taken,
                spread=statistics.median(timings[name].spread for name in names.values()),
                samples={**base.samples, **{name: timings[name].samples for name in names.values()}},
            )
        )
    return found


def _added(table: LatencyTable, more: Mapping[tuple[int, int], float]) -> tuple[float, ...]:
    """What a site takes more than the first policy's: always, for each token that enters, of what it saves.

    None of these is below zero, whatever the noise of the measurement: nothing is simpler than the control.
    """
    seconds = np.array(list(more.values()))
    saved = [_block(table, n) - _block(table, k) for n, k in more]
    features = np.array([[1.0, n, late] for (n, _), late in zip(more, saved, strict=True)])
    best, least = np.zeros(3), float(np.square(seconds).sum())
    for places in chain.from_iterable(combinations(range(3), size) for size in (1, 2, 3)):
        values = np.zeros(3)
        values[list(places)] = np.linalg.lstsq(features[:, list(places)], seconds, rcond=None)[0]
        error = float(np.square(features @ values - seconds).sum())
        if values.min() >= 0 and error < least:
            best, least = values, error
    always, entered, late = map(float, best)
    return always, entered, 0.0, late


def _pair(table: LatencyTable, entering: int, leaving: int) -> float:
    """Seconds of two blocks with a site of the first policy between them."""
    n, k = (max(length, table.counts[-1]) for length in (entering, leaving))
    return _block(table, n) + _block(table, k) + table.site(n, k)


def _block(table: LatencyTable, length: int) -> float:
    """Seconds of a block in the middle; a length below the table's counts as its shortest."""
    return table.block(len(table.blocks) // 2, max(length, table.counts[-1]))
