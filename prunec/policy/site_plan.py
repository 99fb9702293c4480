"""The policy made concrete for one model: which sites, how many tokens each.

Counts here follow the policy's own rate; nothing is measured yet.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from prunec.errors import PolicyError
from prunec.policy.language import LATE, Selector
from prunec.policy.lowering import Lowering, choose
from prunec.policy.places import Place, places_of, share_per_site, surviving
from prunec.policy.policy import Policy, presets
from prunec.policy.rules import Rules, Step
from prunec.structure import Anatomy

Where = Literal["before_block", "after_attention"]


@dataclass(frozen=True)
class Site:
    """A place where tokens are scored and selected, with its counts."""

    block: int
    where: Where
    tokens: int  # stream length that enters, protected tokens counted in
    keep: int  # patch tokens that survive
    leaves: int  # stream length that goes on: protected + keep (+ 1 fused token)
    ragged: bool = False  # each image keeps as many as it needs; the counts are the mean
    step: int = 0  # which step of the policy
    known: bool = True  # whether the mean is; else the counts are what it may be at most

    def __str__(self) -> str:
        name = "before" if self.where == "before_block" else "after attention of"
        mean = (" on average" if self.known else " at most") if self.ragged else ""
        return f"{name} block {self.block}: {self.tokens} -> {self.leaves} tokens{mean}"


@dataclass(frozen=True)
class Plan:
    """A policy made concrete for one model: pure data, printable, editable, replayable."""

    rules: Rules
    sites: tuple[Site, ...]
    notes: tuple[str, ...] = ()
    rejoin: int | None = None  # the block before which all tokens come back
    lowering: Lowering = field(default_factory=Lowering)

    @property
    def policy(self) -> str:
        """The policy's name."""
        return self.rules.name

    @property
    def fate(self) -> str:
        """What becomes of tokens that do not stay; the same for all steps."""
        return self.rules.fate

    def step(self, site: Site) -> Step:
        """The policy's step that a site belongs to."""
        return self.rules.steps[site.step]

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for reports."""
        sites = [dataclasses.asdict(site) for site in self.sites]
        rules = self.rules.model_dump(mode="json", exclude_none=True)
        return {
            "policy": rules,
            "sites": sites,
            "notes": list(self.notes),
            "rejoin": self.rejoin,
            "lowering": self.lowering.as_dict(),
        }


def make_plan(policy: Policy, anatomy: Anatomy, lowering: Lowering | None = None) -> Plan:
    """Sites and counts of `policy` on a model; PolicyError with what fits where the policy does not."""
    _check_fit(policy, anatomy)
    rejoin = anatomy.depth - 1 if policy.restored == "rejoin" and anatomy.depth > 1 else None
    sites, notes = [], list(_warnings(policy, anatomy))
    tokens, owed = anatomy.tokens, 0  # patches that are still there because lengths are rounded up
    places = places_of(policy, anatomy.depth)
    shares = surviving(policy, [place for place in places if not _without_site(place, rejoin, anatomy)])
    for place in places:
        if reason := _without_site(place, rejoin, anatomy):
            notes.append(f"no site at block {place.block}: {reason}")
            continue
        tokens = anatomy.tokens if policy.reactivate else tokens
        step = policy.steps[place.step]
        entering = tokens - anatomy.prefix - anatomy.suffix
        if place in shares:
            wanted: int | None = min(entering, _share_of(anatomy.grid, shares[place]))
        else:
            wanted = _wanted(step.selector, place, entering, owed, anatomy.grid, policy.name)
        site, note, owed = _site(step, place, tokens, wanted, anatomy)
        if note:
            notes.append(note)
        if site is not None:
            sites.append(site)
            tokens = site.leaves
    return Plan(policy, tuple(sites), tuple(notes), rejoin, lowering or choose(policy))


def counted(plan: Plan, counts: tuple[float, ...]) -> Plan:
    """The plan with the counts that images were seen to keep, where only they can tell."""
    if not counts:
        return plan
    sites, before = [], 0
    for site, count in zip(plan.sites, counts, strict=True):
        if not site.known:
            keep = math.ceil(count)
            tokens = before or site.tokens
            site = replace(site, tokens=tokens, keep=keep, leaves=site.leaves - site.keep + keep, known=True)
        before = 0 if plan.rules.reactivate else site.leaves
        sites.append(site)
    return replace(plan, sites=tuple(sites))


def _without_site(place: Place, rejoin: int | None, anatomy: Anatomy) -> str:
    """Why a place has no site in this model, if so."""
    if rejoin is not None and place.block >= rejoin:
        return f"all tokens come back before block {rejoin}"
    if place.late and place.block == anatomy.depth - 1 and not anatomy.reads_patches:
        return "no output depends on patches behind its attention"
    return ""


def _site(
    step: Step, place: Place, tokens: int, wanted: int | None, anatomy: Anatomy
) -> tuple[Site | None, str, int]:
    """The site at a place, or none; what there is to say about it; and how many patches too many stay."""
    patches = tokens - anatomy.prefix - anatomy.suffix
    note = ""
    if step.scorer.kind == "similarity" and wanted is not None:
        movable = _even(anatomy.prefix, patches)  # these look for a partner, the others stay
        if patches - wanted > movable:
            note = f"block {place.block}: {movable} of {patches} patches can be merged at a time"
        wanted = max(wanted, patches - movable)
    keep, leaves = _counts(step, patches if wanted is None else wanted, patches, anatomy)
    owed = 0 if wanted is None else keep - wanted
    if step.selector.at == 1 or (wanted is not None and leaves >= tokens):
        return None, f"no site at block {place.block}: {tokens} tokens enter and as many would leave", owed
    ragged, known = step.selector.ragged, wanted is not None and step.selector.kind != "sampling"
    where = step.sites.where
    site = Site(place.block, where, tokens, keep, leaves, ragged, place.step, known or not ragged)
    return site, note, owed


def _wanted(selector: Selector, place: Place, patches: int, owed: int, grid: int, name: str) -> int | None:
    """How many of the patches that enter a site are to survive; None where only images can tell."""
    if selector.remove is not None:
        return max(0, patches - owed - round(selector.remove * grid))
    share = share_per_site(selector, place, name)
    return None if share is None else _share_of(patches, share)


def _share_of(patches: int, share: float) -> int:
    return math.ceil(share * patches - 1e-9)  # 0.7 * 10 is 7, not 8


def _counts(step: Step, wanted: int, patches: int, anatomy: Anatomy) -> tuple[int, int]:
    """Patches that survive a site, and the stream length after it, rounded up as the policy says."""
    protected = anatomy.prefix + anatomy.suffix
    extra = 1 if step.fate == "fuse" else 0
    keep = max(wanted, min(step.selector.least, patches))
    leaves = protected + keep + extra
    multiple = step.selector.multiple_of
    leaves = min(protected + patches, math.ceil(leaves / multiple) * multiple)
    return min(patches, leaves - protected - extra), leaves


def _even(prefix: int, patches: int) -> int:
    """How many of the patches behind `prefix` rows stand at even places."""
    return (patches + (1 - prefix % 2)) // 2


def _warnings(policy: Policy, anatomy: Anatomy) -> Iterator[str]:
    """What works, but is or costs something else than its user may think."""
    yield from anatomy.notes
    if anatomy.class_token is None and any(step.scorer.kind == "cls_attention" for step in policy.steps):
        yield (
            "tokens are scored by the attention of token 0, the first learned one in front of the patches, "
            "which the head does not read"
        )
    branches = [branch for block in anatomy.blocks for branch in block.branches]
    fused = any(core.form == "fused" for branch in branches for core in branch.cores)
    if fused and any(step.scorer.kind == "received_attention" for step in policy.steps):
        yield (
            "received_attention needs the whole attention map, which the fused attention does not give: it "
            "is computed again; cls_attention needs one row of it, query and similarity none"
        )


def _check_fit(policy: Policy, anatomy: Anatomy) -> None:
    kinds = {step.scorer.kind for step in policy.steps}
    if "cls_attention" in kinds and anatomy.scoring_token is None:
        lacking = {"class token", "class scores of tokens"}
        fits = [name for name, other in presets().items() if not other.needs & lacking]
        raise PolicyError(
            f"policy {policy.name!r} scores tokens by the attention of the class token, and this model's "
            f"head reads none (it reads {' and '.join(anatomy.head) or 'nothing'})",
            where="scorer.kind",
            remedy=f"presets that fit this model: {', '.join(fits)}",
        )
    if policy.restored == "none" and anatomy.wants_all and policy.site_blocks(anatomy.depth):
        raise PolicyError(
            f"policy {policy.name!r} leaves tokens out for good (fate {policy.fate}), and this model's head "
            "reads all of them, as detectors and segmenters do",
            where="restore",
            remedy="say how they come back: restore share (with the update of the token that stands for "
            "them) or stale (with the value they had), or use a policy that preserves or merges them",
        )
    for step in policy.steps:
        for index in policy.blocks_of(step, anatomy.depth):
            _check_place(policy, step, index, anatomy)
    places = places_of(policy, anatomy.depth)
    _check_counts(policy, places)
    for one, other in itertools.pairwise(places):
        reads_late = policy.steps[other.step].scorer.kind in LATE
        same = one.block == other.block and one.late == other.late
        if same or (one.late and not other.late and one.block == other.block - 1 and reads_late):
            raise PolicyError(
                f"policy {policy.name!r} has two sites with no block between them, at block {other.block}, "
                "and what the second one scores by has more tokens than it chooses from",
                where="then",
                remedy="move one of the steps to another block",
            )


def _check_counts(policy: Policy, places: list[Place]) -> None:
    """The same number of every image cannot be chosen where images have different numbers already."""
    ragged = False
    for place in places:
        selector = policy.steps[place.step].selector
        if ragged and not selector.ragged and not policy.reactivate:
            raise PolicyError(
                f"policy {policy.name!r} keeps as many tokens of every image at block {place.block}, where "
                "images have different numbers of them already",
                where=f"then[{place.step - 1}].selector.kind" if place.step else "selector.kind",
                remedy="choose by a threshold there too, or let that step come first",
            )
        ragged = ragged or selector.ragged


def _check_place(policy: Policy, step: Step, index: int, anatomy: Anatomy) -> None:
    block = anatomy.blocks[index]
    if step.sites.where == "after_attention" and not block.sequential:
        raise PolicyError(
            f"policy {policy.name!r} places a site between attention and MLP, but block {index} computes "
            "both from the same state",
            where=f"sites.where, {block.path or f'block {index}'}",
            remedy="use `where: before_block`",
        )
    if step.scorer.pairs == "windows" and index != min(policy.site_blocks(anatomy.depth)):
        raise PolicyError(
            f"policy {policy.name!r} merges windows of the grid at block {index}, where the grid has holes",
            where="scorer.pairs",
            remedy="use pairs windows at the first site alone, alternating pairs behind it",
        )
