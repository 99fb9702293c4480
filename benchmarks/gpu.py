"""The GPU figures of docs/guide/measured.md; one command, ten minutes, on any machine with CUDA.

    PYTHONPATH=. python benchmarks/gpu.py

Needs torch with CUDA, timm, transformers and the dependencies of prunec (pydantic, networkx, platformdirs and
others), but not prunec installed. Where there is no package index, put their wheels on PYTHONPATH.

    parity     compiled against eager float32 at odd token counts, where attention kernels went wrong before
    stability  graph breaks, and recompilations over batches
    capture    the captured dense program beside the original model, both compiled
    speed      dense, pruned, ideal and random, compiled; and that nothing waits for the host
    graphs     dense and pruned again with mode="reduce-overhead" (CUDA graphs)
    resize     pruned beside the dense model on a smaller picture of the same FLOPs
    targets    dense and pruned on every target that runs there, in float32

A row that fails is recorded with its reason and the others go on. Rows that would begin after --seconds are
left out, and said so. Exits with 1 where there is no CUDA, a limit is missed or a row failed.
"""

from __future__ import annotations

import argparse
import copy
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import torch
from common import (
    KEEP,
    MOST_APART,
    POLICY,
    RESULTS,
    Check,
    Row,
    conclude,
    controlled,
    fresh,
    hugging_face_vit,
    images,
    lowered,
    overhead,
    settings,
    show,
    speed,
    stability,
    timed,
    timm_vit,
    write,
)
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from prunec.api.on_targets import fastest_target
from prunec.ir.program import Program
from prunec.measure import cost
from prunec.measure.evaluate import output
from prunec.measure.figures import flops
from prunec.policy.policy import Policy
from prunec.targets import Flat
from prunec.verify.certificate import relative_difference

BATCHES = (8, 64, 1, 256)
GRAPH_BATCHES = (8, 1)  # at 64 the launches that a graph saves no longer count
MODELS = ("vit_small_patch16_224", "vit_base_patch16_224")
HUGGING_FACE = "transformers ViT-S/16"
COUNTS = (98, 137, 197)  # tokens after a site: none of them a multiple of eight


@dataclass(frozen=True)
class Job:
    """One row to be measured."""

    section: str
    name: str
    make: Callable[[], Row]


def jobs(device: torch.device, rounds: int) -> list[Job]:
    """Everything to measure, what matters most first."""
    listed = [Job("parity", f"{tokens} tokens", partial(parity, tokens, device)) for tokens in COUNTS]
    for name in MODELS:
        listed.append(Job("stability", name, partial(compiled_once, name, device)))
        listed += [Job("speed", name, partial(compiled, name, device, batch, rounds)) for batch in BATCHES]
        listed += [
            Job("graphs", name, partial(replayed, name, device, batch, rounds)) for batch in GRAPH_BATCHES
        ]
        listed.append(Job("resize", name, partial(resized, name, device, 64, rounds)))
        listed.append(Job("capture", name, partial(captured, name, device, rounds)))
    listed += [
        Job("targets", MODELS[0], partial(on_targets, MODELS[0], device, each, rounds)) for each in (1, 64)
    ]
    listed.append(Job("capture", HUGGING_FACE, partial(captured, HUGGING_FACE, device, rounds)))
    return listed


@lru_cache(maxsize=1)
def prepared(name: str, device: torch.device) -> tuple[nn.Module, dict[str, Program]]:
    """A model in bfloat16 and its programs, kept until the next model comes."""
    fresh()
    model = timm_vit(name).to(device, torch.bfloat16)
    return model, controlled(model, Policy.load(POLICY).override(keep_per_site=KEEP))


def compiled_once(name: str, device: torch.device) -> Row:
    model, programs = prepared(name, device)
    return stability(name, programs["pruned"], range(2, 9), model)


def captured(name: str, device: torch.device, rounds: int) -> Row:
    model = hugging_face_vit() if name == HUGGING_FACE else timm_vit(name)
    return overhead(name, model.to(device, torch.bfloat16), 8, rounds)


def compiled(name: str, device: torch.device, batch: int, rounds: int) -> Row:
    """Dense, pruned, ideal and random, and whether one call of the pruned one makes the host wait."""
    model, programs = prepared(name, device)
    x = images(batch, model)
    row = speed(name, programs, x, rounds)
    waits = Check("host synchronisations", synchronisations(programs["pruned"], x), most=0)
    return replace(row, checks=(*row.checks, waits))


def replayed(name: str, device: torch.device, batch: int, rounds: int) -> Row:
    """Dense, pruned and ideal as CUDA graphs, each made for this batch alone."""
    model, programs = prepared(name, device)
    x = images(batch, model)
    kinds = ("dense", "pruned", "ideal")
    options = {"mode": "reduce-overhead", "fullgraph": True, "dynamic": False}
    calls = {kind: torch.compile(programs[kind].module, **options) for kind in kinds}
    timings = timed(calls, dict.fromkeys(kinds, x), rounds)
    checks = (
        Check("speed-up: dense / pruned", cost.ratio(timings, "dense", "pruned")),
        Check("ideal / pruned", cost.ratio(timings, "ideal", "pruned")),
    )
    return Row(name, settings(x, mode="reduce-overhead"), timings, checks)


