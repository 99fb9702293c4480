"""Thresholds that keep, over the images of a calibration, the share of tokens that a policy asks for.

pruned model, images --> scores at each site, first to last --> threshold that keeps the share asked for
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from prunec import ops
from prunec.calibration.inputs import batch_of, call_on
from prunec.errors import REPORT, InternalError
from prunec.ir import arguments
from prunec.ir.program import Planned
from prunec.policy.site_plan import Site

Shares = tuple[tuple[float, float], ...]


def fit_thresholds(pruned: Planned, images: Tensor) -> tuple[dict[str, Tensor], Shares]:
    """Thresholds by their paths in the program, and for each site the share asked for and the one met."""
    found: dict[str, Tensor] = {}
    shares = []
    for number, site in enumerate(pruned.plan.sites):
        if pruned.plan.step(site).selector.needs_calibration:
            threshold, met = _threshold(pruned.with_values(found), number, site, images)
            found[f"prunec.site_{number}.threshold"] = torch.tensor(threshold, dtype=torch.float64)
            shares.append((site.keep / pruned.anatomy.grid, met))
    return found, tuple(shares)


def _threshold(pruned: Planned, number: int, site: Site, images: Tensor) -> tuple[float, float]:
    """One site's threshold, so that the share asked for passes, and the share that does."""
    parts = [_scores(pruned, number, part) for part in images.split(batch_of(pruned))]
    for part in parts:  # the best of each image pass in any case
        best = part.argsort(dim=1, descending=True)[:, : pruned.plan.step(site).selector.least]
        part.scatter_(1, best, float("inf"))
    scores = torch.cat([part.flatten() for part in parts])
    ordered = scores[scores > float("-inf")].sort(descending=True).values
    most = min(site.keep * len(images), len(ordered))
    finite = ordered[ordered < float("inf")]
    above = min(float(ordered[most - 1]), float(finite[0]) + 1)
    below = float(ordered[most]) if most < len(ordered) else above - 1
    threshold = (above + below) / 2
    return threshold, int((scores > threshold).sum()) / (pruned.anatomy.grid * len(images))


def _scores(pruned: Planned, number: int, images: Tensor) -> Tensor:
    """Scores of all patches at one site, with the thresholds of those before it: [n, N]."""
    reader = _ScoreReader(pruned, number)
    try:
        with torch.no_grad():
            reader.run(*call_on(pruned, images))
    except _Reached as reached:
        return reached.scores
    raise InternalError(f"site {number} of the plan chooses among no scores", remedy=REPORT)


class _Reached(Exception):  # noqa: N818  not an error: what was asked for is known
    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = scores


class _ScoreReader(fx.Interpreter):
    """Runs a ragged program up to one site, and raises the scores that stand there to choose from."""

    def __init__(self, program: Planned, number: int) -> None:
        super().__init__(program.module, garbage_collect_values=True)
        self.prefix, self.suffix = program.anatomy.prefix, program.anatomy.suffix
        self.left = number

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Everything as it is, until the site comes."""
        if target not in ops.MASKS:
            return super().call_function(target, args, kwargs)
        if self.left == 0:
            given = arguments.bind_call(target, args, kwargs)
            score, alive = given["score"], given["valid"]
            score = score if alive is None else score.masked_fill(~alive, float("-inf"))
            raise _Reached(score[:, self.prefix : score.shape[1] - self.suffix])
        self.left -= 1
        return super().call_function(target, args, kwargs)
