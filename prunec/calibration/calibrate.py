"""Fit a policy's learned parts to what the dense model itself reveals, on images without labels.

    dense model, images --> state of each site, and how much each token's block matters for the output
                            '-- fit the site's scorer to it (regression)
    pruned model, images --> scores at each site, first to last --> threshold that keeps the share asked for

How much it matters: to first order, by how much the output changes if the block reads the mean token in this
token's place, that is, the gradient through the block's branches times the token's distance from the mean.
The gradient is of random projections of the output, so that no label and no loss is needed. What else the
dense model reveals (attention, change, plain gradients) predicts less; docs/design/005 has the measurements.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from prunec import compat, ops
from prunec.dataflow.heads import ClassScores, class_scores
from prunec.errors import CalibrationError
from prunec.ir import graph
from prunec.ir.program import Planned, Recognised
from prunec.policy.site_plan import Site
from prunec.scorers.fitting import HELD_OUT, fit, fit_grader
from prunec.scorers.scoring import state_of
from prunec.structure import Anatomy

PROJECTIONS = 4  # of the output, for one image
BATCH = 8
ENOUGH = 64  # images that a calibration holds on
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


def calibrate(dense: Recognised, pruned: Planned, images: Tensor, name: str) -> Calibration:
    """Set the learned scorers and the thresholds of `pruned`, in place.

    Args:
        dense: the captured program, nothing inserted.
        pruned: the same with its sites; their parameters are `prunec.site_0` and so on.
        images: [n, ...], normalised, in the precision that the model takes. Eight or more.
        name: which images these are, for the report.
    """
    start = time.perf_counter()
    images = _fitting(pruned, images)
    fits = tuple(_fit_all(dense, pruned, images))
    shares = tuple(
        _set_threshold(pruned, number, site, images)
        for number, site in enumerate(pruned.plan.sites)
        if pruned.plan.step(site).selector.needs_calibration
    )
    counts = count_kept(pruned, images) if any(site.ragged for site in pruned.plan.sites) else ()
    seconds, graded = time.perf_counter() - start, pruned.plan.fate == "exit"
    return Calibration(len(images), name, fits, shares, counts, seconds, graded)


def _fitting(program: Recognised, images: Tensor) -> Tensor:
    """The images, as many as fill whole batches; CalibrationError when they do not fit or are too few."""
    example = _pixels(program)
    if images.shape[1:] != example.shape[1:] or images.dtype != example.dtype:
        raise CalibrationError(
            f"the images to calibrate on are {images.dtype}{list(images.shape)}, the model takes "
            f"{example.dtype}{['n', *example.shape[1:]]}",
            remedy="give images as the model gets them: scaled, normalised, in its precision",
        )
    size = _batch(program)
    images = images if program.interface.batch else images[: len(images) // size * size]
    if len(images) < 2 * HELD_OUT:
        raise CalibrationError(
            f"{len(images)} images are too few to calibrate on",
            remedy=f"give {2 * HELD_OUT} or more; {ENOUGH} are plenty",
        )
    return images.to(example.device)


def _batch(program: Recognised) -> int:
    """How many images run at a time: what the model fixed, if it did."""
    return BATCH if program.interface.batch else len(_pixels(program))


def _pixels(program: Recognised) -> Tensor:
    """The example's images."""
    places = [node.name for node in program.graph.nodes if node.op == "placeholder"]
    leaf = program.interface.example[places.index(program.anatomy.pixels)]
    assert isinstance(leaf, Tensor)
    return leaf


# --- the scorers --------------------------------------------------------------------------------


