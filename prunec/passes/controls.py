"""The two controls that each figure is compared with, made from the pruned program itself.

ideal    x[:, :n] wherever the program gathers: the same lengths, no score, no selection
random   the same program and the same counts, scored by random numbers
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from prunec import ops
from prunec.errors import REPORT, InternalError
from prunec.ir import arguments, graph
from prunec.ir.program import Counts, Planned
from prunec.ir.rewrite import Pass


@dataclass(frozen=True)
class Slices(Pass[Planned, Planned]):
    """Replace every selection by a plain slice of the same length.

    gather(x, select(score))  ==>  x[:, :n]          take(table, index)    ==>  table[:n]
    scatter(base, x, index)   ==>  cat([x, base[n:]])     share(x, group)       ==>  pad(x)
    """

    name: ClassVar[str] = "ideal slices"

    def run(self, program: Planned) -> tuple[Planned, Counts]:
        """The program with slices in place of its selections."""
        module = graph.copy(program.module)
        lengths: dict[fx.Node, int] = {}
        sites = iter(program.plan.sites)
        replaced = 0
        for node in list(module.graph.nodes):
            if node.target in ops.SELECTIONS:
                lengths[node] = next(sites).leaves
            elif node.target is ops.compose:
                if (inner := arguments.operand(node, "inner")) in lengths:  # or it composes groups
                    lengths[node] = lengths[inner]
            elif node.target in _UNDONE:  # there is no padding, merged token or exited token
                node.replace_all_uses_with(arguments.bind(node)[_UNDONE[node.target]])
                module.graph.erase_node(node)
            elif node.target is ops.share or (
                node.target not in _SCAFFOLD and any(source in lengths for source in node.all_input_nodes)
            ):
                _replace(module.graph, node, lengths)
                replaced += 1
        return program.replace(module=module), Counts({"replaced": replaced})

    def ensures(self, program: Planned) -> None:
        """Nothing is scored or selected any more."""
        for node in program.graph.nodes:
            self.promise(node.target not in (*ops.SCORES, *ops.SELECTIONS), "chooses tokens still", node)


#: Operations that slices have no use for, and which argument takes their place.
_UNDONE = {
    ops.key_mask: "mask",
    ops.mask_keys: "logits",
    ops.key_bias: "mask",
    ops.bias_keys: "logits",
    ops.paint: "scores",
    ops.fill: "x",
    ops.rescale: "y",
}

#: What reads a selection only for other operations, and becomes dead code with them.
_SCAFFOLD = (ops.valid_mask, ops.with_best_dropped, ops.assign, ops.nearest, ops.remembered, ops.sizes)


#: Operations that have a plain counterpart.
_REPLACED = (
    ops.gather,
    ops.fuse,
    ops.pool,
    ops.take,
    ops.scatter,
    ops.share,
)


def _replace(target: fx.Graph, node: fx.Node, lengths: Mapping[fx.Node, int]) -> None:
    """Swap one user of a selection for its plain counterpart."""
    if graph.op(node) == "sym_size":
        length = lengths[graph.operand(node, 0)]
        node.replace_all_uses_with(length)  # type: ignore[arg-type]  # FX takes a constant here
        target.erase_node(node)
        return
    if node.target not in _REPLACED:
        raise ValueError(f"{node.name} reads a selection and has no plain counterpart")
    new: tuple[Any, tuple[Any, ...]]
    given = arguments.bind(node)
    dim = given["dim"]
    if node.target is ops.take:
        length = lengths[given["index"]] - given["skip_prefix"] - given["skip_suffix"]
        new = (torch.ops.aten.narrow.default, (given["table"], dim, 0, length))
    elif given.get("base") is not None:
        new = (ops.put_first, (given["base"], given["x"], dim))
    elif node.target is ops.share:
        value = node.meta["val"]
        missing = value.shape[dim] - lengths[_selection_of(given["group"])]
        new = (torch.nn.functional.pad, (given["x"], [0, 0] * (value.dim() - 1 - dim) + [0, missing]))
    else:
        new = (torch.ops.aten.narrow.default, (given["x"], dim, 0, lengths[given["index"]]))
    with target.inserting_before(node):
        made = target.call_function(*new)
    made.meta = dict(node.meta)
    node.replace_all_uses_with(made)
    target.erase_node(node)


def _selection_of(groups: fx.Node) -> fx.Node:
    """The last selection behind the groups of a merged stream."""
    while groups.target is ops.compose:
        groups = arguments.operand(groups, "outer")
    return arguments.operand(groups, "index")


@dataclass(frozen=True)
class RandomScores(Pass[Planned, Planned]):
    """Score by random numbers: what the counts alone cost in accuracy.

    select(class_attention(q, k))  ==>  select(random_score(x))
    pack(topk_mask(score, ..))     ==>  pack(random_mask(topk_mask(score, ..)))    as many of each image
    """

    name: ClassVar[str] = "random control"

    def run(self, program: Planned) -> tuple[Planned, Counts]:
        """The program with every choice random; a fused token keeps its weights, which must be shares."""
        module = graph.copy(program.module)
        selections = [node for node in module.graph.nodes if node.target in ops.SELECTIONS]
        for selection in selections:
            score = _without_best_dropped(arguments.chosen_from(selection))
            ragged = selection.target in ops.RAGGED
            with module.graph.inserting_before(score.next):
                if ragged:
                    made = module.graph.call_function(ops.random_mask, _shuffled(score))
                else:
                    state = _chosen_from(selection, program.anatomy.states)
                    among = (score,) if selection.target is ops.select_pairs else ()
                    given = (state, program.anatomy.token_dim, *among)
                    made = module.graph.call_function(ops.random_score, given)
            made.meta = dict(score.meta)
            for user in list(score.users):
                if user is not made and (ragged or user is selection):
                    user.replace_input_with(score, made)
        return program.replace(module=module), Counts({"scores": len(selections)})

    def ensures(self, program: Planned) -> None:
        """Every selection is random."""
        selections = [node for node in program.graph.nodes if node.target in ops.SELECTIONS]
        for chosen in [_without_best_dropped(arguments.chosen_from(node)) for node in selections]:
            self.promise(chosen.target in _RANDOM, "is no random choice", chosen)


_RANDOM = (ops.random_score, ops.random_mask)


def _without_best_dropped(chosen: fx.Node) -> fx.Node:
    """What a selection reads, but without the place of the fused token."""
    return arguments.operand(chosen, "kept") if chosen.target is ops.with_best_dropped else chosen


def _shuffled(kept: fx.Node) -> tuple[Any, ...]:
    """The arguments of a random mask with as many rows of each image as this one has."""
    given = arguments.bind(kept)
    score = given.get("score")
    pairs = score is not None and any(
        source.target in (ops.pairs, ops.windows) for source in score.all_input_nodes
    )
    return (kept, given["prefix"], given["suffix"], given["valid"], score if pairs else None)


def _chosen_from(selection: fx.Node, states: tuple[str, ...]) -> fx.Node:
    """The state of the stream that a selection takes its rows from, before it or before its attention."""
    taken = [
        arguments.operand(user, "x")
        for user in selection.users
        if user.target in (ops.gather, ops.fuse, ops.pool)
    ]
    state = next((node for node in taken if node.name in states), None)
    if state is None:
        raise InternalError(
            f"{selection.name} takes no rows of the token stream", where=graph.place(selection), remedy=REPORT
        )
    return state
