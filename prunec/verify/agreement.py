"""Proof that a lowered program computes the same as the program that it was made from.

forced   both keep the same random tokens, another share of each image
own      both choose tokens by their own scores, and must choose the same
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from prunec.errors import VerificationError
from prunec.ir.interface import images_in
from prunec.ir.program import Planned
from prunec.verify import runs
from prunec.verify.choices import Choice
from prunec.verify.differences import (
    HALF,
    TOLERANCE,
    in_float32,
    one,
    relative_difference,
    seeded,
    tolerance_of,
    worst,
)
from prunec.verify.scattering import Scattering

#: The largest relative difference between scores that differ only in the order of summation.
SCORES = 1e-3


@dataclass(frozen=True)
class Agreement:
    """The comparison of a lowered program with the one that it was made from."""

    difference: float
    tolerance: float
    seconds: float
    images: int
    own_counts: float | None = None  # None where scores are random, or tie

    def __str__(self) -> str:
        own = "" if self.own_counts is None else f", on its own: {self.own_counts:.1e}"
        return (
            f"the same outputs as before, on token sets of all sizes: {self.difference:.1e}{own} "
            f"(largest relative difference, at most {self.tolerance:.0e})"
        )


def agree(plain: Planned, lowered: Planned, flat: tuple[Any, ...] | None = None) -> Agreement:
    """Compare a lowered program with the one it was made from; VerificationError when they differ.

    Both keep the same random tokens, another share of each image.
    """
    start, flat = time.perf_counter(), plain.interface.example if flat is None else flat
    batch = images_in(flat)
    tolerance = tolerance_of(plain)
    if tolerance >= HALF:
        (plain, lowered, flat), tolerance = in_float32(plain, lowered, flat), TOLERANCE[torch.float32]
    apart = [(tuple(one(leaf, image, batch) for leaf in flat), [image]) for image in range(batch)]
    given = apart if plain.plan.lowering.single else [(flat, range(batch))]
    with torch.no_grad(), torch.random.fork_rng():
        forced = max(_forced(plain, lowered, inputs, images) for inputs, images in given)
        _check(plain, forced, tolerance)
        chosen = [_own(plain, lowered, inputs) for inputs, _ in given]
        own = None if None in chosen else max(found for found in chosen if found is not None)
        _check(plain, own or 0.0, tolerance)
    return Agreement(forced, tolerance, time.perf_counter() - start, batch, own)


def _check(plain: Planned, difference: float, tolerance: float) -> None:
    if difference > tolerance:
        raise VerificationError(
            f"the model in mode {plain.plan.lowering} differs from what it was made from: {difference:.1e}, "
            f"at most {tolerance:.0e} is allowed",
            where="mode",
            remedy="use mode padded, and please report the model's name",
        )


def _forced(plain: Planned, lowered: Planned, flat: tuple[Any, ...], images: Iterable[int]) -> float:
    """The difference where both keep the same tokens, whatever their scores."""
    names = list(images)
    expected = seeded(Scattering(plain, names).run, flat)
    return worst(seeded(Scattering(lowered, names).run, flat), expected)


def _own(plain: Planned, lowered: Planned, flat: tuple[Any, ...]) -> float | None:
    """The difference where each chooses by its own scores; None where they need not choose the same."""
    before, after = (seeded(partial(_run, program), flat) for program in (plain, lowered))
    if any(step.scorer.kind == "random" for step in plain.plan.rules.steps):
        return None
    for site, one_by_one in zip(plain.plan.sites, zip(before.chosen, after.chosen, strict=True), strict=True):
        for image, (found, made) in enumerate(zip(*one_by_one, strict=True)):
            if not _same_scores(found, made):
                raise VerificationError(
                    f"the model in mode {plain.plan.lowering} scores tokens unlike what it was made from",
                    where=f"site {site}, image {image}",
                    remedy="use mode padded, and please report the model's name",
                )
            if not torch.equal(found.kept, made.kept) or found.place != made.place:
                return None  # scores within rounding of each other, or of the threshold
    return worst(after.outputs, before.outputs)


def _run(program: Planned, *flat: Any) -> runs.Run:
    return runs.run(program, flat)


def _same_scores(found: Choice, made: Choice) -> bool:
    """Whether two runs scored the same tokens alike, up to rounding."""
    if not torch.equal(found.entering, made.entering):
        return False
    scores, others = (choice.score[found.entering].double() for choice in (found, made))
    finite = scores.isfinite() & others.isfinite()
    if not torch.equal(scores[~finite], others[~finite]):
        return False
    return not bool(finite.any()) or relative_difference(others[finite], scores[finite]) < SCORES
