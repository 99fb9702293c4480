"""What was found, done and measured, as data, as text and as one HTML page.

Every figure stands beside its control: pruned accuracy beside random selection at the same counts, pruned
time beside the compiled dense model and beside plain slices of the same lengths, all in one interleaved run.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from prunec.calibration.calibrate import Calibration
from prunec.data.preprocess import Preprocess
from prunec.ir.program import Stage
from prunec.measure.figures import Latency
from prunec.measure.scores import Comparison
from prunec.measure.verdict import Verdict, judged
from prunec.planner.planning import LEAST_GAIN
from prunec.planner.result import PlanResult
from prunec.policy.rules import rates
from prunec.policy.site_plan import Plan
from prunec.report.fidelity import rows_of
from prunec.report.target_table import Parity, TargetTable
from prunec.structure import Anatomy
from prunec.targets.precision import Precision
from prunec.verify.certificate import Certificate, own_words


@dataclass(frozen=True)
class Report:
    """All that one run of `optimize` has to say."""

    source: str
    weights: str
    target: str
    policy: Mapping[str, Any]
    anatomy: Anatomy
    plan: Plan
    stages: tuple[Stage, ...]
    certificate: Certificate
    flops: Mapping[str, int] = field(default_factory=dict)
    images: str = ""  # which images accuracy was measured on
    accuracy: Comparison | None = None
    latency: Latency | None = None
    notes: tuple[str, ...] = ()
    artefact: str | None = None
    calibration: Calibration | None = None
    submodule: str = ""  # the part of the model that this is, where it is one
    arch: str = ""  # the SOURCE that weights from a file were put into
    example: str = ""  # the shapes of the inputs, where the model by itself would have others
    planned: PlanResult | None = None  # how the schedule was found, where it was asked to meet a goal
    preprocess: Preprocess | None = None  # what became of the pictures of a folder
    parity: Parity | None = None  # of the lowered program with its graph
    targets: TargetTable | None = None  # all that run here, where the fastest was asked for
    precision: Precision = "fp32"  # in which the target runs; fp32 is that of the model
    written: tuple[str, Precision] | None = None  # a target that was not run, whose files are in the artefact
    untrained: bool = False  # whether learned parts were left as they are, for timing only

    def at(self, folder: object) -> Report:
        """The same report, saying where the artefact lies."""
        return replace(self, artefact=str(folder))

    @property
    def speedup(self) -> float | None:
        """Over the fastest dense model that was measured; None where nothing was."""
        if self.targets is not None:
            return self.targets.speedup
        return None if self.latency is None else self.latency.speedup("pruned")

    @property
    def disagrees(self) -> str:
        """How far the target's outputs are from the graph's; empty where they agree."""
        if self.parity is None or self.parity.agrees:
            return ""
        return f"on target {self._on} the pruned model {self.parity}"

    @property
    def _on(self) -> str:
        return self.target if self.precision == "fp32" else f"{self.target} in {self.precision}"

    @property
    def no_gain(self) -> str:
        """Why pruning does not pay here; empty where it does."""
        if self.planned is not None:
            missed = "" if self.planned.decision.gains else self.planned.decision.reason
            return missed or "; ".join(self.planned.decision.notes)
        speedup = self.speedup
        if speedup is None or speedup >= 1 + LEAST_GAIN:
            return ""
        return f"the pruned model is {speedup:.2f} times as fast as the dense one, which is no gain"

    @property
    def fidelity(self) -> Verdict:
        """What the outputs are worth; of weights that mean nothing, only how they compare."""
        found = Verdict("") if self.accuracy is None else judged(self.accuracy, chosen=bool(self.plan.sites))
        timing_only = self.untrained or self.weights == "random"
        return Verdict(found.said) if timing_only else found

    @property
    def useless(self) -> str:
        """Why the pruned model's outputs are of no use; empty where they may be of some."""
        return self.fidelity.useless

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why the pruned model may not be worth having, how fast it is left aside."""
        return (*self.fidelity.warnings, *(self.calibration.doubts if self.calibration else ()))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What must not be missed: it stands at the top."""
        return (*self.doubts, *filter(None, [self.disagrees, self._slower]))

    @property
    def _slower(self) -> str:
        speedup = self.speedup
        if speedup is None or speedup >= 1:
            return ""
        slower = f"slower than the dense model (x{speedup:.2f})"
        return f"{slower}: use the model as it is, or try another batch, policy or target"

    @property
    def verdict(self) -> str:
        """Whether pruning pays here, and what it costs, in words; empty where nothing was measured."""
        speed = self._slower or self.no_gain
        if self.targets is not None and not speed:
            speed = self.targets.headline
        elif self.latency is not None and not speed:
            speed = f"{self.latency.speedup('pruned'):.2f} times as fast as the dense model"
        return "; ".join(filter(None, [speed, self.fidelity.said, *self.fidelity.short]))

    def as_dict(self) -> dict[str, Any]:
        """Everything, as plain data for JSON."""
        return {
            "source": self.source,
            "submodule": self.submodule,
            "arch": self.arch,
            "example": self.example,
            "weights": self.weights,
            "target": self.target,
            "precision": self.precision,
            "written": list(self.written) if self.written else None,
            "policy": dict(self.policy),
            "anatomy": {**asdict(self.anatomy), "summary": self.anatomy.summary()},
            "plan": self.plan.as_dict(),
            "stages": [stage.as_dict() for stage in self.stages],
            "certificate": asdict(self.certificate),
            "calibration": asdict(self.calibration) if self.calibration else None,
            "flops": dict(self.flops),
            "images": self.images,
            "preprocess": self.preprocess.as_dict() if self.preprocess else None,
            "accuracy": self.accuracy.as_dict() if self.accuracy else None,
            "latency": self.latency.as_dict() if self.latency else None,
            "parity": self.parity.as_dict() if self.parity else None,
            "targets": self.targets.as_dict() if self.targets else None,
            "verdict": self.verdict,
            "warnings": list(self.warnings),
            "useless": self.useless,
            "planner": self.planned.as_dict() if self.planned else None,
            "notes": list(self.notes),
            "artefact": self.artefact,
        }

    def rows(self) -> Iterator[tuple[str, str]]:
        """Label and text, line by line, in reading order."""
        yield from (("WARNING", warning) for warning in self.warnings)
        part = f", {self.submodule} of it" if self.submodule else ""
        yield (
            "model",
            f"{self.source}{part} ({f'weights of {self.arch}' if self.arch else f'{self.weights} weights'})",
        )
        yield "recognised", self.anatomy.summary()
        if self.anatomy.unmatched and self.anatomy.blocks:
            yield "", f"in {self.anatomy.path}"
        for miss in self.anatomy.unmatched:
            yield "", f"not recognised: {miss}"
        yield (
            "policy",
            f"{self.policy['name']}, {rates(self.plan.rules)}, target {self._on}",
        )
        if self.plan.sites:
            yield "mode", str(self.plan.lowering)
        for number, site in enumerate(self.plan.sites):
            yield "sites" if number == 0 else "", str(site)
        yield from (("", note) for note in self.plan.notes)
        repairs = next((stage.counts for stage in self.stages if stage.name == "repair tokens"), {})
        yield "repairs", ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in repairs.items())
        for stage in self.stages:
            if stage.name == "liveness" and stage.notes:
                yield "dead rows", f"not computed: {'; '.join(stage.notes)}"
            if stage.name == "fold_key_value" and stage.notes:
                yield "folded", "; ".join(stage.notes)
        yield "certificate", f"identity at keep=1.0: {self.certificate.identity:.1e}"
        yield "", f"permutation of all tokens: {self.certificate.permutation:.1e}"
        own = own_words(self.certificate.own_counts, self.certificate.unproven)
        yield from (("", words) for words in [own] if words)
        other, allowed = self.certificate.permutation_tolerance, f"{self.certificate.tolerance:.0e}"
        allowed += "" if other is None else f", shuffled (in float32) {other:.0e}"
        yield "", f"(largest relative difference from the original, allowed {allowed})"
        if self.certificate.padding is not None:
            yield "", f"each image by itself and in a batch: {self.certificate.padding:.1e}"
        for stage in self.stages:
            if stage.name == "agree":
                yield "", f"in its mode: {stage.notes[0]}"
        if self.planned:
            yield from self.planned.rows()
        if self.calibration:
            yield "calibrated", str(self.calibration)
        if self.flops:
            dense, pruned = self.flops["dense"], self.flops["pruned"]
            yield "FLOPs", f"{dense / 1e9:.2f} G -> {pruned / 1e9:.2f} G an image ({pruned / dense:.0%})"
        yield from self._accuracy_rows()
        yield from self._latency_rows()
        if self.parity:
            yield "parity", f"target {self._on} {self.parity}"
        if self.targets:
            yield from self.targets.rows()
        if self.verdict:
            yield "verdict", self.verdict
        yield from (("note", note) for note in self.notes)
        if self.artefact:
            yield "artefact", self.artefact

    def _accuracy_rows(self) -> Iterator[tuple[str, str]]:
        if self.preprocess:
            yield "pictures", f"{self.preprocess} ({self.preprocess.origin or 'a guess'})"
        if self.accuracy is None:
            yield "fidelity", "not measured"
        else:
            yield from rows_of(self.accuracy, self.images)

    def _latency_rows(self) -> Iterator[tuple[str, str]]:
        if self.latency is None:
            yield "latency", "not measured"
            return
        named = {key: value for key, value in self.latency.facts.items() if key != "device"}
        facts = ", ".join(
            [str(self.latency.facts["device"]), *(f"{key} {value}" for key, value in named.items())]
        )
        yield "latency", f"batch {self.latency.batch}, {facts}"
        for name, timing in self.latency.timings.items():
            speedup = "" if name == "dense" else f"  x{self.latency.speedup(name):.2f}"
            yield "", f"{name:<8} {timing.median * 1e3:8.2f} ms ±{timing.spread:.0%}{speedup}"
        yield "", f"pruned reaches {self.latency.of_ideal():.0%} of the ideal (plain slices, no scoring)"

    def text(self) -> str:
        """The report as plain lines."""
        return "\n".join(f"{label:<12} {line}".rstrip() for label, line in self.rows()) + "\n"

    def html(self) -> str:
        """One page that stands by itself."""
        rows = "\n".join(
            f"<tr><th>{html.escape(label)}</th><td>{html.escape(line)}</td></tr>"
            for label, line in self.rows()
        )
        return _PAGE.format(title=html.escape(f"prunec: {self.source}, {self.policy['name']}"), rows=rows)


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; }}
table {{ border-collapse: collapse; }}
th {{ text-align: left; vertical-align: top; padding-right: 1.5em; font-weight: 600; white-space: nowrap; }}
td {{ font-family: ui-monospace, monospace; white-space: pre-wrap; }}
</style>
<h1>{title}</h1>
<table>
{rows}
</table>
</html>
"""
