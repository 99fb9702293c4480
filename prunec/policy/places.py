"""Where a policy's sites may come in a model, and which share of all patches is to be left behind each.

keep 0.5, three sites         0.79, 0.63, 0.5 of all patches: each site takes the same share of what enters
keep 0.5, sites that remove   0.83, 0.67, 0.5: each takes as many
keep 0.5, stages 3            of any site's patches all may come back, so it is the last third that has 0.5
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from prunec.errors import PolicyError
from prunec.policy.language import Selector
from prunec.policy.policy import Policy


@dataclass(frozen=True)
class Place:
    """Where a site may come, and which one of its step's sites it is."""

    block: int
    late: bool  # inside the block, after its attention
    step: int
    number: int
    of: int


def places_of(policy: Policy, depth: int) -> list[Place]:
    """All places of all steps, in the order of the stream."""
    found = []
    for index, step in enumerate(policy.steps):
        blocks = policy.blocks_of(step, depth)
        late = step.sites.where == "after_attention"
        found += [Place(block, late, index, number, len(blocks)) for number, block in enumerate(blocks)]
    return sorted(found, key=lambda place: (place.block, place.late, place.step))


def share_per_site(selector: Selector, place: Place, name: str) -> float | None:
    """The share of what enters that survives this site by the step's own rate; None where it has none."""
    if not isinstance(selector.keep_per_site, tuple):
        power = place.number * selector.stages // place.of + 1
        return None if selector.keep_per_site is None else float(selector.keep_per_site**power)
    if len(selector.keep_per_site) != place.of:
        raise PolicyError(
            f"keep_per_site lists {len(selector.keep_per_site)} shares, and there are {place.of} sites",
            where=f"policy {name}, selector.keep_per_site",
            remedy="give one share, or one for each site",
        )
    return selector.keep_per_site[place.number]


def surviving(policy: Policy, places: Sequence[Place]) -> dict[Place, float]:
    """Of a policy with `keep`: the share of all patches left behind each site, `keep` behind the last.

    How much each site takes follows the rates that its steps have beside `keep`.
    """
    if policy.keep is None or not places:
        return {}
    keep, removing = policy.keep, all(step.selector.remove is not None for step in policy.steps)
    takes = [_takes(policy, place, removing=removing) for place in places]
    levels = takes if policy.reactivate else list(accumulate(takes))
    if levels[-1] > 0:
        parts = [level / levels[-1] for level in levels]
    else:
        parts = [(number + 1) / len(places) for number in range(len(places))]
    shares = [1 - (1 - keep) * part if removing else keep**part for part in parts]
    return dict(zip(places, shares, strict=True))


def _takes(policy: Policy, place: Place, *, removing: bool) -> float:
    """How much a site takes by its own rate, beside others: logarithms add up where shares multiply."""
    selector = policy.steps[place.step].selector
    if removing:
        return float(selector.remove or 0)
    share = share_per_site(selector, place, policy.name)
    return -math.log(1 - (selector.remove or 0) if share is None else share)
