"""How things are measured: one value that optimize, plan, sweep, latency_table and benchmark take."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import Any

from prunec.errors import UsageError, shown
from prunec.measure import cost
from prunec.measure.figures import Progress
from prunec.measure.metric import TAKES, Metric
from prunec.targets import precision
from prunec.targets.precision import Precision


def _silent(step: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Measure:
    """Where and how models are timed and compared: `Measure(target="eager", batch=32)`.

    target: the backend, for the dense model and the controls too.
    batch: images at a time.
    rounds: interleaved rounds of timing; as many as each kind of measurement is used to when left out.
    threads: of the CPU; as many as torch uses when left out.
    preprocess: how pictures become the model's input, where the model does not say or you know better: a
        `Preprocess`, a processor of transformers, transforms of torchvision, or single values such as
        {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "crop": 0.9}.
    precision: fp32, the model as it is; or bf16, fp16 or int8 by the target's own means, after pruning. It is
        timed beside fp32, and used only where it is faster and agrees. For `optimize`.
    calibrate: False leaves learned parts and thresholds as they are at first, for timing only.
    metric: a function of your own, metric(output, labels), which gets what the model returns for some images,
        on the CPU, and the class of each, a tensor [n], or None where there are no labels. It returns one
        number for them all, or a tensor [n] with one for each; the report has the mean over the images for
        dense, pruned and random.
    progress: called with each step's name.
    """

    target: str = "inductor"
    batch: int = 8
    rounds: int | None = None
    threads: int | None = None
    preprocess: Any = None
    precision: Precision = "fp32"
    calibrate: bool = True
    metric: Metric | None = None
    progress: Progress = _silent

    def __post_init__(self) -> None:
        for name, value in (("batch", self.batch), ("rounds", self.rounds), ("threads", self.threads)):
            if not (value is None or (isinstance(value, int) and value >= 1)):
                raise UsageError(
                    f"{name} must be a whole number of at least 1, got {shown(value)}", where="Measure"
                )

        precision.read(self.precision, where="Measure")
        if self.metric is not None and not callable(self.metric):
            raise UsageError(
                f"metric must be {TAKES}, got {shown(self.metric)}",
                where="Measure",
                remedy="on the command line it is --metric pkg.module:function",
            )

    def on_threads(self) -> AbstractContextManager[object]:
        """With as many threads as were asked for."""
        return nullcontext() if self.threads is None else cost.threads(self.threads)

    def refuse(self, *names: str, where: str) -> None:
        """UsageError where one of these fields was set: it would have no effect."""
        usual = {field.name: field.default for field in fields(self)}
        for name in names:
            if getattr(self, name) != usual[name]:
                raise UsageError(
                    f"{name} has no effect here", where=where, remedy=f"leave {name} out of Measure"
                )
