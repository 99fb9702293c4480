"""Put the plan's sites into the graph.

    s3 ----------------------------------> block         s3 ------------------------------ gather --> block
                                                    ==>   '-- score -- select -----------'

    and where every image keeps as many as it needs (the threshold is a buffer of the program):

    s3 ----------------------------------> block         s3 ------------------------------ gather --> block
                                                    ==>   '-- score -- passing -- pack ---'

Everything that read the state reads what is left of it. A site that chooses among all tokens again scores and
gathers whole(s3). Shapes do not fit yet: repair_tokens mends them. Each fixed count stands in one place, the
`keep` of its select.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from prunec import gates, graph, ops
from prunec.anatomy import Anatomy, Branch
from prunec.compat import FakeMode, fake_like, fake_mode_of
from prunec.errors import RecognitionError
from prunec.program import Plan, Program, Site


@dataclass(frozen=True)
class InsertSites:
    """Score, select, and gather (or fuse) at every site of the plan."""

    name: ClassVar[str] = "insert sites"

    def requires(self, program: Program) -> None:
        """A recognised model and a plan for it."""
        assert program.anatomy is not None, "recognise first"
        assert program.plan is not None, "plan first"

    def run(self, program: Program) -> tuple[Program, dict[str, int]]:
        """The program with its sites, shapes still as they were."""
        assert program.anatomy is not None and program.plan is not None
        module = graph.copy(program.module)
        live = None
        for number, site in enumerate(program.plan.sites):
            live = _Insertion(module, program.anatomy, program.plan, site, number).run(live)
        return program.replace(module=module), {"sites": len(program.plan.sites)}

    def ensures(self, program: Program) -> None:
        """One selection for each site."""
        assert program.plan is not None
        selections = [node for node in program.graph.nodes if node.target in ops.SELECTIONS]
        assert len(selections) == len(program.plan.sites)


class _Insertion:
    """One site on its way into the graph."""

    def __init__(self, module: fx.GraphModule, anatomy: Anatomy, plan: Plan, site: Site, number: int) -> None:
        self.module, self.target = module, module.graph
        self.anatomy, self.plan, self.site, self.number = anatomy, plan, site, number
        self.names = graph.by_name(module.graph)
        self.state = self.names[_state_of(anatomy, site)]
        self.mode: FakeMode = fake_mode_of(module.graph)
        self.after = self.state  # where the next node goes

    def run(self, live: fx.Node | None) -> fx.Node | None:
        """Insert score, selection and gather; returns the rows that count if the selection is ragged."""
        users = list(self.state.users)
        source, dim = self.state, self.anatomy.token_dim
        if self.plan.reactivate and self.number > 0:
            source, live = self._call("whole", ops.whole, (self.state,), self.state.meta["val"]), None
        score = self._score(source)
        if self.site.ragged:
            index, live = self._ragged(score, live)
        else:
            counts = (self.site.keep, self.anatomy.prefix, self.anatomy.suffix, self.plan.fate == "fuse")
            index, live = self._call("select", ops.select, (score, *counts), self._rows(torch.int64)), None
        if self.plan.fate == "fuse":
            arguments: tuple[Any, ...] = (source, index, score, self.anatomy.suffix, dim)
            pruned = self._call("fuse", ops.fuse, arguments, self.state.meta["val"])
        else:
            pruned = self._call("gather", ops.gather, (source, index, dim), self.state.meta["val"])
        for user in users:
            if user is not score:
                user.replace_input_with(self.state, pruned)
        return live

    def _ragged(self, score: fx.Node, live: fx.Node | None) -> tuple[fx.Node, fx.Node]:
        ends = (self.anatomy.prefix, self.anatomy.suffix)
        threshold = self._parameter("threshold", self._site_module().threshold)
        rows = (score, threshold, *ends, self.plan.least, live)
        kept = self._call("passing", ops.passing, rows, self._rows(torch.bool))
        index = self._call("pack", ops.pack, (kept, *ends, self.plan.multiple_of), self._rows(torch.int64))
        return index, self._call("live", ops.live, (kept, index), self._rows(torch.bool))

    def _score(self, source: fx.Node) -> fx.Node:
        dim, anatomy = self.anatomy.token_dim, self.anatomy
        numbers = self._rows(self.state.meta["val"].dtype)
        if self.plan.scorer == "norm":
            return self._call("score", ops.token_norm, (source, dim), numbers)
        if self.plan.scorer == "random":
            return self._call("score", ops.random_score, (source, dim), numbers)
        if self.plan.scorer in gates.LEARNED:
            gate = self._site_module().gate
            assert isinstance(gate, gates.MlpGate)
            operands = [self._parameter(f"gate.{path}", gate.get_parameter(path)) for path in gate.operands]
            return self._call("score", gate.function, (source, *operands, dim), numbers)
        core = _nearest_attention(anatomy, self.site).cores[0]
        if core.form == "spelled":
            return self._call("score", ops.class_row, (self.names[core.node], anatomy.class_token), numbers)
        mask = self.names[core.mask] if core.mask else None
        row = (self.names[core.query], self.names[core.key], anatomy.class_token, core.scale, mask)
        return self._call("score", ops.class_attention, row, numbers)

    # --- small helpers ------------------------------------------------------------------------

    def _call(self, name: str, function: Any, args: tuple[Any, ...], value: Any) -> fx.Node:
        """A node with the type that it has at capture, that is at the original length."""
        order = {node: place for place, node in enumerate(self.target.nodes)}
        operands = [operand for operand in args if isinstance(operand, fx.Node)]
        with self.target.inserting_after(max([self.after, *operands], key=order.__getitem__)):
            made = self.target.create_node("call_function", function, args, {}, name=f"{name}_{self.number}")
        made.meta["val"] = value
        self.after = made
        return made

    def _rows(self, dtype: torch.dtype) -> torch.Tensor:
        """The type of one number for each token: [B, T]."""
        value = self.state.meta["val"].movedim(self.anatomy.token_dim, 1)
        return fake_like(self.mode, value.shape[:2], dtype, value.device)

    def _site_module(self) -> gates.Site:
        """The site's own parameters, made when they are first asked for."""
        path = f"prunec.site_{self.number}"
        if path not in dict(self.module.named_modules()):
            state = self.state.meta["val"]
            learned = gates.LEARNED.get(self.plan.scorer)
            gate = learned(state.shape[-1], self.plan.hidden) if learned else None
            self.module.add_submodule(path, gates.Site(gate).to(state.device, state.dtype))
        module = self.module.get_submodule(path)
        assert isinstance(module, gates.Site)
        return module

    def _parameter(self, name: str, value: torch.Tensor) -> fx.Node:
        first = next(node for node in self.target.nodes if node.op != "placeholder")
        with self.target.inserting_before(first):
            node = self.target.get_attr(f"prunec.site_{self.number}.{name}")
        node.meta["val"] = fake_like(self.mode, value.shape, value.dtype, value.device)
        return node


def _state_of(anatomy: Anatomy, site: Site) -> str:
    block = anatomy.blocks[site.block]
    if site.where == "before_block":
        return block.branches[0].state
    assert block.mlp is not None
    return block.mlp.state


def _nearest_attention(anatomy: Anatomy, site: Site) -> Branch:
    """The last attention before the site: the block's own after it, an earlier block's before it."""
    last = site.block if site.where == "after_attention" else site.block - 1
    elsewhere = {miss.node for miss in anatomy.unmatched}  # softmaxes over channels and the like
    for block in reversed(anatomy.blocks[: last + 1]):
        if block.attention is not None and block.attention.cores[0].node not in elsewhere:
            return block.attention
    raise RecognitionError(
        f"no attention stands before block {site.block}, so there is no class-token row to score by",
        where=f"site before block {site.block}",
        remedy="start at a later block",
    )
