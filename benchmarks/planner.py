"""Whether the planner keeps its word: what it predicts, what it chooses, and what that costs in accuracy.

    python benchmarks/planner.py                        # all of it, one thread: about half an hour
    python benchmarks/planner.py --only prediction --device cuda

    prediction  ViT-S, batch 1 and 8: 12 random schedules of 0 to 3 sites, their share of the dense
                time predicted from the latency table, then built and timed beside the dense model; and the
                same for the model that time is proportional to FLOPs
    decision    ViT-T, sites at two blocks, 6 lengths: the plan for each of several budgets against all 28
                schedules, all built and timed in one interleaved run
    accuracy    the Shapes classifier, five seeds of images: the plan for a budget against policy evit at its
                own blocks, at the one rate for which that was measured to take as long

Every table is measured anew. Exits with 1 where a limit is missed.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, Check, Row, conclude, fresh, show, write

from prunec import targets
from prunec.calibration.inputs import call_on
from prunec.compiler import compile_recognised, recognise
from prunec.data import shapes
from prunec.frontend import sources
from prunec.frontend.sources import ImageSet, Source
from prunec.ir.program import Program, Recognised
from prunec.latency import latency
from prunec.latency.table import LatencyTable
from prunec.measure import cost, evaluate, figures
from prunec.planner.planned import Request, Search, explore, planned, workshop_of
from prunec.planner.planning import decide
from prunec.planner.workshop import Candidate, described
from prunec.policy.lowering import choose
from prunec.policy.policy import Policy
from prunec.schedules.goal import Goal
from prunec.schedules.schedule import Schedule, scheduled
from prunec.schedules.search import Choice
from prunec.targets import Flat

POLICY = Policy.load("evit")
SCHEDULES, MOST_SITES = 12, 3
MEAN_ERROR, WORST_ERROR = 0.05, 0.12
BUDGETS, REGRET = (0.5, 0.6, 0.7, 0.8), 1.03
SEEDS, SHARES, TESTED = 5, (0.5, 0.45), 512
RATES = (0.8, 0.7, 0.6, 0.5, 0.45, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15)  # of uniform schedules
INDUCTOR = targets.load("inductor")


# --- prediction -----------------------------------------------------------------------------------


def prediction(device: torch.device, batch: int, rounds: int) -> Row:
    """How far predictions are from what the same schedules take once they are built."""
    fresh()
    source, dense = model("timm:vit_small_patch16_224", device)
    flat = dense.interface.with_batch(batch)
    table = measured_table(dense, flat)
    chance = random.Random(0)
    calls, predicted, flops = {"dense": INDUCTOR.lower(dense)}, {}, {}
    whole = figures.flops(dense)
    for number in range(SCHEDULES):
        schedule = drawn(table, number % (MOST_SITES + 1), dense, chance)
        pruned = built(source, dense, schedule)
        name = described(schedule) if schedule else f"no site ({number // (MOST_SITES + 1) + 1})"
        calls[name] = INDUCTOR.lower(pruned)
        predicted[name] = table.predict(*counts_of(dense, schedule))
        flops[name] = figures.flops(pruned) / whole * table.dense
    timings = timed(calls, flat, device, rounds)
    shares = {name: cost.ratio(timings, name, "dense") for name in predicted}  # the machine may have drifted
    errors = {name: seconds / table.dense / shares[name] - 1 for name, seconds in predicted.items()}
    by_flops = {name: seconds / table.dense / shares[name] - 1 for name, seconds in flops.items()}
    return Row(
        f"ViT-S, batch {batch}",
        {
            "batch": batch, "dtype": table.work["dtype"], "lengths": len(table.counts),
            "table_seconds": round(table.seconds), "table_spread": round(table.spread, 3),
        },
        timings,
        (
            Check("mean absolute error", mean_size(errors), most=MEAN_ERROR),
            Check("worst error", max(map(abs, errors.values())), most=WORST_ERROR),
            Check("proportional to FLOPs: mean", mean_size(by_flops)),
            Check("proportional to FLOPs: worst", max(map(abs, by_flops.values()))),
        ),
        details={"errors": errors, "errors_by_flops": by_flops},
    )  # fmt: skip


def drawn(table: LatencyTable, sites: int, dense: Recognised, chance: random.Random) -> dict[int, int]:
    """A random schedule: blocks 2 to L - 2, lengths of the table."""
    blocks = sorted(chance.sample(range(2, dense.anatomy.depth - 1), sites))
    return dict(zip(blocks, sorted(chance.sample(table.counts[1:], sites), reverse=True), strict=True))


# --- decision -------------------------------------------------------------------------------------


def decision(device: torch.device, batch: int, rounds: int) -> Row:
    """The plans for several budgets against every schedule of a small space."""
    fresh()
    source, dense = model("timm:vit_tiny_patch16_224", device)
    blocks, counts = (4, 8), (197, 160, 128, 96, 64, 48, 32)
    image_set = scenes(source, device)
    search = Search(sites=2, blocks=blocks, counts=counts)
    request = Request(POLICY, INDUCTOR, "inductor", batch, image_set, search=search, rounds=rounds)
    explored = explore(dense, request)
    decisions = {
        share: decide(explored.maps, Goal(latency=share), workshop_of(source, explored, request)).chosen
        for share in BUDGETS
    }
    everything = workshop_of(source, explored, request)
    (plan,) = explored.maps
    for schedule in space(blocks, counts[1:]):
        lengths, sites = counts_of(dense, schedule)
        everything.build(plan, Choice(plan.table.predict(lengths, sites), 0.0, lengths, sites))
    found = {tuple(one.schedule.items()): one for one in everything.measured()}
    checks = []
    for share, chosen in decisions.items():
        here = found[tuple(sorted(chosen.schedule.items()))]
        best = min((one for one in found.values() if one.loss <= here.loss), key=lambda one: one.share)
        checks.append(Check(f"time of the plan for {share} / best", here.share / best.share, most=REGRET))
        checks.append(Check(f"time of the plan for {share} / dense", here.share, most=share * REGRET))
    plans = {str(share): described(one.schedule) for share, one in decisions.items()}
    details = {"schedules": [row_of(one) for one in found.values()]}
    return Row(
        f"ViT-T, {len(found)} schedules", {"batch": batch, **plans}, {}, tuple(checks), details=details
    )


def space(blocks: Sequence[int], counts: Sequence[int]) -> Iterator[dict[int, int]]:
    """Every schedule with sites at two blocks or fewer."""
    first, second = blocks
    yield {}
    yield from ({block: n} for block in blocks for n in counts)
    yield from ({first: n, second: k} for n, k in itertools.combinations(counts, 2))


# --- accuracy -------------------------------------------------------------------------------------


def accuracy(device: torch.device, batch: int, rounds: int) -> Iterator[Row]:
    """The plan's accuracy beside that of the same policy at uniform rates that take as long."""
    fresh()
    source = sources.load("shapes")
    source.module.to(device)
    dense = recognise(source)
    flat = dense.interface.with_batch(batch)
    uniform = {rate: POLICY.override(keep_per_site=rate) for rate in RATES}
    programs = {rate: compiled(source, dense, policy) for rate, policy in uniform.items()}
    plans: dict[tuple[int, float], Program] = {}
    named: dict[tuple[int, float], Candidate] = {}
    for seed in range(SEEDS):
        calibration = images_of(seed, 64, device)
        request = Request(POLICY, INDUCTOR, "inductor", batch, calibration, rounds=rounds)
        explored = explore(dense, request)
        for share in SHARES:
            goal = Goal(latency=share)
            chosen = decide(explored.maps, goal, workshop_of(source, explored, request))
            plan = planned(explored, goal, chosen, {})
            plans[seed, share] = compiled(source, dense, plan.policy)
            named[seed, share] = chosen.chosen
    calls: dict[str, Flat] = {"dense": INDUCTOR.lower(dense)}
    calls |= {f"uniform {rate}": INDUCTOR.lower(program) for rate, program in programs.items()}
    calls |= {f"plan {key}": INDUCTOR.lower(program) for key, program in plans.items()}
    timings = timed(calls, flat, device, rounds)
    shares = {name: cost.ratio(timings, name, "dense") for name in calls}
    for share in SHARES:
        differences, facts = [], []
        for seed in range(SEEDS):
            test = images_of(SEEDS + seed, TESTED, device)
            taken = shares[f"plan {(seed, share)}"]
            rate = equal(taken, {rate: shares[f"uniform {rate}"] for rate in RATES})
            ours = right(plans[seed, share], dense, test)
            theirs = right(programs[rate], dense, test)
            differences.append(ours - theirs)
            facts.append(
                {
                    "seed": seed, "schedule": described(named[seed, share].schedule), "share": taken,
                    "accuracy": ours, "uniform_keep": rate, "uniform_share": shares[f"uniform {rate}"],
                    "uniform_accuracy": theirs,
                }
            )  # fmt: skip
        checks = (
            Check("accuracy of plan - uniform, mean of five seeds", statistics.mean(differences), least=0.0),
            Check("the least of the five", min(differences)),
            Check("accuracy of plans, mean", statistics.mean(one["accuracy"] for one in facts)),
            Check("accuracy of uniform, mean", statistics.mean(one["uniform_accuracy"] for one in facts)),
        )
        yield Row(f"Shapes, budget {share}", {"batch": batch}, {}, checks, details={"seeds": facts})