def _fit_all(dense: Recognised, pruned: Planned, images: Tensor) -> Iterator[float]:
    anatomy, plan = pruned.anatomy, pruned.plan
    scorers = [node.target for node in pruned.graph.nodes if isinstance(node.target, ops.Learned)]
    if not (learned := [scorer for scorer in scorers if scorer.trainable]):
        return
    spans = [span_of(anatomy, plan.sites[scorer.site]) for scorer in learned]
    seen = Importance(dense, spans, anatomy).run(images)
    grades = _grades(dense, images) if plan.fate == "exit" else None
    for scorer, (states, importance) in zip(learned, seen, strict=True):
        own = ops.tensors_of(pruned.module.get_submodule(f"prunec.site_{scorer.site}.gate"))
        gate = scorer.alone(own)
        given = (images if scorer.pixels else states).float()
        yield fit(gate, given, importance) if grades is None else fit_grader(gate, given, grades)
        with torch.no_grad():
            for name, value in ops.tensors_of(gate).items():
                own[name].copy_(value)


def _grades(dense: Recognised, images: Tensor) -> Tensor:
    """What the model itself says of each patch: class scores [n, N, K]."""
    scores = class_scores(dense)
    assert isinstance(scores, ClassScores)
    prefix, end = dense.anatomy.prefix, dense.anatomy.tokens - dense.anatomy.suffix
    parts = []
    for batch in images.split(_batch(dense)):
        recorder = graph.Recorder(dense.module, {scores.node})
        with torch.no_grad():
            recorder.run(*call_on(dense, batch))
        found = recorder.values[scores.node].movedim(scores.axis, -1).flatten(1, -2)  # [B, N or T, K]
        parts.append(found[:, prefix:end] if scores.all_tokens else found)
    return torch.cat(parts).float()


def span_of(anatomy: Anatomy, site: Site) -> tuple[str, str]:
    """The states between which a token that is not kept stays as it is: at the site, and after its block."""
    return state_of(anatomy, site), anatomy.blocks[site.block].branches[-1].add


