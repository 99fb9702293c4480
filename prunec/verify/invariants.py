"""Checks of every selection, whatever its scores; a wrong one raises VerificationError."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunec.policy.site_plan import Plan, Site
from prunec.verify.choices import Choice, refuse


def check(
    site: Site, plan: Plan, choices: Sequence[Choice], ends: tuple[int, int], *, by_score: bool = True
) -> None:
    """Protected rows stay in place, patches in order, as many as planned, and the best of each image."""
    prefix, suffix = ends
    for image, choice in enumerate(choices):
        tokens = len(choice.kept)
        patches = torch.ones_like(choice.kept)
        patches[:prefix] = patches[tokens - suffix :] = False
        _check_protected(site, image, choice, ends)
        if bool((choice.kept & ~choice.alive).any()):
            refuse(site, "leave out some that were chosen", image)
        if plan.step(site).fate == "fuse" and choice.place is None and bool(choice.leaving.any()):
            refuse(site, "have no place for the fused one", image)
        if bool((choice.alive & ~choice.entering).any()):
            refuse(site, "hold some that an earlier site left out", image)
        _check_order(site, plan, image, choice, ends)
        _check_count(site, plan, image, choice, patches)
        if by_score:
            _check_scores(site, plan, image, choice, patches)
        _check_partners(site, image, choice, patches)
    selector = plan.step(site).selector
    if selector.kind == "top_k" and selector.budget == "batch":
        total = sum(int(choice.kept.sum()) for choice in choices)
        if total != len(choices) * (site.keep + prefix + suffix):
            refuse(site, f"are {total} of all images, planned are {site.keep} patches of each on average")


def _check_protected(site: Site, image: int, choice: Choice, ends: tuple[int, int]) -> None:
    prefix, suffix = ends
    tokens = len(choice.kept)
    first, last = list(range(prefix)), list(range(tokens - suffix, tokens))
    rows = choice.rows.tolist()
    if rows[:prefix] != first or rows[len(rows) - suffix :] != last:
        refuse(site, f"do not begin with {prefix} and end with {suffix} protected ones", image)
    if not bool(choice.kept[first + last].all()):
        refuse(site, "have a protected one that does not stay by itself", image)


def _check_order(site: Site, plan: Plan, image: int, choice: Choice, ends: tuple[int, int]) -> None:
    """Rows keep their order; where patches merge in pairs, even places come before odd ones."""
    rows = choice.rows[ends[0] : len(choice.rows) - ends[1]]
    if choice.place is not None:
        rows = rows[rows != choice.place]
    where, scorer = choice.where[rows], plan.step(site).scorer
    if scorer.pairs == "alternating" or (scorer.kind == "similarity" and plan.lowering.fixed):
        where = where + where % 2 * len(choice.kept)
    if bool((where.diff() <= 0).any()):
        refuse(site, "are not in order", image)


def _check_count(site: Site, plan: Plan, image: int, choice: Choice, patches: Tensor) -> None:
    selector = plan.step(site).selector
    entering, kept = int((choice.entering & patches).sum()), int((choice.kept & patches).sum())
    if selector.kind == "top_k" and selector.budget == "image":
        planned = min(entering, max(site.keep, selector.least))
        if kept != planned:
            refuse(site, f"are {kept} patches, planned are {planned}", image)
    elif kept < min(entering, selector.least):
        refuse(site, f"are {kept} patches, and {selector.least} stay in any case", image)


def _check_scores(site: Site, plan: Plan, image: int, choice: Choice, patches: Tensor) -> None:
    """No patch that leaves has a higher score than one that stays, in this very image."""
    selector = plan.step(site).selector
    if selector.kind == "sampling" or selector.budget == "batch" or selector.spare:
        return
    stay, leave = (choice.score[each & patches] for each in (choice.kept, choice.leaving))
    if len(stay) and len(leave) and bool(leave.max() > stay.min()):
        refuse(site, f"score {float(stay.min()):.3g}, one that leaves {float(leave.max()):.3g}", image)


def _check_partners(site: Site, image: int, choice: Choice, patches: Tensor) -> None:
    if choice.partner is None:
        return
    gone = choice.leaving & ~choice.alive
    if not bool((choice.alive & patches)[choice.partner[gone]].all()):
        refuse(site, "are represented by some that do not stay", image)
