"""Dense and pruned on every target that runs here: how fast, and how near to the graph itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Parity:
    """How far the outputs on a target are from those of the graph itself, on the same images."""

    largest: float  # relative to the largest output
    mean: float  # relative to the mean output
    agreement: (
        float | None
    )  # share of images whose highest output is the same one; None where none are scores
    tolerance: float

    @property
    def agrees(self) -> bool:
        """Whether the largest difference is what rounding does."""
        return self.largest <= self.tolerance  # and so not where a number is none

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**asdict(self), "agrees": self.agrees}

    def __str__(self) -> str:
        same = "" if self.agreement is None else f", {self.agreement:.0%} of images agree"
        verdict = "" if self.agrees else f", DISAGREES: at most {self.tolerance:.0e} is rounding"
        return f"differs by {self.largest:.1e} at most, {self.mean:.1e} on average{same}{verdict}"


@dataclass(frozen=True)
class OnTarget:
    """One target."""

    name: str
    parity: Parity | None = None  # of the pruned program; None where it draws at random, or was not built
    dense_agrees: bool = False
    dense: float | None = None  # median seconds of a batch
    pruned: float | None = None
    refused: str = ""  # why it was not built

    @property
    def agrees(self) -> bool:
        """Whether the pruned program was built and is right."""
        return not self.refused and (self.parity is None or self.parity.agrees)

    def __str__(self) -> str:
        if self.dense is None or self.pruned is None:
            return f"{self.name:<9} not built: {self.refused}"
        times = f"dense {self.dense * 1e3:8.2f} ms, pruned {self.pruned * 1e3:8.2f} ms"
        wrong = "" if self.dense_agrees else "; the dense model DISAGREES"
        return f"{self.name:<9} {times}; {self.parity or 'not compared: it draws at random'}{wrong}"


@dataclass(frozen=True)
class TargetTable:
    """All targets in one interleaved run, and the one that was taken: the fastest that agrees."""

    targets: tuple[OnTarget, ...]
    batch: int
    taken: str
    fastest_dense: str
    speedup: float  # of pruned on the target taken, over dense on the fastest of any
    same_target: float  # over dense on the target taken

    @property
    def headline(self) -> str:
        """The gain in words: never over a baseline that is slower than the fastest dense model."""
        beside = f"; {self.same_target:.2f} times over dense on {self.taken}"
        same = "" if self.taken == self.fastest_dense else beside
        return (
            f"pruned on {self.taken} is {self.speedup:.2f} times as fast as the dense model on "
            f"{self.fastest_dense}, its fastest target{same}"
        )

    def rows(self) -> Iterator[tuple[str, str]]:
        """Label and text, line by line."""
        for number, target in enumerate(self.targets):
            yield "targets" if number == 0 else "", str(target)
        yield "", f"{self.headline} (batch {self.batch}, one interleaved run)"

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        rows = {
            each.name: {
                "dense_ms": None if each.dense is None else each.dense * 1e3,
                "pruned_ms": None if each.pruned is None else each.pruned * 1e3,
                "parity": None if each.parity is None else each.parity.as_dict(),
                "dense_agrees": each.dense_agrees,
                "refused": each.refused,
            }
            for each in self.targets
        }
        return {
            "taken": self.taken,
            "fastest_dense": self.fastest_dense,
            "speedup": self.speedup,
            "same_target_speedup": self.same_target,
            "batch": self.batch,
            "targets": rows,
        }