def equal(share: float, uniform: Mapping[float, float]) -> float:
    """The rate that takes as long as the plan or a little longer: the advantage is with the uniform one."""
    slower = {rate: taken for rate, taken in uniform.items() if taken >= share}
    return min(slower, key=lambda rate: slower[rate]) if slower else max(uniform, key=lambda r: uniform[r])


def right(program: Program, dense: Recognised, image_set: ImageSet) -> float:
    """The share of images whose class is found."""
    assert image_set.labels is not None
    found = [
        evaluate.output(lambda x: program.module(*call_on(dense, x)), part).argmax(1)
        for part in image_set.images.split(32)
    ]
    return float((torch.cat(found) == image_set.labels).double().mean())


# --- what they share ------------------------------------------------------------------------------


def model(spec: str, device: torch.device) -> tuple[Source, Program]:
    """A model with random weights, recognised."""
    torch.manual_seed(0)
    module = sources.load(spec, pretrained=False).module.to(device)
    source = sources.from_module(module)
    return source, recognise(source)


def measured_table(dense: Recognised, flat: tuple[Any, ...]) -> LatencyTable:
    """A latency table that is not taken from the cache."""
    lowering = choose(POLICY)
    place = latency.place_of(targets.device_of(dense))
    workload = latency.Workload(dense, POLICY, lowering, flat)
    return latency.measure(workload, INDUCTOR, place, latency.work_of(workload, "inductor"))


