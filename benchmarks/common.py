"""What the benchmarks share: models, interleaved rows, checks against limits, records and tables."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from prunec import targets
from prunec.capture.capture import capture
from prunec.compiler import compile_source
from prunec.frontend import sources
from prunec.ir.program import Program
from prunec.measure import cost
from prunec.measure.cost import Timing
from prunec.measure.evaluate import output
from prunec.measure.figures import flops
from prunec.passes import FRONT, run_passes
from prunec.passes.controls import RandomScores, Slices
from prunec.policy.policy import Policy
from prunec.targets import Flat
from prunec.targets.regional import Regional
from prunec.verify.certificate import relative_difference

RESULTS = Path(__file__).parent / "results"
POLICY, KEEP = "evit", 0.5
MOST_OVERHEAD = 1.03  # captured dense program / original model, both compiled
MOST_APART = {
    torch.float32: 1e-4,
    torch.bfloat16: 2e-2,
}  # compiled / eager outputs, relative to the largest value
LEAST_OF_IDEAL = 0.95  # plain slices / pruned program


@dataclass(frozen=True)
class Check:
    """One figure and the limit that it should keep, if it has one."""

    what: str
    value: float
    most: float | None = None
    least: float | None = None

    @property
    def met(self) -> bool:
        """Whether the limit is kept; NaN keeps none."""
        return (self.most is None or self.value <= self.most) and (
            self.least is None or self.value >= self.least
        )

    @property
    def limit(self) -> str:
        """The limit in words."""
        parts = [("at most", self.most), ("at least", self.least)]
        return ", ".join(f"{word} {bound:g}" for word, bound in parts if bound is not None)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        limit = {"limit": self.limit, "met": self.met} if self.limit else {}
        return {"what": self.what, "value": self.value, **limit}


@dataclass(frozen=True)
class Row:
    """What was measured in one interleaved run, under the settings that go with it."""

    name: str
    settings: Mapping[str, Any]  # batch, dtype, ...
    timings: Mapping[str, Timing]
    checks: tuple[Check, ...] = ()
    error: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)  # for the record, not for the table

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        timings = {
            name: {"median_ms": 1e3 * each.median, "spread": each.spread, "samples": len(each.samples)}
            for name, each in self.timings.items()
        }
        row = {"name": self.name, **self.settings, **self.details, "timings": timings}
        row["checks"] = [check.as_dict() for check in self.checks]
        return {**row, "error": self.error} if self.error else row


# --- models ------------------------------------------------------------------------------


def timm_vit(name: str = "vit_small_patch16_224", **options: Any) -> nn.Module:
    import timm

    torch.manual_seed(0)
    return timm.create_model(name, pretrained=False, **options).eval()


def hugging_face_vit() -> nn.Module:
    """A Vision Transformer of transformers that has the size of ViT-S/16."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536}
    return ViTForImageClassification(ViTConfig(**sizes, num_labels=1000)).eval()


def images(batch: int, like: nn.Module) -> Tensor:
    parameter = next(like.parameters())
    numbers = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    return numbers.to(parameter.device, parameter.dtype)


def controlled(model: nn.Module, policy: Policy) -> dict[str, Program]:
    """The dense and the pruned program and the two controls."""
    compiled = compile_source(sources.from_module(model), policy)
    return {
        "dense": compiled.dense,
        "pruned": compiled.pruned,
        "ideal": run_passes((Slices(),), compiled.pruned),
        "random": run_passes((RandomScores(),), compiled.pruned),
    }


def lowered(program: Program) -> Flat:
    """What prunec runs: the program compiled by Inductor."""
    return targets.load("inductor").lower(program)


def settings(x: Tensor, **more: Any) -> dict[str, Any]:
    return {"batch": len(x), "dtype": str(x.dtype).removeprefix("torch."), **more}


# --- rows ------------------------------------------------------------------------------


def overhead(name: str, model: nn.Module, batch: int, rounds: int) -> Row:
    """The captured program compiled by prunec, beside the original compiled as its user would."""
    fresh()
    source = sources.from_module(model)
    program = run_passes(FRONT, capture(source.module, source.args, source.kwargs))
    original, captured = torch.compile(model), lowered(program)
    x, same = images(batch, model), images(batch, model)  # two, for lowering marks its inputs
    timings = timed({"original": original, "captured": captured}, {"original": x, "captured": same}, rounds)
    difference = relative_difference(output(captured, same), output(original, x))
    checks = (
        Check("captured / original", cost.ratio(timings, "captured", "original"), most=MOST_OVERHEAD),
        Check("largest relative difference", difference, most=MOST_APART[x.dtype]),
    )
    return Row(name, settings(x), timings, checks)


