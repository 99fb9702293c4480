"""The policy made concrete for one model: which sites, how many tokens each.

Counts here follow the policy's own rate; nothing is measured yet.
"""

from __future__ import annotations

import math

from prunec.anatomy import Anatomy
from prunec.errors import PolicyError
from prunec.policy import Policy, presets
from prunec.program import Plan, Site

#: The share of a stream's channels that a scorer's hidden layer has where the policy does not say.
HIDDEN = 0.25


def make_plan(policy: Policy, anatomy: Anatomy) -> Plan:
    """Sites and counts of `policy` on a model; PolicyError with what fits where the policy does not."""
    _check_fit(policy, anatomy)
    sites, notes = [], []
    blocks = policy.site_blocks(anatomy.depth)
    tokens = anatomy.tokens
    for place, index in enumerate(blocks):
        tokens = anatomy.tokens if policy.reactivate else tokens
        stage = place * policy.selector.stages // len(blocks) + 1
        keep, leaves = _counts(policy, policy.selector.keep**stage, tokens, anatomy)
        site = Site(index, policy.sites.where, tokens, keep, leaves, policy.selector.kind == "threshold")
        if leaves >= tokens:
            notes.append(f"no site at block {index}: {tokens} tokens enter and as many would leave")
            continue
        sites.append(site)
        tokens = leaves
    return Plan(
        policy.name,
        policy.scorer.kind,
        policy.fate,
        tuple(sites),
        tuple(notes),
        reactivate=policy.reactivate,
        hidden=policy.scorer.hidden or HIDDEN,
        multiple_of=policy.selector.multiple_of,
        least=policy.selector.least,
    )


def _counts(policy: Policy, share: float, tokens: int, anatomy: Anatomy) -> tuple[int, int]:
    """Patches that survive a site, and the stream length after it, rounded up as the policy says."""
    protected = anatomy.prefix + anatomy.suffix
    patches = tokens - protected
    extra = 1 if policy.fate == "fuse" else 0
    keep = max(math.ceil(share * patches - 1e-9), min(policy.selector.least, patches))  # 0.7 * 10 is 7, not 8
    leaves = protected + keep + extra
    leaves = min(tokens, math.ceil(leaves / policy.selector.multiple_of) * policy.selector.multiple_of)
    return min(patches, leaves - protected - extra), leaves


def _check_fit(policy: Policy, anatomy: Anatomy) -> None:
    if policy.scorer.kind == "cls_attention" and anatomy.class_token is None:
        fits = [name for name, other in presets().items() if other.scorer.kind != "cls_attention"]
        raise PolicyError(
            f"policy {policy.name!r} scores tokens by the attention of the class token, and this model's "
            f"head reads none (it reads {' and '.join(anatomy.head) or 'nothing'})",
            where="scorer.kind",
            remedy=f"presets that fit this model: {', '.join(fits)}",
        )
    for index in policy.site_blocks(anatomy.depth):
        block = anatomy.blocks[index]
        if policy.sites.where == "after_attention" and not block.sequential:
            raise PolicyError(
                f"policy {policy.name!r} places a site between attention and MLP, but block {index} computes "
                "both from the same state",
                where=f"sites.where, {block.path or f'block {index}'}",
                remedy="use `where: before_block`",
            )
