"""Dense and pruned on every target that runs here, in one interleaved run for each model and batch.

    python benchmarks/targets.py                                     # ViT-S and ViT-B, batches of 1 and 8
    python benchmarks/targets.py --models vit_small_patch16_224 --batches 1

The figure that counts is pruned on its best target over dense on its best target. Weights are random: time
does not depend on them. Exits with 1 where a limit is missed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from common import RESULTS, Check, Row, conclude, fresh, images, show, timm_vit, write

from prunec import targets
from prunec.api.on_targets import fastest_target
from prunec.compiler import compile_source
from prunec.frontend import sources
from prunec.measure import cost
from prunec.policy.lowering import choose
from prunec.policy.policy import Policy

MODELS = ("vit_small_patch16_224", "vit_base_patch16_224")
BATCHES = (1, 8)
MOST = 0.58  # of the fastest dense time


def measured(name: str, policy: Policy, batch: int, rounds: int, names: tuple[str, ...]) -> Row:
    """One model at one batch."""
    fresh()
    model = timm_vit(name)
    x = images(batch, model)
    example = images(max(batch, 2), model)
    source = sources.from_module(model, example)
    compiled = compile_source(source, policy, lowering=choose(policy, batch=batch))
    found = fastest_target(
        compiled.dense, compiled.pruned, (x,), rounds=rounds, progress=lambda step: print(step, flush=True),
        names=names,
    )  # fmt: skip
    table = found.table
    for target in table.targets:
        print(target, flush=True)
    checks = (
        Check("pruned on its best target / dense on its best", 1 / table.speedup, most=MOST),
        Check("pruned / dense on the target taken", 1 / table.same_target),
        Check("targets that disagree", sum(not one.agrees and not one.refused for one in table.targets), 0),
    )
    settings = {"policy": policy.name, "batch": batch, "taken": found.name, "dense_on": table.fastest_dense}
    return Row(name, settings, {}, checks, details=table.as_dict())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=MODELS, help="names of timm")
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--policy", default="evit")
    parser.add_argument("--keep", type=float, default=0.125, help="share that survives all sites")
    parser.add_argument("--targets", nargs="+", default=tuple(targets.TARGETS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS / "targets_cpu.json")
    options = parser.parse_args()
    policy = Policy.load(options.policy, keep=options.keep)
    rows: list[Row] = []
    with cost.threads(options.threads):
        for name in options.models:
            for batch in options.batches:
                rows.append(measured(name, policy, batch, options.rounds, tuple(options.targets)))
                write(options.output, {"targets": rows}, torch.device("cpu"))
    show("targets", rows)
    return conclude(options.output, {"targets": rows})


if __name__ == "__main__":
    sys.exit(main())
