"""A preset at a budget: the rate at which its program does that share of the dense model's FLOPs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

from backbone import WIDTH
from torch import Tensor

from prunec.calibration.calibrate import calibrate, needs_calibration
from prunec.calibration.learned import Scorers
from prunec.compiler import plan
from prunec.errors import PolicyError
from prunec.frontend.sources import ImageSet
from prunec.ir.program import Planned, Recognised
from prunec.measure import figures
from prunec.passes import BACK, lowering_passes, run_passes
from prunec.policy.lowering import choose
from prunec.policy.policy import Policy
from prunec.policy.site_plan import Plan

NEAR = 0.015  # of the dense FLOPs: near enough to a budget
FAR = 0.03  # too far to be compared at it
BUILDS = 3  # programs that are built, at most, to come near
LEAST = 0.01  # the smallest rate


class FarError(Exception):
    """A policy comes nowhere near a budget; the message says how near."""


@dataclass(frozen=True)
class Bench:
    """What a program is built from and counted on."""

    dense: Recognised
    dense_flops: int
    fitted_on: ImageSet
    counted_on: Tensor  # pictures that FLOPs are counted on, where they keep different numbers
    scorers: dict[str, Scorers] = field(default_factory=dict)  # of each preset: fitted once for all rates


@dataclass(frozen=True)
class Built:
    """A preset at one rate."""

    policy: Policy
    rate: float
    program: Planned
    flops: float  # of the dense model's
    calibration: str = ""

    def one_image(self) -> Planned:
        """The same for one image at a time, without padding: what is timed."""
        lowering = choose(self.policy, batch=1)
        planned = dataclasses.replace(self.program.plan, lowering=lowering)
        return run_passes(lowering_passes(lowering), self.program.replace(plan=planned))


def at_budget(policy: Policy, budget: float, bench: Bench) -> Built:
    """The preset as near to the budget as a few programs come, searched by what they really do.

    Raises:
        FarError: it comes nowhere near the budget.
        PruneError: it does not go with the model.
    """
    policy = restored(policy, bench.dense)
    tried: list[tuple[float, Built]] = []  # beside what the plan was asked for
    for _ in range(BUILDS):
        aim = _next_aim(budget, [(asked, built.flops) for asked, built in tried])
        built = _built(policy, rate_for(policy, aim, bench), bench)
        tried.append((aim, built))
        if abs(built.flops - budget) <= NEAR:
            break
    nearest = min((built for _, built in tried), key=lambda built: abs(built.flops - budget))
    if abs(nearest.flops - budget) > FAR:
        raise FarError(f"it comes no nearer than {nearest.flops:.0%}, at a rate of {nearest.rate:.3f}")
    return nearest if policy.ragged else _calibrated(nearest, bench)


def _next_aim(budget: float, tried: Sequence[tuple[float, float]]) -> float:
    """What share to ask of the plan, from what was asked before and what came of it."""
    if not tried:
        return budget
    asked, came = tried[-1]
    slope = 1.0
    if len(tried) > 1 and came != tried[-2][1]:
        slope = (asked - tried[-2][0]) / (came - tried[-2][1])
    return min(1.0, asked + slope * (budget - came))


def restored(policy: Policy, dense: Recognised) -> Policy:
    """The policy; where the model's readers want all tokens and it loses some, with those restored."""
    try:
        plan(dense, policy)
    except PolicyError as error:
        if error.where != "restore":
            raise
        return policy.override(restore="share")
    return policy


def at_rate(policy: Policy, rate: float) -> Policy:
    """The policy at a rate in (0, 1], in the terms of the preset: less removed at each site, or more kept."""
    if policy.selector.remove is None:
        return policy.override(keep_per_site=rate)
    data = policy.model_dump(exclude_unset=True)
    data["selector"] = {**data["selector"], "remove": 1 - rate}
    return Policy.load(data)


def rate_for(policy: Policy, share: float, bench: Bench) -> float:
    """The largest rate whose plan is estimated below a share; bisection, for a plan costs nothing."""
    low, high = LEAST, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        planned = plan(bench.dense, at_rate(policy, middle)).plan
        low, high = (middle, high) if estimated(planned, bench) < share else (low, middle)
    return low


def estimated(planned: Plan, bench: Bench) -> float:
    """The share of the blocks' FLOPs by the plan's counts: where a search begins, no figure of a report."""
    anatomy = bench.dense.anatomy
    lengths = [[anatomy.tokens, anatomy.tokens] for _ in range(anatomy.depth)]  # at attention, at MLP
    for site in planned.sites:
        early = site.where == "before_block"
        last = site.block + 1 if planned.rules.reactivate else planned.rejoin or anatomy.depth
        lengths[site.block] = [site.leaves if early else lengths[site.block][0], site.leaves]
        for block in range(site.block + 1, last):
            lengths[block] = [site.leaves, site.leaves]
    dense = anatomy.depth * _block(anatomy.tokens, anatomy.tokens)
    return sum(_block(attention, mlp) for attention, mlp in lengths) / dense


def _block(attention: int, mlp: int) -> int:
    return 4 * WIDTH * attention + 2 * attention * attention + 8 * WIDTH * mlp


def _built(policy: Policy, rate: float, bench: Bench) -> Built:
    """The program; where images keep different numbers of tokens only a calibrated one can be counted."""
    chosen = at_rate(policy, rate)
    built = Built(chosen, rate, run_passes(BACK, plan(bench.dense, chosen)), 1.0)
    if policy.ragged:
        built = _calibrated(built, bench)
    inputs = figures.inputs(built.program, len(bench.counted_on), bench.counted_on)
    return dataclasses.replace(built, flops=figures.flops(built.program, inputs) / bench.dense_flops)


def _calibrated(built: Built, bench: Bench) -> Built:
    """With its learned parts and thresholds fitted."""
    if not needs_calibration(built.program):
        return built
    images, known = bench.fitted_on, bench.scorers.get(built.policy.name)
    fitted = calibrate(bench.dense, built.program, images.images, images.name, known)
    bench.scorers[built.policy.name] = fitted.scorers
    program = fitted.put_into(built.program)
    return dataclasses.replace(built, program=program, calibration=str(fitted.calibration))


def same_rules(one: Policy, other: Policy) -> bool:
    """Whether two policies differ only in name and training."""
    apart = {"name", "summary", "paper", "training"}
    return one.model_dump(exclude=apart) == other.model_dump(exclude=apart)