class Importance:
    """Runs the dense model and keeps the states of the sites, with how much each token's change matters."""

    def __init__(self, dense: Recognised, spans: list[tuple[str, str]], anatomy: Anatomy) -> None:
        self.dense, self.spans, self.anatomy = dense, spans, anatomy
        self.wanted = {name for span in spans for name in span}

    def run(self, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        """For each span: states [n, N, C] and importance [n, N] of the patches."""
        parts: list[list[tuple[Tensor, Tensor]]] = [[] for _ in self.spans]
        for batch in images.split(_batch(self.dense)):
            for place, found in enumerate(self._seen(batch)):
                parts[place].append(found)
        return [(torch.cat([s for s, _ in part]), torch.cat([i for _, i in part])) for part in parts]

    def _seen(self, images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        recorder = graph.Recorder(self.dense.module, self.wanted)
        with torch.enable_grad(), torch.random.fork_rng():
            outputs = recorder.run(*call_on(self.dense, images.detach().requires_grad_()))
            starts, ends = ([recorder.values[span[side]] for span in self.spans] for side in (0, 1))
            states = [self._rows(start).detach() for start in starts]  # [B, N, C]
            squares = [torch.zeros_like(state[..., 0]) for state in states]
            for seed in range(PROJECTIONS):
                torch.manual_seed(seed)
                gradients = torch.autograd.grad(_projection(outputs), [*starts, *ends], retain_graph=True)
                at_starts, at_ends = gradients[: len(starts)], gradients[len(starts) :]
                for place, state in enumerate(states):
                    through_block = self._rows(at_starts[place] - at_ends[place])
                    effect = through_block * (state - state.mean(dim=1, keepdim=True))
                    squares[place] += effect.sum(dim=-1).square()
        for state, square in zip(states, squares, strict=True):
            yield state, (square / PROJECTIONS).sqrt()

    def _rows(self, state: Tensor) -> Tensor:
        """The patches of a state: [B, N, C]."""
        state = state.movedim(self.anatomy.token_dim, 1)
        return state[:, self.anatomy.prefix : state.shape[1] - self.anatomy.suffix]


def _projection(outputs: Any) -> Tensor:
    """One random sum over everything that the model says, each output on its own scale."""
    total = torch.zeros(())
    for output in compat.tree_leaves(outputs):
        if isinstance(output, Tensor) and output.is_floating_point() and output.requires_grad:
            signs = torch.randint(0, 2, output.shape).to(output) * 2 - 1
            scale = output.detach().float().std().clamp_min(1e-6)
            total = total.to(output.device) + (output * signs).float().sum() / scale
    return total


# --- the thresholds -----------------------------------------------------------------------------


def _set_threshold(pruned: Planned, number: int, site: Site, images: Tensor) -> tuple[float, float]:
    """Set one site's threshold so that the share asked for passes; that share, and the one met."""
    anatomy = pruned.anatomy
    parts = [_scores(pruned, number, part) for part in images.split(_batch(pruned))]
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
    pruned.module.get_buffer(f"prunec.site_{number}.threshold").fill_(threshold)
    patches = anatomy.grid * len(images)
    return site.keep / anatomy.grid, int((scores > threshold).sum()) / patches


def _scores(pruned: Planned, number: int, images: Tensor) -> Tensor:
    """Scores of all patches at one site, with the thresholds of those before it: [n, N]."""
    reader = _ScoreReader(pruned, number)
    with torch.no_grad(), contextlib.suppress(_Enough):
        reader.run(*call_on(pruned, images))
    assert reader.scores is not None
    return reader.scores


def count_kept(pruned: Planned, images: Tensor) -> tuple[float, ...]:
    """How many patches images keep on average at each site."""
    counter = KeptCounter(pruned)
    for batch in images.split(_batch(pruned)):
        with torch.no_grad():
            counter.run(*call_on(pruned, batch))
    return tuple(float(kept.mean()) for kept in counter.by_site())


class KeptCounter(fx.Interpreter):
    """Runs a program, and counts the patches that each image keeps at each site."""

    def __init__(self, program: Planned) -> None:
        super().__init__(program.module, garbage_collect_values=True)
        self.protected = program.anatomy.prefix + program.anatomy.suffix
        self.sites = iter(program.plan.sites)
        self.found: dict[str, list[Tensor]] = {}
        self.fixed: dict[str, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        """As it is, counting."""
        value = super().run_node(n)
        if n.target in ops.SELECTIONS:
            if n.name not in self.found:
                self.fixed[n.name] = next(self.sites).keep
            if n.target in ops.RAGGED:
                (rows,) = n.all_input_nodes
                kept = rows.all_input_nodes[0] if rows.target is ops.with_best_dropped else rows
                count = self.env[kept].sum(dim=1) - self.protected
            else:  # a fused token is none of the patches kept
                count = torch.full((len(value),), self.fixed[n.name])
            self.found.setdefault(n.name, []).append(count.double())
        return value

    def by_site(self) -> list[Tensor]:
        """For each site, how many patches every image kept: [n]."""
        return [torch.cat(parts) for parts in self.found.values()]


class _Enough(Exception):  # noqa: N818  not an error: what was asked for is known
    pass


class _ScoreReader(fx.Interpreter):
    """Runs a ragged program up to one site and keeps the scores that stand there to choose from."""

    def __init__(self, program: Planned, number: int) -> None:
        super().__init__(program.module, garbage_collect_values=True)
        self.prefix, self.suffix = program.anatomy.prefix, program.anatomy.suffix
        self.left, self.scores = number, None

    scores: Tensor | None

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Everything as it is, until the site comes."""
        if target not in ops.MASKS:
            return super().call_function(target, args, kwargs)
        if self.left == 0:
            score, alive = args[0], args[5] if len(args) > 5 else None
            score = score if alive is None else score.masked_fill(~alive, float("-inf"))
            self.scores = score[:, self.prefix : score.shape[1] - self.suffix]
            raise _Enough
        self.left -= 1
        return super().call_function(target, args, kwargs)


def call_on(program: Recognised, images: Tensor) -> tuple[Any, ...]:
    """Flat inputs with these images in the place of the example's."""
    places = [node.name for node in program.graph.nodes if node.op == "placeholder"]
    batch = program.interface.batch

    def filled(place: str, leaf: Any) -> Any:
        if place == program.anatomy.pixels:
            return images
        if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == batch:
            return leaf[:1].expand(len(images), *leaf.shape[1:])
        return leaf

    return tuple(map(filled, places, program.interface.example))