def built(source: Source, dense: Recognised, schedule: Schedule) -> Program:
    """The policy at a schedule."""
    return compiled(source, dense, scheduled(POLICY, dense.anatomy, schedule))


def compiled(source: Source, dense: Recognised, policy: Policy) -> Program:
    """A pruned and certified program."""
    return compile_recognised(source.module, dense, policy, lowering=choose(policy)).pruned


def counts_of(
    dense: Recognised, schedule: Schedule
) -> tuple[tuple[int, ...], tuple[tuple[int, int, int], ...]]:
    """The length of each block's stream, and the sites."""
    lengths, sites, now = [], [], dense.anatomy.tokens
    for block in range(dense.anatomy.depth):
        if block in schedule:
            sites.append((block, now, schedule[block]))
            now = schedule[block]
        lengths.append(now)
    return tuple(lengths), tuple(sites)


def timed(
    calls: Mapping[str, Flat], flat: tuple[Any, ...], device: torch.device, rounds: int
) -> dict[str, cost.Timing]:
    """All of them in one interleaved run, compiled first."""
    with torch.no_grad():
        for call in calls.values():
            call(*flat)
    runs = {name: (lambda call=call: call(*flat)) for name, call in calls.items()}
    return cost.measure(runs, device=device, rounds=rounds, seconds=600)


def scenes(source: Source, device: torch.device) -> ImageSet:
    """Images for a model that knows none."""
    from_shapes, _ = shapes.images(shapes.CLASSIFICATION, shapes.HELD_OUT_SEEDS[-1], 0, 32)
    size = source.args[0].shape[-2:]
    scaled = torch.nn.functional.interpolate(from_shapes, size=size, mode="bilinear")
    return ImageSet(shapes.normalize(scaled).to(device), None, "scenes of Shapes")


def images_of(seed: int, count: int, device: torch.device) -> ImageSet:
    """Scenes that nothing was trained on, of a seed of their own."""
    images, labels = shapes.images(shapes.CLASSIFICATION, shapes.HELD_OUT_SEEDS[100 + seed], 0, count)
    return ImageSet(shapes.normalize(images).to(device), labels, f"Shapes images of seed {seed}")


def row_of(one: Candidate) -> dict[str, Any]:
    """A measured schedule as plain data."""
    return {
        "schedule": described(one.schedule), "predicted": one.predicted, "share": one.share,
        "noise": one.noise, "loss": one.loss,
    }  # fmt: skip


def mean_size(errors: Mapping[str, float]) -> float:
    """The mean absolute error."""
    return statistics.mean(map(abs, errors.values()))


# --- the command line -----------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=9, help="samples of each callable (default: 9)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="prediction,decision,accuracy", help="sections, such as decision")
    parser.add_argument("--output", type=Path, help="default: results/planner_DEVICE.json")
    options = parser.parse_args()
    device, rounds = torch.device(options.device), options.rounds
    output = options.output or RESULTS / f"planner_{device.type}.json"
    run = {
        "prediction": lambda: [prediction(device, batch, rounds) for batch in (1, 8)],
        "decision": lambda: [decision(device, 8, rounds)],
        "accuracy": lambda: list(accuracy(device, 8, rounds)),
    }
    sections: dict[str, list[Row]] = {}
    with cost.threads(options.threads):
        for name in options.only.split(","):
            sections[name] = run[name]()
            show(name, sections[name])
            write(output, {name: sections[name]}, device)
    return conclude(output, sections)


if __name__ == "__main__":
    sys.exit(main())
