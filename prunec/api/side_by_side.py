"""A model and the same with fewer tokens, beside each other on the same images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunec import targets
from prunec.compiler import recognise
from prunec.errors import UsageError
from prunec.frontend import sources
from prunec.frontend.sources import ImageSet, Source
from prunec.ir.interface import images_in
from prunec.ir.program import Planned, ProgramModule, Recognised
from prunec.measure import cost, evaluate, figures
from prunec.measure.cost import Timing
from prunec.measure.evaluate import Comparison, Judge
from prunec.measure.image_sets import image_set_of
from prunec.measure.labels import fitting
from prunec.measure.measure import Measure
from prunec.measure.verdict import judged
from prunec.policy.lowering import from_dict

ROUNDS = 20


@dataclass(frozen=True)
class Benchmark:
    """Time, FLOPs and outputs of a dense and a pruned model; `print` shows it, `as_dict` is for JSON."""

    timings: Mapping[str, Timing]  # "dense" and "pruned", of one interleaved run
    batch: int
    facts: Mapping[str, str | int]
    flops: Mapping[str, int]
    images: str = ""
    comparison: Comparison | None = None  # None where there are no images

    @property
    def speedup(self) -> float:
        """How many times as fast as the dense model, both on the same backend."""
        return cost.ratio(self.timings, "dense", "pruned")

    def as_dict(self) -> dict[str, Any]:
        """Everything, as plain data for JSON."""
        times = {
            name: {"median_ms": timing.median * 1e3, "spread": timing.spread}
            for name, timing in self.timings.items()
        }
        return {
            "speedup": self.speedup,
            "latency": {"batch": self.batch, **self.facts, "rows": times},
            "flops": dict(self.flops),
            "images": self.images,
            "comparison": self.comparison.as_dict() if self.comparison else None,
        }

    def _lines(self) -> Iterator[str]:
        for name, timing in self.timings.items():
            yield f"{name:<7} {timing.median * 1e3:8.2f} ms ±{timing.spread:.0%}, batch {self.batch}"
        yield f"pruned is {self.speedup:.2f} times as fast as dense"
        dense, pruned = self.flops["dense"], self.flops["pruned"]
        yield f"FLOPs   {dense / 1e9:.2f} G -> {pruned / 1e9:.2f} G an image ({pruned / dense:.0%})"
        if self.comparison is not None:
            yield f"on {self.comparison.images} {self.images}"
            yield f"dense   {self.comparison.dense}"
            yield f"pruned  {self.comparison.pruned}"
            yield from (f"warning: {warning}" for warning in judged(self.comparison).warnings)
        yield ", ".join(f"{name} {value}" for name, value in self.facts.items())

    def __str__(self) -> str:
        return "\n".join(self._lines())


def benchmark(
    model: nn.Module,
    fast: nn.Module,
    *,
    images: str | Path | Tensor | None = None,
    example: Any = None,
    measure: Measure | None = None,
) -> Benchmark:
    """Time and compare a model and what `transform`, `optimize` or `load` made of it, on one backend.

    Args:
        model: the model as it was. It is not changed.
        fast: the same with fewer tokens.
        images: [n, ...], normalised, or a folder; subfolders that name the model's classes give labels. Left
            out, only times and FLOPs are compared.
        example: as for `transform`.
        measure: on which target, at which batch, and how.
    """
    measure = measure or Measure()
    measure.refuse("calibrate", "precision", where="benchmark")
    program = fast.program if isinstance(fast, ProgramModule) else None
    if not isinstance(program, Planned):
        raise UsageError(
            "the second module was not made by prunec",
            where="benchmark",
            remedy="give what prunec.transform, prunec.optimize(...).module or prunec.load returned",
        )
    if isinstance(images, Tensor):
        measure.refuse("preprocess", where="benchmark, images that are numbers already")
    backend = targets.load(measure.target)
    from_dict(program.plan.rules, program.plan.lowering.as_dict(), can=backend.modes)
    given = sources.from_module(model, example, preprocess=measure.preprocess)
    with measure.on_threads():
        measure.progress("capture, recognise")
        dense = recognise(given)
        image_set = _image_set(given, images)
        return _measured(given, dense, program, backend, image_set, measure)


def _image_set(source: Source, images: str | Path | Tensor | None) -> ImageSet | None:
    if isinstance(images, Tensor):
        return ImageSet(images, None, "images that were given")
    return None if images is None else image_set_of(source, images)


def _measured(
    source: Source,
    dense: Recognised,
    pruned: Planned,
    backend: targets.Target,
    image_set: ImageSet | None,
    measure: Measure,
) -> Benchmark:
    lowered = {"dense": backend.lower(dense), "pruned": backend.lower(pruned)}
    inputs = figures.inputs(dense, measure.batch, None if image_set is None else image_set.images)
    with torch.no_grad():
        for name, call in lowered.items():
            measure.progress(f"compile {name}")
            call(*inputs)
    measure.progress("measure")
    device = targets.device_of(dense)
    runs = {name: figures.bound(call, inputs) for name, call in lowered.items()}
    timings = cost.measure(runs, device=device, rounds=measure.rounds or ROUNDS)
    comparison = None
    if image_set is not None:
        measure.progress("compare on images")
        judge = Judge(figures.known(dense, source, image_set), measure.metric)
        labels, _ = fitting(image_set, figures.classes(dense, judge.known))
        comparison = evaluate.compare(
            {name: figures.on_images(dense, call) for name, call in lowered.items()},
            image_set.images,
            labels,
            batch=figures.images_at_a_time(dense, pruned),
            device=device,
            judge=judge,
        )
    return Benchmark(
        timings=timings,
        batch=images_in(inputs),
        facts=cost.device_facts(device),
        flops={"dense": figures.flops(dense, inputs), "pruned": figures.flops(pruned, inputs)},
        images=image_set.name if image_set is not None else "",
        comparison=comparison,
    )