def speed(name: str, programs: Mapping[str, Program], x: Tensor, rounds: int) -> Row:
    """Dense, pruned, ideal and random in one interleaved run."""
    calls = {kind: lowered(program) for kind, program in programs.items()}
    timings = timed(calls, dict.fromkeys(calls, x), rounds)
    checks = (
        Check("speed-up: dense / pruned", cost.ratio(timings, "dense", "pruned")),
        Check("ideal / pruned", cost.ratio(timings, "ideal", "pruned"), least=LEAST_OF_IDEAL),
        Check("random / pruned", cost.ratio(timings, "random", "pruned")),
    )
    plan = programs["pruned"].plan
    tokens = [plan.sites[0].tokens, *(site.leaves for site in plan.sites)]
    return Row(name, settings(x, policy=plan.policy, keep=KEEP, tokens=tokens), timings, checks)


def exact(name: str, model: nn.Module, batch: int, rounds: int) -> Row:
    """The captured program beside policy none, which leaves out what nobody reads and prunes nothing."""
    fresh()
    compiled = compile_source(sources.from_module(model), Policy.load("none"))
    programs = {"dense": compiled.dense, "none": compiled.pruned}
    calls = {kind: lowered(program) for kind, program in programs.items()}
    x, same = images(batch, model), images(batch, model)  # two, for lowering marks its inputs
    timings = timed(calls, {"dense": x, "none": same}, rounds)
    difference = relative_difference(output(calls["none"], same), output(calls["dense"], x))
    checks = (
        Check("speed-up: dense / none", cost.ratio(timings, "dense", "none"), least=1.0),
        Check("FLOPs: none / dense", flops(compiled.pruned) / flops(compiled.dense)),
        Check("largest relative difference", difference, most=MOST_APART[x.dtype]),
    )
    return Row(name, settings(x, policy="none"), timings, checks)


def stability(name: str, program: Program, batches: Iterable[int], like: nn.Module) -> Row:
    """Graph breaks, and compilations beyond the first over several batches."""
    inputs = [images(batch, like) for batch in batches]
    fresh()
    with torch.no_grad():
        breaks = torch._dynamo.explain(program.module)(inputs[0]).graph_break_count
    fresh()
    compiled = lowered(program)
    counts = [_compiled_after(compiled, x) for x in inputs]
    codes = compiled.codes if isinstance(compiled, Regional) else 1
    checks = (
        Check("graph breaks", breaks, most=0),
        Check("recompilations", counts[-1] - counts[0], most=0),
        Check("graphs compiled", counts[0], most=codes, least=codes),
    )
    row = settings(inputs[0])
    return Row(name, {**row, "batch": [len(x) for x in inputs]}, {}, checks)


def _compiled_after(compiled: Flat, x: Tensor) -> int:
    with torch.no_grad():
        compiled(x)
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def timed(calls: Mapping[str, Flat], inputs: Mapping[str, Tensor], rounds: int) -> dict[str, Timing]:
    def call(name: str) -> cost.Call:
        return lambda: calls[name](inputs[name])

    device = next(iter(inputs.values())).device
    return cost.measure({name: call(name) for name in calls}, device=device, rounds=rounds, seconds=600)


def fresh() -> None:
    """Forget what was compiled: models of one class share a limit on recompilations, and memory."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    gc.collect()


# --- records and tables ------------------------------------------------------------------------------


def write(path: Path, sections: Mapping[str, Sequence[Row]], device: torch.device) -> None:
    """Write the sections; those that the file holds already and this run did not measure stay as they are."""
    facts = {**cost.device_facts(device), "date": date.today().isoformat()}
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for title, rows in sections.items():
        record[title] = {**facts, "rows": [row.as_dict() for row in rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def show(title: str, rows: Sequence[Row]) -> None:
    """One section as a table: times first, then figures and their limits."""
    table = Table("run", "figure", "value", "limit", "", title=title, title_justify="left")
    for row in rows:
        about = ", ".join(f"{name} {value}" for name, value in row.settings.items())
        heads = iter((row.name, about))
        for name, timing in row.timings.items():
            table.add_row(next(heads, ""), name, f"{1e3 * timing.median:.2f} ms ±{timing.spread:.1%}")
        for check in row.checks:
            verdict = ("met" if check.met else "[bold red]missed[/]") if check.limit else ""
            table.add_row(next(heads, ""), check.what, f"{check.value:.3g}", check.limit, verdict)
        if row.error:
            table.add_row(next(heads, ""), "[bold red]failed[/]", row.error)
        for rest in heads:
            table.add_row(rest)
        table.add_section()
    Console(width=None if Console().is_terminal else 140).print(table)


def missed(sections: Mapping[str, Sequence[Row]]) -> list[str]:
    """The limits that were not kept, and the rows that failed, in words."""
    rows = [row for section in sections.values() for row in section]
    limits = [
        f"{row.name}: {check.what} is {check.value:.3g}, {check.limit} is wanted"
        for row in rows
        for check in row.checks
        if not check.met
    ]
    return limits + [f"{row.name}: {row.error}" for row in rows if row.error]


def conclude(path: Path, sections: Mapping[str, Sequence[Row]]) -> int:
    """The last lines, and the exit status: 1 where a limit was missed."""
    print(f"written to {path}")
    for line in missed(sections):
        print(f"missed: {line}")
    return 1 if missed(sections) else 0
