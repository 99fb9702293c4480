"""Put the plan's sites into the graph.

    s3 --------------------------> block            s3 ---------------- gather --> block
                                            ==>      '-- score -- select --'

Everything that read the state reads what is left of it. Shapes do not fit yet: repair_tokens mends them. Each
count stands in one place, the `keep` of its select.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from prunec import graph, ops
from prunec.anatomy import Anatomy, Branch
from prunec.compat import fake_mode_of
from prunec.errors import RecognitionError
from prunec.program import Program, Site


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
        for number, site in enumerate(program.plan.sites):
            _insert(module.graph, program.anatomy, site, program.plan.scorer, program.plan.fate, number)
        return program.replace(module=module), {"sites": len(program.plan.sites)}

    def ensures(self, program: Program) -> None:
        """One select for each site."""
        assert program.plan is not None
        selections = [node for node in program.graph.nodes if node.target is ops.select]
        assert len(selections) == len(program.plan.sites)


def _insert(target: fx.Graph, anatomy: Anatomy, site: Site, scorer: str, fate: str, number: int) -> None:
    names = graph.by_name(target)
    state = names[_state_of(anatomy, site)]
    users = list(state.users)
    function, operands = _score_call(anatomy, site, scorer, names, state)
    order = {node: place for place, node in enumerate(target.nodes)}
    after = max(
        [state, *(operand for operand in operands if isinstance(operand, fx.Node))], key=order.__getitem__
    )
    mode = fake_mode_of(target)
    with target.inserting_after(after):
        score = _call(target, function, operands, f"score_{number}")
    with target.inserting_after(score):
        rows = (score, site.keep, anatomy.prefix, anatomy.suffix, fate == "fuse")
        selection = _call(target, ops.select, rows, f"select_{number}")
    with target.inserting_after(selection):
        if fate == "fuse":
            arguments: tuple[Any, ...] = (state, selection, score, anatomy.suffix, anatomy.token_dim)
            pruned = _call(target, ops.fuse, arguments, f"fuse_{number}")
        else:
            pruned = _call(target, ops.gather, (state, selection, anatomy.token_dim), f"gather_{number}")
    for user in users:
        if user is not score:
            user.replace_input_with(state, pruned)
    # Types as they were at capture, that is at the original length.
    value = state.meta["val"]
    with mode:
        score.meta["val"] = value.movedim(anatomy.token_dim, 1)[..., 0]
        selection.meta["val"] = score.meta["val"].to(torch.int64)
    pruned.meta["val"] = value


def _call(target: fx.Graph, function: Any, args: tuple[Any, ...], name: str) -> fx.Node:
    return target.create_node("call_function", function, args, {}, name=name)


def _state_of(anatomy: Anatomy, site: Site) -> str:
    block = anatomy.blocks[site.block]
    if site.where == "before_block":
        return block.branches[0].state
    assert block.mlp is not None
    return block.mlp.state


def _score_call(
    anatomy: Anatomy, site: Site, scorer: str, names: dict[str, fx.Node], state: fx.Node
) -> tuple[Any, tuple[Any, ...]]:
    """The scoring function and its operands."""
    if scorer == "norm":
        return ops.token_norm, (state, anatomy.token_dim)
    if scorer == "random":
        return ops.random_score, (state, anatomy.token_dim)
    attention = _nearest_attention(anatomy, site)
    core = attention.cores[0]
    if core.form == "spelled":
        return ops.class_row, (names[core.node], anatomy.class_token)
    mask = names[core.mask] if core.mask else None
    return ops.class_attention, (names[core.query], names[core.key], anatomy.class_token, core.scale, mask)


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
