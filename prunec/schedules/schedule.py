"""A schedule as part of a policy: which blocks have a site, and how long the stream is behind each.

    {3: 112, 7: 48}   ==>   sites: {where: ..., blocks: [3, 7]}
                            selector: {kind: ..., keep_per_site: [0.561, 0.423]}

The rates are such that `make_plan` arrives at just these lengths, so a planned policy is an ordinary policy:
it prints, is edited, saved and loaded like any other.
"""

from __future__ import annotations

from collections.abc import Mapping

from prunec.errors import PolicyError
from prunec.policy.policy import Policy
from prunec.schedules.search import Limits
from prunec.structure import Anatomy

#: Stream length behind the site of each block that has one.
Schedule = Mapping[int, int]


def scheduled(policy: Policy, anatomy: Anatomy, schedule: Schedule) -> Policy:
    """The policy with just these sites and lengths.

    Raises:
        PolicyError: the policy cannot be scheduled, or the model has no such blocks or lengths.
    """
    check_schedulable(policy)
    _check(policy, anatomy, schedule)
    data = policy.model_dump()
    rates, entering, fixed = [], anatomy.tokens, unprunable(policy, anatomy)
    protected = anatomy.prefix + anatomy.suffix
    for _, leaves in sorted(schedule.items()):
        rates.append((leaves - fixed) / (entering - protected))
        entering = anatomy.tokens if policy.reactivate else leaves
    kind = "threshold" if policy.selector.kind == "adaptive" else policy.selector.kind
    alone = {"remove": None, "at": None, "stages": 1, "multiple_of": 1, "least": 1}
    data["selector"].update(kind=kind, keep_per_site=rates or 1.0, **alone)
    data["keep"] = None
    data["sites"].update(blocks=tuple(sorted(schedule)), depths=None, between=None)
    return Policy.load(data)


def unprunable(policy: Policy, anatomy: Anatomy) -> int:
    """Tokens of the stream behind a site that are no kept patches: protected ones, and the fused one."""
    return anatomy.prefix + anatomy.suffix + (policy.fate == "fuse")


def shortest(policy: Policy, anatomy: Anatomy, entering: int) -> int:
    """The shortest stream that one site can leave: of pairs only one half can be merged into the other."""
    least = unprunable(policy, anatomy) + 1
    if policy.scorer.kind != "similarity":
        return least
    patches = entering - anatomy.prefix - anatomy.suffix
    return max(least, entering - (patches + (1 - anatomy.prefix % 2)) // 2)


def limits_of(
    policy: Policy,
    anatomy: Anatomy,
    *,
    first: int,
    sites: int | None,
    only: tuple[int, ...] | None = None,
    least: int | None = None,
) -> Limits:
    """What schedules of a policy may look like on a model."""
    if only is not None and policy.reactivate:
        raise PolicyError(
            f"policy {policy.name!r} chooses among all tokens in each block: it cannot be planned for some",
            where="the blocks that may have a site",
            remedy="name the first one instead: --first",
        )
    least = least or unprunable(policy, anatomy) + min(8, max(1, anatomy.grid // 8))
    sites = None if policy.reactivate else sites
    return Limits(first, last_block(policy, anatomy), least, sites, only, policy.reactivate)


def last_block(policy: Policy, anatomy: Anatomy) -> int:
    """The last block that may have a site: in some policies the last one sees all tokens, or needs none."""
    unread = policy.sites.where == "after_attention" and not anatomy.reads_patches
    return anatomy.depth - 1 - (unread or policy.restored == "rejoin")


def unschedulable(policy: Policy) -> str:
    """Why a policy's counts cannot be chosen site by site; empty where they can."""
    reasons = {
        "has no sites": all(step.sites.blocks == () for step in policy.steps),
        "has several steps, and a schedule is of one": bool(policy.then),
        "lets tokens exit by how sure it is of them, not by a count": policy.fate == "exit",
        "merges whole windows, not a count of tokens": policy.scorer.pairs == "windows",
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def check_schedulable(policy: Policy) -> None:
    """PolicyError where there are no counts to choose site by site."""
    if reason := unschedulable(policy):
        raise PolicyError(
            f"policy {policy.name!r} {reason}: there is no schedule to choose",
            where="the policy",
            remedy="let `prunec plan` find its rate, use it with --keep, or name another policy",
        )


def _check(policy: Policy, anatomy: Anatomy, schedule: Schedule) -> None:
    entering, last = anatomy.tokens, last_block(policy, anatomy)
    for block, leaves in sorted(schedule.items()):
        least = shortest(policy, anatomy, entering)
        if not 0 <= block < anatomy.depth:
            reason = f"there is no block {block}, the model has blocks 0 to {anatomy.depth - 1}"
        elif block > last:
            reason = f"block {block} cannot have a site with this policy: up to block {last} can"
        elif not least <= leaves < entering:
            reason = (
                f"{leaves} tokens cannot leave the site of block {block}: {entering} enter, so "
                f"{least} to {entering - 1} can"
            )
        else:
            entering = anatomy.tokens if policy.reactivate else leaves
            continue
        raise PolicyError(
            reason, where=f"schedule of policy {policy.name}, block {block}", remedy="change that entry"
        )
