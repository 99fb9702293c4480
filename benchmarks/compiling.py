"""How long presets take to compile region by region on the CPU, beside the dense model under torch.compile.

    python benchmarks/compiling.py                         # every preset, in the mode that suits it
    python benchmarks/compiling.py --presets evit dynamic:packed --depth 6

Each is compiled once, by one worker and without PyTorch's caches, for a batch of 8. CPU seconds of the
process and of the compilers that it starts are compared: what else the machine does hardly changes them.
Exits with 1 where a limit is missed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, Check, Row, conclude, fresh, images, show, timm_vit, write
from torch import nn

from prunec.compiler import compile_source
from prunec.errors import PruneError
from prunec.frontend import sources
from prunec.measure import cost
from prunec.policy.lowering import choose
from prunec.policy.policy import Policy, presets
from prunec.targets.inductor import Inductor

MODEL = "vit_small_patch16_224"
MOST = 1.5  # times the dense model's
MOST_PACKED = 30.0  # seconds
BATCH = 8


def first_call(call: Callable[..., Any], x: torch.Tensor) -> tuple[float, float]:
    """Wall and CPU seconds of the first call."""
    fresh()
    wall, cpu = time.perf_counter(), _cpu()
    with torch.no_grad():
        call(x)
    return time.perf_counter() - wall, _cpu() - cpu


def _cpu() -> float:
    return sum(os.times()[:4])


def compiled(model: nn.Module, name: str, dense: float) -> Row:
    """One preset, `name` or `name:mode`."""
    preset, _, mode = name.partition(":")
    policy, x = Policy.load(preset), images(BATCH, model)
    settings: dict[str, Any] = {"batch": BATCH, "mode": mode or "as it suits"}
    try:
        source = sources.from_module(model, images(2, model))
        lowering = choose(policy, mode or None, attention="rows" if mode == "packed" else None)
        program = compile_source(source, policy, calibrate=False, lowering=lowering).pruned
    except PruneError as error:
        return Row(name, settings, {}, error=error.what)
    wall, cpu = first_call(Inductor(regional=True).lower(program), x)
    checks = [Check("CPU seconds / dense", cpu / dense, most=MOST), Check("CPU seconds", cpu)]
    checks.append(Check("seconds", wall, most=MOST_PACKED if mode == "packed" else None))
    return Row(name, settings, {}, tuple(checks))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = [*presets(), "dynamic:packed", "svit:packed"]
    parser.add_argument("--presets", nargs="+", default=every, help="names, with a mode: svit:packed")
    parser.add_argument("--depth", type=int, default=12, help="blocks")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS / "compiling_cpu.json")
    options = parser.parse_args()
    torch._inductor.config.force_disable_caches = True
    torch._inductor.config.compile_threads = 1
    model = timm_vit(MODEL, depth=options.depth)
    device = torch.device("cpu")
    with cost.threads(options.threads):
        first_call(torch.compile(nn.Linear(8, 8)), torch.randn(3, 8))  # what the first use takes
        wall, dense = first_call(torch.compile(model), images(BATCH, model))
        checks = (Check("CPU seconds", dense), Check("seconds", wall))
        rows = [Row("dense under torch.compile", {"batch": BATCH, "blocks": options.depth}, {}, checks)]
        for name in options.presets:
            rows.append(compiled(model, name, dense))
            print(rows[-1].as_dict(), flush=True)
            write(options.output, {"compiling": rows}, device)
    show("compiling", rows)
    return conclude(options.output, {"compiling": rows})


if __name__ == "__main__":
    sys.exit(main())
