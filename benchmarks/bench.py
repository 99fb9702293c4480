"""The CPU figures of docs/guide/measured.md; one command, one thread, a few minutes on a quiet machine.

    python benchmarks/bench.py                       # everything
    python benchmarks/bench.py --only b --rounds 5   # one section; the others stay in the record

    a  what capturing costs: the captured dense program beside the original model, both compiled
    b  what pruning gains: dense, pruned, ideal (plain slices) and random, all compiled
    c  graph breaks, and recompilations over batches
    d  how long a transform takes by stage, beside torch.export, over depths
    e  what leaving out unread rows gains: dense and policy none, both compiled

Exits with 1 where a limit is missed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from common import (
    KEEP,
    POLICY,
    RESULTS,
    Check,
    Row,
    conclude,
    controlled,
    exact,
    fresh,
    hugging_face_vit,
    images,
    overhead,
    show,
    speed,
    stability,
    timm_vit,
    write,
)

from prunec import compat
from prunec.compiler import compile_source
from prunec.frontend import sources
from prunec.ir.program import Stage
from prunec.measure import cost
from prunec.measure.cost import Timing
from prunec.policy.policy import Policy

BATCH = 8
DEPTHS = (6, 12, 24)
MOST_REWRITING = 2.0  # seconds, for 24 blocks
MOST_GROWTH = 1.2  # rewriting time per block, deepest over shallowest: 1 or less is linear
REPEATS = 3
MODELS = {"timm vit_small_patch16_224": timm_vit, "transformers ViT-S/16": hugging_face_vit}


def capturing(rounds: int) -> list[Row]:
    return [overhead(name, build(), BATCH, rounds) for name, build in MODELS.items()]


def pruning(rounds: int) -> list[Row]:
    model = timm_vit()
    return [speed("timm vit_small_patch16_224", controlled(model, policy()), images(BATCH, model), rounds)]


def compiling(rounds: int) -> list[Row]:
    rows = []
    for name, build in MODELS.items():
        model = build()
        pruned = compile_source(sources.from_module(model), policy()).pruned
        rows.append(stability(name, pruned, range(2, BATCH + 1), model))
    return rows


def transforming(rounds: int) -> list[Row]:
    """Stage times over depths; a small model goes first, so that imports are not counted."""
    compile_source(sources.from_module(timm_vit("test_vit")), policy())
    rows, per_block = [], {}
    for depth in DEPTHS:
        timings = _stages(depth, repeats=min(rounds, REPEATS))
        rewriting = timings["rewriting"].median
        per_block[depth] = rewriting / depth
        checks: tuple[Check, ...] = ()
        if depth == DEPTHS[-1]:
            growth = per_block[depth] / per_block[DEPTHS[0]]
            checks = (
                Check("rewriting, seconds", rewriting, most=MOST_REWRITING),
                Check(f"rewriting per block / at depth {DEPTHS[0]}", growth, most=MOST_GROWTH),
            )
        about = {"batch": 2, "dtype": "float32", "policy": POLICY}
        rows.append(Row(f"vit_large_patch16_224, depth {depth}", about, timings, checks))
    return rows


def _stages(depth: int, repeats: int) -> dict[str, Timing]:
    """Seconds by stage. Rewriting is all but the proof and capture, which is torch.export and little else."""
    source = sources.from_module(timm_vit("vit_large_patch16_224", depth=depth))
    samples: dict[str, list[float]] = {}
    for _ in range(repeats):
        fresh()
        start = time.perf_counter()
        with torch.no_grad():
            compat.export(source.module, source.args, source.kwargs, batch=len(source.args[0]))
        samples.setdefault("torch.export alone", []).append(time.perf_counter() - start)
        stages = compile_source(source, policy()).pruned.stages
        for stage in stages:
            samples.setdefault(stage.name, []).append(stage.seconds)
        samples.setdefault("rewriting", []).append(_rewriting(stages))
    return {name: Timing(name, tuple(values)) for name, values in samples.items()}


def _rewriting(stages: Sequence[Stage]) -> float:
    return sum(stage.seconds for stage in stages if stage.name not in ("capture", "certify"))


def leaving_out(rounds: int) -> list[Row]:
    return [exact(name, build(), BATCH, rounds) for name, build in MODELS.items()]


def policy() -> Policy:
    return Policy.load(POLICY).override(keep_per_site=KEEP)


@dataclass(frozen=True)
class Section:
    """A letter on the command line."""

    title: str
    run: Callable[[int], list[Row]]


SECTIONS = {
    "a": Section("a  compiled: captured dense program beside the original model", capturing),
    "b": Section(f"b  compiled: {POLICY}, keep={KEEP:g}, beside dense and both controls", pruning),
    "c": Section("c  graph breaks and recompilations", compiling),
    "d": Section("d  time to transform, by stage", transforming),
    "e": Section("e  compiled: policy none beside dense", leaving_out),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20, help="samples of each callable (default: 20)")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, such as a,c")
    parser.add_argument("--output", type=Path, default=RESULTS / "bench_cpu.json")
    options = parser.parse_args()
    chosen = options.only.split(",")
    if unknown := set(chosen) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")

    sections: dict[str, list[Row]] = {}
    with cost.threads(options.threads):
        for letter in chosen:
            rows = SECTIONS[letter].run(options.rounds)
            show(SECTIONS[letter].title, rows)
            sections[letter] = rows
            write(options.output, {letter: rows}, torch.device("cpu"))
    return conclude(options.output, sections)


if __name__ == "__main__":
    sys.exit(main())
