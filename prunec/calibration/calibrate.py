"""Fit a policy's learned parts to what the dense model itself reveals, on images without labels.

    dense model, images --> state of each site, and how much each token's block matters for the output
                            '-- fit the site's scorer to it (learned.py, importance.py)
    pruned model, images --> scores at each site, first to last --> threshold that keeps the share asked for
                                                                    (thresholds.py)

No program is changed: what was fitted comes back by name, to make a new program with.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from torch import Tensor

from prunec.calibration.inputs import ENOUGH, fitting_batches, pixels_of
from prunec.calibration.kept import count_kept
from prunec.calibration.learned import Scorers, fit_scorers
from prunec.calibration.thresholds import fit_thresholds
from prunec.ir.program import Planned, Recognised
from prunec.ops import Learned
from prunec.policy.site_plan import counted

LEAST_FIT = 0.3  # rank correlation below which scores say next to nothing


@dataclass(frozen=True)
class Calibration:
    """What was fitted, on how many images, and how well it predicts."""

    images: int
    name: str  # which images
    fits: tuple[float, ...]  # for each site, the rank correlation on images that it was not fitted to
    shares: tuple[tuple[float, float], ...]  # for each site: share of the patches asked for, and met
    counts: tuple[float, ...]  # for each site, where images differ: how many patches they keep on average
    seconds: float
    graded: bool = False  # whether scorers say what tokens are; a fit is then the share that they get right

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why it may not hold for other images."""
        found = []
        if self.images < ENOUGH:
            found.append(
                f"calibrated on {self.images} images only, which may not hold for others: give enough that "
                f"{ENOUGH} are for calibration (half of a folder is)"
            )
        weak = [fit for fit in self.fits if not fit >= LEAST_FIT]  # a constant has no correlation: nan
        if weak and not self.graded:
            found.append(
                f"the scorers of {len(weak)} of {len(self.fits)} sites predict next to nothing on images "
                f"that they were not fitted to (rank correlation {weak[0]:.2f}, {LEAST_FIT} is little): give "
                "more images, or a policy without learned scorers"
            )
        return tuple(found)

    def __str__(self) -> str:
        parts = [f"on {self.images} {self.name}"]
        if self.fits:
            mean = sum(self.fits) / len(self.fits)
            what = (
                "graders agree with the model on held-out tokens"
                if self.graded
                else "scorers rank held-out tokens"
            )
            parts.append(f"{what} at {mean:.2f} (worst site {min(self.fits):.2f})")
        if self.counts and not self.shares:
            parts.append(
                f"images keep {', '.join(f'{count:.1f}' for count in self.counts)} patches on average"
            )
        if self.shares:
            worst = max(abs(asked - met) for asked, met in self.shares)
            parts.append(f"mean keep within {worst:.3f} of what was asked for")
        return ", ".join(parts)


@dataclass(frozen=True)
class Fitted:
    """What calibration found."""

    values: dict[str, Tensor]  # of scorers and thresholds, by their paths in the program
    calibration: Calibration
    scorers: Scorers = ({}, ())  # the part of them that does not change with the rate

    def put_into(self, pruned: Planned) -> Planned:
        """The program with these values, and the counts that images were seen to keep in its plan."""
        done = self.calibration
        made = pruned.with_values(self.values).replace(plan=counted(pruned.plan, done.counts))
        return made.recorded("calibrate", done.seconds, {"images": done.images}, (str(done),))


def needs_calibration(pruned: Planned) -> bool:
    """Whether images must give it numbers: a scorer's parameters, a threshold that the policy leaves open."""
    selectors = [pruned.plan.step(site).selector for site in pruned.plan.sites]
    return any(selector.needs_calibration for selector in selectors) or any(
        isinstance(node.target, Learned) and node.target.trainable for node in pruned.graph.nodes
    )


def calibrate(
    dense: Recognised, pruned: Planned, images: Tensor, name: str, scorers: Scorers | None = None
) -> Fitted:
    """Fit the learned scorers and the thresholds of `pruned`.

    Args:
        dense: the captured program, nothing inserted.
        pruned: the same with its sites; their parameters are `prunec.site_0` and so on.
        images: [n, ...], normalised, in the precision that the model takes. Eight or more.
        name: which images these are, for the report.
        scorers: of the same policy at the same sites and another rate, on the same images: only the
            thresholds are fitted then.
    """
    start = time.perf_counter()
    images = fitting_batches(pruned, images)
    fitted = fit_scorers(dense, pruned, images) if scorers is None else scorers
    values, fits = fitted
    pruned = pruned.with_values(values)
    thresholds, shares = fit_thresholds(pruned, images)
    ragged = any(site.ragged for site in pruned.plan.sites)
    counts = count_kept(pruned.with_values(thresholds), images) if ragged else ()
    seconds, graded = time.perf_counter() - start, pruned.plan.fate == "exit"
    found = Calibration(len(images), name, fits, shares, counts, seconds, graded)
    return Fitted({**values, **thresholds}, found, fitted)


def kept_on_example(pruned: Planned) -> Planned:
    """A program that is not calibrated, with thresholds of novelty that keep what is planned on its example.

    Any token is new to some degree: with a threshold of 0 all would stay, and its time would say nothing.
    """
    rules = [pruned.plan.step(site) for site in pruned.plan.sites]
    if not any(step.scorer.kind == "novelty" and step.selector.needs_calibration for step in rules):
        return pruned
    return pruned.with_values(fit_thresholds(pruned, pixels_of(pruned))[0])