def resized(name: str, device: torch.device, batch: int, rounds: int) -> Row:
    """What pruning saves beside what a smaller picture does."""
    model, programs = prepared(name, device)
    side = side_of_equal_flops(name, flops(programs["pruned"]))
    smaller = timm_vit(name, img_size=side).to(device, torch.bfloat16)
    x = images(batch, model)
    calls = {
        "dense": lowered(programs["dense"]),
        "pruned": lowered(programs["pruned"]),
        "smaller picture": torch.compile(smaller, fullgraph=True),
    }
    inputs = {"dense": x, "pruned": x.clone(), "smaller picture": x[..., :side, :side].contiguous()}
    timings = timed(calls, inputs, rounds)
    checks = (
        Check("speed-up: dense / pruned", cost.ratio(timings, "dense", "pruned")),
        Check("smaller picture / pruned", cost.ratio(timings, "smaller picture", "pruned")),
    )
    return Row(name, settings(x, side=side), timings, checks)


def side_of_equal_flops(name: str, wanted: float) -> int:
    """The side of the square picture, in pixels, for which the dense model's FLOPs are the nearest."""

    def apart(side: int) -> float:
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            timm_vit(name, img_size=side)(torch.empty(1, 3, side, side))
        return abs(counter.get_total_flops() - wanted)

    return min(range(96, 225, 16), key=apart)


def on_targets(name: str, device: torch.device, batch: int, rounds: int) -> Row:
    """Dense and pruned on each target, in one interleaved run."""
    fresh()
    model = timm_vit(name).to(device)
    x = images(batch, model)
    programs = controlled(model, Policy.load(POLICY).override(keep_per_site=KEEP))
    table = fastest_target(
        programs["dense"], programs["pruned"], (x,), rounds=rounds, progress=lambda step: None
    ).table
    checks = (Check("pruned on its best target / dense on its best", 1 / table.speedup),)
    return Row(name, settings(x, taken=table.taken), {}, checks, details=table.as_dict())


# --- checks that only a GPU has ---------------------------------------------------------------------


def parity(tokens: int, device: torch.device) -> Row:
    """Compiled programs against eager ones in float32, where so many tokens are left.

    In bfloat16 a score may round the other way and another token is kept, which is no error: there the plain
    slices are compared, which attend to as many tokens; the error of eager bfloat16 stands beside theirs.
    """
    fresh()
    model = timm_vit(MODELS[0]).to(device)
    policy = Policy.load("norm").override(keep=(tokens - 1) / 196, blocks=(3,))
    exact, half = (
        controlled(copy.deepcopy(model).to(dtype), policy) for dtype in (torch.float32, torch.bfloat16)
    )
    x = images(8, model)
    pruned, ideal = (output(exact[kind].module, x) for kind in ("pruned", "ideal"))
    checks = (
        apart("pruned, float32", lowered(exact["pruned"]), x, pruned),
        apart("ideal, bfloat16", lowered(half["ideal"]), x.bfloat16(), ideal),
        Check(
            "ideal, bfloat16, eager", relative_difference(output(half["ideal"].module, x.bfloat16()), ideal)
        ),
    )
    return Row(f"{MODELS[0]}, {tokens} tokens", {"batch": len(x)}, {}, checks)


def apart(what: str, compiled: Flat, x: Tensor, expected: Tensor) -> Check:
    """The largest relative difference to an eager float32 output."""
    return Check(what, relative_difference(output(compiled, x), expected), most=MOST_APART[x.dtype])


def synchronisations(program: Program, x: Tensor) -> int:
    """1 where a call of the compiled program makes the host wait for the device, else 0."""
    call = lowered(program)
    with torch.no_grad():
        call(x)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            call(x)
        except RuntimeError:
            return 1
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return 0


# --- the run ----------------------------------------------------------------------------------------


def measured(listed: list[Job], seconds: float) -> dict[str, list[Row]]:
    """The rows by section; a failure becomes a row, and no row begins after the time is over."""
    sections: dict[str, list[Row]] = {}
    end = time.perf_counter() + seconds
    for job in listed:
        start = time.perf_counter()
        if start > end:
            print(f"left out, {seconds:g} s are over: {job.section}, {job.name}")
            continue
        try:
            row = job.make()
        except Exception as error:  # noqa: BLE001  one row must not cost the others
            lines = str(error).strip().splitlines() or [""]
            row = Row(job.name, {}, {}, error=f"{type(error).__name__}: {lines[0]}")
        sections.setdefault(job.section, []).append(row)
        print(f"{job.section}, {job.name}: {time.perf_counter() - start:.0f} s", flush=True)
    return sections


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=50, help="samples of each callable (default: 50)")
    parser.add_argument("--seconds", type=float, default=570, help="begin no row after this (default: 570)")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/gpu_DEVICE.json")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("This benchmark needs a CUDA device, and PyTorch sees none here.", file=sys.stderr)
        return 1
    device = torch.device("cuda", torch.cuda.current_device())
    slug = re.sub(r"\W+", "_", torch.cuda.get_device_name(device)).strip("_").lower()
    path = options.output or RESULTS / f"gpu_{slug}.json"
    sections = measured(jobs(device, options.rounds), options.seconds)
    for title, rows in sections.items():
        show(title, rows)
    write(path, sections, device)
    return conclude(path, sections)


if __name__ == "__main__":
    sys.exit(main())
