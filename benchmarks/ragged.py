"""Images that keep different numbers of tokens: what each mode costs in time and in memory.

    python benchmarks/ragged.py --only time                  # the CPU, one thread
    python benchmarks/ragged.py --only memory
    python benchmarks/ragged.py --device cuda --dtype float16

    time    ViT-S, a batch of 32 of which each image keeps its own share of patches, drawn from 0.2..0.8,
            before the first block: packed and padded beside dense and beside the ideal, which is a program
            that keeps the same number of tokens altogether, as many of every image (`static`), also without
            choosing any (`slices`)
    memory  the most that one call holds beyond weights and inputs, by mode; a training step in mode masked

On the CPU memory is what the system says the process held at most (its resident set, reset before the call);
freed tensors are given back at once. Exits with 1 where a limit is missed.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import (
    RESULTS,
    Check,
    Row,
    conclude,
    fresh,
    images,
    lowered,
    settings,
    show,
    timed,
    timm_vit,
    write,
)
from torch import Tensor, fx, nn

from prunec import ops
from prunec.compiler import compile_source
from prunec.frontend import sources
from prunec.ir.program import Program, ProgramModule
from prunec.measure import cost
from prunec.passes import run_passes
from prunec.passes.controls import Slices
from prunec.policy.lowering import choose
from prunec.policy.policy import Policy

BATCH, LEAST, MOST = 32, 0.2, 0.8
MOST_OF_IDEAL = 1.10  # packed / the same number of tokens at uniform counts
MOST_OF_PADDED = 0.85  # "clearly below"
MOST_TRAINING = 1.15  # memory of a masked training step / a dense one


def policy(**selector: Any) -> Policy:
    """Patches with the largest norm, before the first block."""
    return Policy.load(
        {
            "version": 1, "name": "ragged", "summary": "Each image keeps its own share.",
            "sites": {"where": "before_block", "blocks": [0]}, "scorer": {"kind": "norm"},
            "selector": selector, "fate": "drop",
        }
    )  # fmt: skip


def programs(model: nn.Module, x: Tensor) -> dict[str, Program]:
    """Dense, uniform, padded and packed programs; all but dense keep as many tokens of the batch."""
    source = sources.from_module(model)
    kept = shares(len(x))
    ragged = policy(kind="threshold", keep_per_site=0.5)
    made = {}
    for mode in ("padded", "packed"):
        compiled = compile_source(source, ragged, calibrate=False, lowering=choose(ragged, mode))
        made["dense"] = compiled.dense
        made[mode] = with_counts(compiled.pruned, x, kept)
    uniform = policy(kind="top_k", keep_per_site=float(kept.float().mean()) / 196)
    made["static"] = compile_source(source, uniform).pruned
    made["slices"] = run_passes((Slices(),), made["static"])
    return made


def shares(batch: int) -> Tensor:
    """How many of 196 patches each image keeps: [B]."""
    random = torch.rand(batch, generator=torch.Generator().manual_seed(0))
    return (196 * (LEAST + (MOST - LEAST) * random)).round().long()


def with_counts(program: Program, x: Tensor, kept: Tensor) -> Program:
    """The program with a threshold for each image of the batch, so that it keeps as many as wanted."""
    reader = Scores(program.module)
    with torch.no_grad():
        reader.run(x)
    ordered = reader.found[:, 1:].sort(dim=1, descending=True).values  # without the class token
    rows = torch.arange(len(x), device=x.device)
    kept = kept.to(x.device)
    between = (ordered[rows, kept - 1] + ordered[rows, kept]) / 2
    program.module.get_submodule("prunec.site_0").threshold = between.unsqueeze(1)  # [B, 1]
    return program


class Scores(fx.Interpreter):
    """Runs a program and keeps the scores of its site."""

    found: Tensor

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """As it is."""
        if target is ops.threshold_mask:
            self.found = args[0]
        return super().call_function(target, args, kwargs)


# --- time -----------------------------------------------------------------------------------------


def time(model: nn.Module, x: Tensor, rounds: int) -> Row:
    """All programs, compiled, in one interleaved run."""
    fresh()
    made = programs(model, x)
    calls = {name: lowered(program) for name, program in made.items()}
    copies = {name: x.clone() for name in calls}  # lowering marks its inputs
    timings = timed(calls, copies, rounds)
    kept = shares(len(x))
    checks = (
        Check("speed-up: dense / packed", cost.ratio(timings, "dense", "packed")),
        Check("packed / ideal (slices)", cost.ratio(timings, "packed", "slices"), most=MOST_OF_IDEAL),
        Check("packed / uniform (static)", cost.ratio(timings, "packed", "static"), most=MOST_OF_IDEAL),
        Check("packed / padded", cost.ratio(timings, "packed", "padded"), most=MOST_OF_PADDED),
    )
    tokens = {"tokens": int(kept.sum()) + len(x), "of": 197 * len(x), "longest": int(kept.max()) + 1}
    return Row("timm vit_small_patch16_224", settings(x, **tokens), timings, checks)


# --- memory ---------------------------------------------------------------------------------------


def memory(model: nn.Module, x: Tensor) -> list[Row]:
    """The most that one compiled call holds, and one training step."""
    fresh()
    made = programs(model, x)
    held = {}
    for name, program in made.items():
        call = lowered(program)
        with torch.no_grad():
            held[name] = peak(lambda call=call: call(x), x.device)
    checks = [
        *(Check(f"MiB, {name}", size / 2**20) for name, size in held.items()),
        *(
            Check(f"{name} / dense", held[name] / held["dense"], most=1.0)
            for name in ("static", "padded", "packed")
        ),
        Check("packed / padded", held["packed"] / held["padded"], most=1.0),
    ]
    inference = Row("timm vit_small_patch16_224, one call", settings(x), {}, tuple(checks))
    return [inference, training(model, x[: max(1, len(x) // 4)])]


def training(model: nn.Module, x: Tensor) -> Row:
    """Forward and backward of the dense model and of policy svit in mode masked, operator by operator."""
    source, svit = sources.from_module(model), Policy.load("svit")
    compiled = compile_source(source, svit, calibrate=False, lowering=choose(svit, "masked"))
    held = {}
    for name, program in (("dense", compiled.dense), ("masked", compiled.pruned)):
        module = ProgramModule(program)
        held[name] = peak(lambda module=module: step(module, x), x.device)
    checks = (
        *(Check(f"MiB, {name}", size / 2**20) for name, size in held.items()),
        Check("masked / dense", held["masked"] / held["dense"], most=MOST_TRAINING),
    )
    return Row("timm vit_small_patch16_224, a training step", settings(x, policy="svit"), {}, checks)


def step(module: nn.Module, x: Tensor) -> None:
    module(x).square().mean().backward()
    for parameter in module.parameters():
        parameter.grad = None


def peak(call: Callable[[], object], device: torch.device) -> float:
    """The most bytes that a call holds beyond what was held before it."""
    call()  # compiles, and whatever else happens once
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return float(torch.cuda.max_memory_allocated() - before)
    found = []
    for _ in range(3):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
        before = resident("VmRSS")
        call()
        found.append(resident("VmHWM") - before)
    return float(sorted(found)[1])


def resident(what: str) -> int:
    """A line of the process's own status, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(what))


# --- the command line -----------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--rounds", type=int, default=10, help="samples of each callable (default: 10)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="time,memory", help="sections, such as memory")
    parser.add_argument("--output", type=Path, help="default: results/ragged_DEVICE.json")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cpu" and options.only == "memory" and _FREES not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, _FREES: "65536"})
    output = options.output or RESULTS / f"ragged_{device.type}.json"
    model = timm_vit().to(device, getattr(torch, options.dtype))
    x = images(options.batch, model)
    sections: dict[str, list[Row]] = {}
    with cost.threads(options.threads):
        for name in options.only.split(","):
            rows = [time(model, x, options.rounds)] if name == "time" else memory(model, x)
            show(name, rows)
            sections[name] = rows
            write(output, {name: rows}, device)
    return conclude(output, sections)


#: glibc reads it when a process starts: what is larger goes back to the system as soon as it is freed.
_FREES = "MALLOC_MMAP_THRESHOLD_"


if __name__ == "__main__":
    sys.exit(main())
