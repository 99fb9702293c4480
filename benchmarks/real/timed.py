"""Held to time, not to FLOPs: what presets lose of real weights at what their compiled programs take.

    python benchmarks/real/timed.py                      # cover and dynamic at three budgets, beside tome
    python benchmarks/real/timed.py cover --budgets 0.65 # fewer of them; tome has three points in any case

Programs are compiled by Inductor for a batch of eight photographs and timed in one interleaved run beside
the dense model. A preset's error at another's time is read off the line through its own points.

Writes results/real_time.json. Where a wheel cannot be had it says why, and exits with 0.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch
from budgets import Built, at_budget
from contenders import eager
from fetch import UnavailableError, default_cache
from judge import QUICK, ROOT, Judge, Row, prepared

from prunec import targets
from prunec.ir.program import Planned
from prunec.measure import cost, figures
from prunec.passes import lowering_passes, run_passes
from prunec.policy.lowering import choose
from prunec.policy.policy import Policy
from prunec.version import __version__

BATCH = 8
BUDGETS = (0.8, 0.65, 0.5)
BASELINE, PRESETS = "tome", ("cover", "dynamic")


def points(judge: Judge, presets: Sequence[str], budgets: Sequence[float], rounds: int) -> list[Row]:
    """Each preset at each budget: its time as a share of the dense model's, and its error."""
    bench, target = judge.benches["photographs"], targets.load("inductor")
    images = torch.cat(list(judge.exam.crops))[:BATCH]
    calls = {"dense": figures.bound(target.lower(bench.dense), (images,))}
    found: dict[str, Row] = {}
    for name in (BASELINE, *presets):
        for budget in BUDGETS if name == BASELINE else budgets:
            built = at_budget(Policy.load(name), budget, bench)
            lost = judge.exam.on_photographs(eager(built.program.module))
            found[f"{name} {budget}"] = {
                "preset": name,
                "flops": built.flops,
                **{measure: lost[measure].as_dict() for measure in ("l2", "class", "heatmap")},
            }
            calls[f"{name} {budget}"] = figures.bound(target.lower(for_batch(built)), (images,))
            print(f"built {name} at {built.flops:.0%} of the FLOPs, error {lost['l2'].mean:.3f}", flush=True)
    with torch.no_grad():
        for call in calls.values():
            call()
        timings = cost.measure(calls, device=images.device, rounds=rounds)
    for name, row in found.items():
        row["time"] = cost.ratio(timings, name, "dense")
        row["spread"] = cost.ratio_spread(timings, name, "dense")
    return list(found.values())


def for_batch(built: Built) -> Planned:
    """The program in the mode that suits a batch: packed where images keep different numbers of tokens."""
    if not built.policy.ragged:
        return built.program
    lowering = choose(built.policy, "packed", batch=BATCH, attention="rows")
    planned = dataclasses.replace(built.program.plan, lowering=lowering)
    return run_passes(lowering_passes(lowering), built.program.replace(plan=planned))


def at_time(rows: Sequence[Row], share: float) -> float | None:
    """The error at a share of the dense time, between the two points around it; None outside of them."""
    line = sorted((row["time"], row["l2"]["mean"]) for row in rows)
    for (before, high), (after, low) in itertools.pairwise(line):
        if before <= share <= after:
            return float(high + (low - high) * (share - before) / max(after - before, 1e-9))
    return None


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("presets", nargs="*", metavar="PRESET", default=list(PRESETS))
    parser.add_argument("--budgets", type=float, nargs="+", default=list(BUDGETS))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "real_time.json")
    options = parser.parse_args()
    with cost.threads(options.threads):
        try:
            judge, _ = prepared(options.cache, dataclasses.replace(QUICK, crops=6, calibration=64))
        except UnavailableError as error:
            print(f"skipped: {error}")
            return 0
        rows = points(judge, options.presets, options.budgets, options.rounds)
    own = [row for row in rows if row["preset"] == BASELINE]
    for row in rows:
        row[f"{BASELINE} at this time"] = at_time(own, row["time"])
        other = row[f"{BASELINE} at this time"]
        beside = "" if other is None else f", {BASELINE} at this time {other:.3f}"
        print(f"{row['preset']}: time {row['time']:.3f}, error {row['l2']['mean']:.3f}{beside}")
    about = {
        **cost.device_facts(torch.device("cpu")),
        "prunec": __version__,
        "date": date.today().isoformat(),
    }
    record = {**about, "batch": BATCH, "target": "inductor", "rows": rows}
    options.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
