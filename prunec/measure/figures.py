"""The figures of a report: FLOPs, latency and accuracy, each beside its control."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunec import ops
from prunec.calibration.inputs import call_on
from prunec.frontend.sources import ImageSet
from prunec.ir.flops import FlopCounter
from prunec.ir.interface import images_in
from prunec.ir.program import Planned, Program, Recognised
from prunec.measure import cost, evaluate
from prunec.measure.cost import Timing
from prunec.measure.evaluate import Comparison
from prunec.measure.labels import fitting
from prunec.passes import run_passes
from prunec.passes.controls import RandomScores, Slices
from prunec.targets import Flat, Target, device_of

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Latency:
    """One interleaved run of dense, pruned and ideal."""

    timings: dict[str, Timing]
    batch: int
    facts: dict[str, str | int]

    def speedup(self, name: str) -> float:
        """How many times faster than the dense model, the same treatment given to both."""
        return cost.ratio(self.timings, "dense", name)

    def of_ideal(self) -> float:
        """The ideal's time over the pruned model's: 1 means that scoring and gathering cost nothing."""
        return cost.ratio(self.timings, "ideal", "pruned")

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        rows = {
            name: {"median_ms": timing.median * 1e3, "spread": timing.spread, "speedup": self.speedup(name)}
            for name, timing in self.timings.items()
        }
        return {"batch": self.batch, **self.facts, "ideal_over_pruned": self.of_ideal(), "rows": rows}


def flops(program: Program, flat: tuple[Any, ...] | None = None) -> int:
    """Floating-point operations of one image, in closed form.

    Where images keep different numbers of tokens it is the mean over the images of `flat`, each by itself.
    """
    ragged = any(node.target in ops.RAGGED for node in program.graph.nodes)
    if flat is None or not ragged or program.interface.batch is None:
        runs = [with_batch(program, 1)]
    else:
        images = images_in(flat)
        runs = [_one_image(flat, image, images) for image in range(images)]
    counter = FlopCounter()
    with counter, torch.no_grad():
        for run in runs:
            program.module(*run)
    images = len(runs) * (1 if program.interface.batch else fixed_batch(program))
    return counter.total // images


def inputs(program: Recognised, batch: int, images: Tensor | None) -> tuple[Any, ...]:
    """Inputs to time: a batch of real images where there are enough, else of the example's first."""
    if images is None or len(images) < batch or program.interface.batch is None:
        return with_batch(program, batch)
    return call_on(program, images[:batch].to(device_of(program)))


def latency(
    dense: Recognised,
    plain: Planned,
    lowered: dict[str, Flat],
    target: Target,
    flat: tuple[Any, ...],
    rounds: int,
    progress: Progress,
) -> Latency:
    """Time the compiled dense and pruned models beside plain slices of the same lengths.

    `lowered` holds the callables of "dense" and "pruned"; the ideal is made of the pruned program as it was
    before its mode changed it, and lowered here.
    """
    ideal = run_passes((Slices(),), plain)
    calls = {**lowered, "ideal": target.lower(ideal)}
    with torch.no_grad():
        for name, call in calls.items():
            progress(f"compile {name}")
            call(*flat)
    progress("measure")
    runs = {name: bound(call, flat) for name, call in calls.items()}
    device = device_of(dense)
    timings = cost.measure(runs, device=device, rounds=rounds)
    batch = images_in(flat)
    return Latency(timings, batch, cost.device_facts(device))


def accuracy(dense: Recognised, plain: Planned, lowered: dict[str, Flat], image_set: ImageSet) -> Comparison:
    """Accuracy or agreement of dense, pruned and random at the same counts."""
    random = run_passes((RandomScores(),), plain)
    labels, _ = fitting(image_set, classes(dense))
    return evaluate.compare(
        # The control runs operator by operator: compiled code would draw the same numbers for every seed.
        {"dense": lowered["dense"], "pruned": lowered["pruned"], "random": random.module},
        image_set.images,
        labels,
        batch=None if dense.interface.batch else fixed_batch(dense),
        device=device_of(dense),
    )


def with_batch(program: Program, batch: int) -> tuple[Any, ...]:
    """The example inputs with another batch; as they are where the batch is fixed."""
    interface = program.interface
    if interface.batch is None:
        return interface.example

    def resized(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dim() == 0 or leaf.shape[0] != interface.batch:
            return leaf
        return leaf[:1].repeat(batch, *[1] * (leaf.dim() - 1))

    return tuple(map(resized, interface.example))


def _one_image(flat: tuple[Any, ...], image: int, images: int) -> tuple[Any, ...]:
    return tuple(
        leaf[image : image + 1] if isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == images else leaf
        for leaf in flat
    )


def fixed_batch(program: Program) -> int:
    """How many images the example holds."""
    return images_in(program.interface.example)


def classes(program: Program) -> int | None:
    """How many classes a model scores; None where its output is something else."""
    output = next(node for node in reversed(program.graph.nodes) if node.op == "output")
    value = output.all_input_nodes[0].meta.get("val")
    return int(value.shape[1]) if isinstance(value, Tensor) and value.dim() == 2 else None


def bound(call: Flat, inputs: Sequence[Any]) -> Callable[[], object]:
    """A call on these inputs, to be timed."""
    return lambda: call(*inputs)
