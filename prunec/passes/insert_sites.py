"""Put the plan's sites into the graph.

    s3 ----------------------------------> block         s3 ------------------------------ gather --> block
                                                    ==>   '-- score -- select -----------'

    and where images may keep different numbers (the threshold is a buffer of the program):

    s3 ----------------------------------> block         s3 ------------------------------ gather --> block
                                                    ==>   '-- score -- passing -- pack ---'

Everything that read the state reads what is left of it. A site that chooses among all tokens again scores and
gathers whole(s3); before a block where all come back stands whole(s) alone. Shapes do not fit yet:
repair_tokens repairs them. Each fixed count stands in one place, the `keep` of its select.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from prunec import compat, ops
from prunec.dataflow import heads
from prunec.errors import PolicyError
from prunec.ir import arguments, graph
from prunec.ir.program import Counts, Planned
from prunec.ir.rewrite import Pass
from prunec.ir.writer import Writer
from prunec.policy.language import Selector
from prunec.policy.rules import Step
from prunec.policy.site_plan import Plan, Site
from prunec.scorers import gates
from prunec.scorers.scoring import Scored, Scoring, grid_of, state_of
from prunec.structure import Anatomy
from prunec.token_axis.padding import mask_of, set_mask


@dataclass(frozen=True)
class InsertSites(Pass[Planned, Planned]):
    """Score, select, and gather (or fuse, or merge) at every site of the plan."""

    name: ClassVar[str] = "insert sites"

    def run(self, program: Planned) -> tuple[Planned, Counts]:
        """The program with its sites, shapes still as they were."""
        module = graph.copy(program.module)
        insertion = _Insertion(module, program)
        for number, site in enumerate(program.plan.sites):
            insertion.site(number, site)
        insertion.rejoin()
        insertion.paint()
        return program.replace(module=module), Counts({"sites": len(program.plan.sites)})

    def ensures(self, program: Planned) -> None:
        """One selection for each site."""
        selections = [node for node in program.graph.nodes if node.target in ops.SELECTIONS]
        found = f"{len(selections)} selections for {len(program.plan.sites)} sites"
        self.promise(len(selections) == len(program.plan.sites), found)


class _Insertion:
    """Sites on their way into one graph, and what each hands on to the next."""

    now: Site
    step: Step
    source: fx.Node  # the tokens that the site chooses from

    def __init__(self, module: fx.GraphModule, program: Planned) -> None:
        self.writer = Writer(module)
        self.call = self.writer.call
        self.anatomy: Anatomy = program.anatomy
        self.plan: Plan = program.plan
        self.ends, self.dim = (self.anatomy.prefix, self.anatomy.suffix), self.anatomy.token_dim
        self.names = graph.by_name(module.graph)
        self.classes = _class_scores(program)
        self.valid: fx.Node | None = None  # which rows count: [B, n]
        self.rows: fx.Node | None = None  # which rows of the whole stream they are: [B, n]
        self.kept: fx.Node | None = None  # of all rows, those that have not exited: [B, T]
        self.canvas: fx.Node | None = None  # class scores of those that have: [B, T, K]
        self.size: fx.Node | None = None  # how many tokens each row stands for: [B, n]
        self.unweighted: dict[str, fx.Node | None] = {}  # attention -> its own mask or logits

    def site(self, number: int, site: Site) -> None:
        """Score, select, and let what read the state read what is left of it."""
        self.writer.number, self.now, self.step = number, site, self.plan.step(site)
        state = self.source = self.writer.after = self.names[state_of(self.anatomy, site)]
        users = list(state.users)
        if number > 0 and self.step.reactivate:
            self.source, self.valid = self.call("whole", ops.whole, (state,)), None
        self.writer.let_read(users, state, self._pruned())

    def rejoin(self) -> None:
        """Before the block where all tokens come back, read the whole stream."""
        if self.plan.rejoin is None or not self.plan.sites:
            return
        state = self.writer.after = self.names[self.anatomy.blocks[self.plan.rejoin].branches[0].state]
        users = list(state.users)
        self.writer.number += 1
        self.writer.let_read(users, state, self.call("whole", ops.whole, (state,)))

    def paint(self) -> None:
        """Class scores of tokens that have exited stand where the head would have put its own."""
        if self.canvas is None or self.classes is None:
            return
        scores = self.writer.after = self.names[self.classes.node]
        users = list(scores.users)
        ends = (0, 0) if self.classes.all_tokens else self.ends
        painting = (scores, self.canvas, self.kept, self.classes.axis, *ends)
        self.writer.let_read(users, scores, self.call("paint", ops.paint, painting))

    # --- select, and move -----------------------------------------------------------------------

    def _pruned(self) -> fx.Node:
        """What is left of the source."""
        scored, kept, fate, entering = self._scored(), None, self.step.fate, self.valid
        if self.plan.lowering.fixed:
            index, self.valid = self._selected(scored), None
        else:
            kept = self._kept(scored)
            staying = kept
            if fate == "fuse":
                staying = self.call(
                    "with_best_dropped", ops.with_best_dropped, (kept, scored.score, *self.ends, entering)
                )
            index = self._packed(staying)
            if fate == "exit":
                self.rows = index if self.rows is None else self.call("rows", ops.compose, (self.rows, index))
            self.valid = self.call("valid", ops.valid_mask, (staying, index))
        if fate == "merge":
            return self._pooled(index, scored, kept, entering)
        if fate == "fuse":
            return self._fused(index, scored.score, kept, entering)
        return self.call("gather", ops.gather, (self.source, index, self.dim))

    def _packed(self, staying: fx.Node) -> fx.Node:
        """Rows of every image, as many as the longest needs."""
        lengths = self.plan.lowering.buckets
        patches = self.anatomy.grid
        sizes = [size for length in lengths if 0 < (size := length - sum(self.ends)) < patches]
        rest = (
            (self.step.scorer.pairs == "alternating", (*sizes, patches))
            if lengths
            else ((True,) if self.step.scorer.pairs == "alternating" else ())
        )
        rows = (staying, *self.ends, self.step.selector.multiple_of, *rest)
        return self.call("pack", ops.pack, rows, self._rows())

    def _fused(
        self, index: fx.Node, score: fx.Node, kept: fx.Node | None, entering: fx.Node | None
    ) -> fx.Node:
        """The rows of an index, one of them the sum of those that leave."""
        weights = None if self.step.weights == "uniform" else score
        fused: tuple[Any, ...] = (self.source, index, weights, self.anatomy.suffix, self.dim)
        if kept is not None:
            fused = (*fused, (kept, arguments.chosen_from(index)), entering)
        return self.call("fuse", ops.fuse, fused, self.source.meta["val"])

    def _scored(self) -> Scored:
        scoring = Scoring(self.writer, self.names, self.anatomy, self.now, self.source, self.valid)
        gate = self._parameters().gate if self.step.scorer.learned else None
        if self.step.scorer.kind == "novelty":
            return scoring.novelty(self.step.scorer, gate)
        if gate is None:
            return scoring.heuristic(self.step.scorer)
        return scoring.learned(self.step.scorer.kind, gate, classes=self.step.fate == "exit")

    def _selected(self, scored: Scored) -> fx.Node:
        """As many rows of every image."""
        function = ops.select if scored.partner is None else ops.select_pairs
        counts: tuple[Any, ...] = (self.now.keep, *self.ends)
        counts = (*counts, self.step.fate == "fuse") if scored.partner is None else counts
        return self.call("select", function, (scored.score, *counts), self._rows())

    def _kept(self, scored: Scored) -> fx.Node:
        """Which rows of every image go on, if they may differ."""
        selector, exiting = self.step.selector, self.step.fate == "exit"
        if selector.kind == "top_k":
            function = ops.topk_mask_of_batch if selector.budget == "batch" else ops.topk_mask
            counts = (self.now.keep, *self.ends, selector.least, self.valid)
            return self.call("kept", function, (scored.score, *counts))
        two = 2 - sum(self.ends)  # a stream of one row is another graph to a compiler
        spared = selector.least == 1 and selector.spare >= max(1, two)  # and those are some
        rest = (*self.ends, 0 if spared else max(selector.least, two), self.valid)
        if selector.kind == "sampling":
            return self.call("sampled_mask", ops.sampled_mask, (scored.score, self.now.keep, *rest))
        if selector.kind == "adaptive":
            spread = (scored.score, self.now.block + 1, *self.ends, self.valid)
            threshold = self.call("mean_threshold", ops.mean_threshold, spread)
        else:
            threshold = self.writer.parameter("threshold", self._parameters().threshold)
        kept = self.call("threshold_mask", ops.threshold_mask, (scored.score, threshold, *rest))
        return self._exits(kept, scored) if exiting else kept

    def _exits(self, kept: fx.Node, scored: Scored) -> fx.Node:
        """Those that go on once context is spared, and a canvas for what the others are."""
        spare, rows, valid = self.step.selector.spare, self.rows, self.valid
        if spare:
            kept = self.call(
                "context_mask", ops.context_mask, (kept, scored.classes, spare, *self.ends, valid)
            )
        if rows is None:
            self.canvas, self.kept = scored.classes, kept
        else:
            newest = (self.canvas, scored.classes, rows, 1, valid)
            self.canvas = self.call("canvas", ops.scatter, newest)
            self.kept = self.call("remaining", ops.remaining, (self.kept, kept, rows))
        return kept

    def _pooled(
        self, index: fx.Node, scored: Scored, kept: fx.Node | None, entering: fx.Node | None
    ) -> fx.Node:
        """Groups in the place of the rows of an index; of those that enter, some may be padding."""
        rule = self.step.merging
        partner, alike = self._partner(index, scored, kept)
        group = self.call("group", ops.assign, (partner, index, kept))
        weight = self._remembered(index, scored.score, kept, entering) if rule.forget else None
        by = entering if weight is None else weight
        if rule.mean == "by_size" and self.size is not None:
            by = self.size if weight is None else self.call("weight", torch.mul, (self.size, weight))
        pooled = self.call("pool", ops.pool, (self.source, index, group, by, self.dim))
        alike = alike if rule.sizes == "by_similarity" else None
        counted = (group, index, scored.score, self.size, alike, weight, kept)
        self.size = self.call("size", ops.sizes, counted)
        if self.plan.rules.attention == "proportional":
            self._weigh_keys(self.size)
        return pooled

    def _partner(
        self, index: fx.Node, scored: Scored, kept: fx.Node | None
    ) -> tuple[fx.Node, fx.Node | None]:
        """The row that stands for each row, and how alike the two are."""
        partner, alike = scored.partner, None
        if partner is None:
            similar = scored.similar
            if similar is None:
                similar = self.call("similar", ops.similarities, (self.source, None, self.dim))
            pair = self.call("nearest", ops.nearest, (similar, index, *self.ends, kept))
            alike, partner = self.writer.two(pair, "alike", "partner")
        elif self.step.merging.sizes == "by_similarity":
            alike = self.call("alike", torch.neg, (scored.score,))
        return partner, alike

    def _remembered(
        self, index: fx.Node, score: fx.Node, kept: fx.Node | None, entering: fx.Node | None
    ) -> fx.Node:
        """Which rows are not dropped altogether."""
        leaving = self.now.tokens - sum(self.ends) - self.now.keep
        count = self.now.keep + round(leaving * (1 - self.step.merging.forget))
        rest = () if kept is None else (kept, entering)
        return self.call("remembered", ops.remembered, (score, index, count, *self.ends, *rest))

    def _weigh_keys(self, size: fx.Node) -> None:
        """In all attention from here on, a key counts as many as it stands for."""
        first = self.now.block + (self.now.where == "after_attention")
        cores = [
            c for block in self.anatomy.blocks[first:] for branch in block.branches for c in branch.cores
        ]
        for core in cores:
            node, self.writer.after = self.names[core.node], size
            if core.node not in self.anatomy.cores:
                continue
            if core.form == "fused":
                own = self.unweighted.setdefault(core.node, mask_of(node))
                set_mask(node, self.call("bias", ops.key_bias, (size, own)))
            else:
                own = self.unweighted.setdefault(core.node, node.args[0])  # type: ignore[arg-type]
                node.update_arg(0, self.call("bias", ops.bias_keys, (own, size)))

    # --- the site's own numbers -----------------------------------------------------------------

    def _rows(self) -> torch.Tensor:
        """The type of an index at full length: [B, T]."""
        return self.writer.like(self.source.meta["val"], self.dim, torch.int64)

    def _parameters(self) -> gates.SiteModule:
        """The site's module, made when it is first asked for."""
        path, module = f"prunec.site_{self.writer.number}", self.writer.module
        if path not in dict(module.named_modules()):
            state, scorer = self.source.meta["val"], self.step.scorer
            with torch.random.fork_rng():  # the same parameters whenever this policy meets this model
                compat.seed(self.writer.number)
                gate = gates.build(scorer, self._setting()) if scorer.learned else None
            site = gates.SiteModule(gate, _threshold(self.step.selector, scorer.kind))
            module.add_submodule(path, site.to(state.device, state.dtype))
        found = module.get_submodule(path)
        assert isinstance(found, gates.SiteModule)
        return found

    def _setting(self) -> gates.Setting:
        pixels, patches = self.names[self.anatomy.pixels], self.anatomy.grid
        image = tuple(int(size) for size in pixels.meta["val"].shape[1:])
        dim, classes = int(self.source.meta["val"].shape[-1]), self.classes
        known = classes.classes if classes is not None else None
        return gates.Setting(dim, patches, grid_of(patches, pixels), image, known)


def _class_scores(program: Planned) -> heads.ClassScores | None:
    """Where the model says what each token is, if the policy's graders want to know."""
    if program.plan.fate != "exit" or not program.plan.sites:
        return None
    found = heads.class_scores(program)
    if isinstance(found, heads.ClassScores):
        return found
    raise PolicyError(
        f"policy {program.plan.policy!r} lets tokens exit by their class scores, and this model gives its "
        f"tokens none: {found.reason}",
        where=found.place,
        remedy="choose a segmenter with a head for each token, or a policy that fits this task",
    )


def _threshold(selector: Selector, kind: str) -> float:
    """The threshold of scores that a policy's `at` stands for; 0 until it is calibrated."""
    at = selector.at
    if at is None:
        return 0.0
    return -at if kind in ("similarity", "grader") else math.log(at / (1 - at))
