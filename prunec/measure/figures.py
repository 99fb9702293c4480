"""The figures of a report: FLOPs, latency and accuracy, each beside its control."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from prunec import ops
from prunec.calibration.inputs import call_on, pixels_of
from prunec.frontend.sources import ImageSet, Source
from prunec.ir import graph
from prunec.ir.flops import FlopCounter
from prunec.ir.interface import images_in
from prunec.ir.program import Planned, Program, Recognised
from prunec.measure import cost, evaluate
from prunec.measure.cost import Timing
from prunec.measure.evaluate import Comparison, Judge
from prunec.measure.fidelity import Known, Output, outputs_of
from prunec.measure.labels import fitting
from prunec.measure.smaller import NoSmaller, Smaller
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
        runs = [program.interface.with_batch(1)]
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
        return program.interface.with_batch(batch)
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


def accuracy(
    dense: Recognised,
    plain: Planned,
    lowered: dict[str, Flat],
    image_set: ImageSet,
    judge: Judge | None = None,
    smaller: Smaller | NoSmaller | None = None,
) -> Comparison:
    """What dense, pruned, random at the same counts, and a smaller picture make of the same images."""
    judge = judge or Judge(known(dense, image_set=image_set))
    labels, _ = fitting(image_set, classes(dense, judge.known))
    # The control runs operator by operator: compiled code would draw the same numbers for every seed.
    flat: dict[str, Flat] = {**lowered, "random": run_passes((RandomScores(),), plain).module}
    models = {name: on_images(dense, call) for name, call in flat.items()}
    if isinstance(smaller, Smaller):
        models["resize"] = smaller
    found = evaluate.compare(
        models,
        image_set.images,
        labels,
        batch=images_at_a_time(dense, plain),
        device=device_of(dense),
        judge=judge,
    )
    return replace(found, resized=str(smaller or ""))


def on_images(dense: Recognised, call: Flat) -> evaluate.Model:
    """A flat program as the model that it was made of, on images alone."""
    return lambda images: dense.interface.unflatten(call(*call_on(dense, images)))


def images_at_a_time(dense: Recognised, pruned: Planned) -> int | None:
    """How many images a comparison runs at a time, where not every number does."""
    if dense.interface.batch is None:
        return fixed_batch(dense)
    lowering = pruned.plan.lowering
    return 1 if lowering.single or lowering.max_tokens else None


def known(
    dense: Recognised,
    source: Source | None = None,
    image_set: ImageSet | None = None,
) -> Known:
    """What a model, its source and the folders of images say of its outputs."""
    numbers: dict[int, str] = {}
    if image_set is not None and image_set.classes is not None:
        numbers[image_set.classes] = f"the folders name {image_set.classes} classes"
    if source is not None:
        count = getattr(source.module, "num_classes", None)
        if isinstance(count, int):
            numbers[count] = f"the model has {count or 'no'} classes (num_classes)"
        if source.labels:
            numbers[len(source.labels)] = f"the model names {len(source.labels)} classes"
    anatomy = dense.anatomy
    state = graph.by_name(dense.graph)[anatomy.states[-1]].meta["val"]
    high, wide = pixels_of(dense).shape[-2:]
    tokens, picture = (anatomy.tokens, anatomy.grid), (int(high), int(wide))
    labels = None if image_set is None or image_set.classes is not None else image_set.labels
    labelled = 0 if labels is None else int(labels.max()) + 1
    return Known(numbers, int(state.shape[-1]), tokens, picture, labelled)


def _one_image(flat: tuple[Any, ...], image: int, images: int) -> tuple[Any, ...]:
    return tuple(
        leaf[image : image + 1] if isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == images else leaf
        for leaf in flat
    )


def fixed_batch(program: Program) -> int:
    """How many images the example holds."""
    return images_in(program.interface.example)


def outputs(dense: Recognised, known: Known) -> tuple[Output, ...]:
    """The outputs of a model, the main one first."""
    values = _outputs(dense)
    named = zip(evaluate.leaf_names(dense.interface.unflatten(values)), values, strict=True)
    floats = [(name, value) for name, value in named if isinstance(value, Tensor)]
    leaves = [(name, value.shape[1:]) for name, value in floats if value.is_floating_point() and value.dim()]
    return outputs_of([(name, tuple(map(int, sizes))) for name, sizes in leaves], known)


def output_sizes(dense: Recognised) -> list[tuple[int, ...]]:
    """The sizes of each output for one image; none of what is no tensor."""
    return [
        tuple(map(int, value.shape[1:])) if isinstance(value, Tensor) else () for value in _outputs(dense)
    ]


def _outputs(dense: Recognised) -> list[Any]:
    (flat,) = graph.output_node(dense.graph).args
    return [node.meta.get("val") if isinstance(node, fx.Node) else node for node in flat]  # type: ignore[union-attr]


def classes(dense: Recognised, known: Known) -> int | None:
    """How many classes a model scores; None where its main output is something else."""
    main = next(iter(outputs(dense, known)), None)
    return main.sizes[0] if main is not None and main.kind == "class scores" else None


def bound(call: Flat, inputs: Sequence[Any]) -> Callable[[], object]:
    """A call on these inputs, to be timed."""
    return lambda: call(*inputs)
