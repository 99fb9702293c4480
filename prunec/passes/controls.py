"""The two controls that every claim stands beside, made from the pruned program itself.

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
from prunec.ir import graph
from prunec.ir.program import Counts, Planned
from prunec.ir.rewrite import Pass


@dataclass(frozen=True)
class Slices(Pass[Planned, Planned]):
    """Replace every selection by a plain slice of the same length.

    gather(x, select(score))  ==>  x[:, :n]          take(table, index)    ==>  table[:n]
    scatter(base, x, index)   ==>  cat([x, base[n:]])
    """

    name: ClassVar[str] = "ideal slices"

    def run(self, program: Planned) -> tuple[Planned, Counts]:
        """The program that does no more than its lengths ask for."""
        module = graph.copy(program.module)
        lengths: dict[fx.Node, int] = {}
        sites = iter(program.plan.sites)
        replaced = 0
        for node in list(module.graph.nodes):
            if node.target in ops.SELECTIONS:
                lengths[node] = next(sites).leaves
            elif node.target is ops.compose:
                lengths[node] = lengths[node.args[1]]
            elif node.target in _UNDONE:  # nothing pads, counts double, or has left
                operands = node.args
                node.replace_all_uses_with(operands[_UNDONE[node.target]])
                module.graph.erase_node(node)
            elif node.target is ops.unmerge or (
                node.target not in _SCAFFOLD and any(source in lengths for source in node.all_input_nodes)
            ):
                _replace(module.graph, node, lengths)
                replaced += 1
        return program.replace(module=module), Counts({"replaced": replaced})

    def ensures(self, program: Planned) -> None:
        """Nothing is scored or selected any more."""
        for node in program.graph.nodes:
            self.promise(node.target not in (*ops.SCORES, *ops.SELECTIONS), "chooses tokens still", node)


#: Operators that slices have no use for, and which operand stands in their place.
_UNDONE = {
    ops.key_mask: 1, ops.mask_keys: 0, ops.key_bias: 1, ops.bias_keys: 0, ops.paint: 0, ops.fill: 0,
    ops.rescale: 0,
}  # fmt: skip

#: What reads a selection only to tell other operators about it; it dies with them.
_SCAFFOLD = (ops.valid_mask, ops.with_best_dropped, ops.members, ops.nearest, ops.remembered, ops.sizes)


def _replace(target: fx.Graph, node: fx.Node, lengths: Mapping[fx.Node, int]) -> None:
    """Swap one user of a selection for its plain counterpart."""
    args: tuple[Any, ...] = node.args
    new: tuple[Any, tuple[Any, ...]]
    if graph.op(node) == "sym_size":
        node.replace_all_uses_with(lengths[args[0]])  # type: ignore[arg-type]  # FX takes a constant here
        target.erase_node(node)
        return
    if node.target is ops.gather:
        x, index, dim = args
        new = (torch.ops.aten.narrow.default, (x, dim, 0, lengths[index]))
    elif node.target in (ops.fuse, ops.fuse_each, ops.merge):
        x, index, _, _, dim, *_ = args
        new = (torch.ops.aten.narrow.default, (x, dim, 0, lengths[index]))
    elif node.target is ops.take:
        table, index, dim, _, first, last = args
        new = (torch.ops.aten.narrow.default, (table, dim, 0, lengths[index] - first - last))
    elif node.target is ops.scatter:
        base, x, _, dim = args[:4]
        new = (ops.put_first, (base, x, dim))
    elif node.target is ops.reconstruct:
        new = (ops.put_first, (args[0], args[1], args[6]))
    elif node.target is ops.unmerge:
        x, groups, dim = args
        value = node.meta["val"]
        missing = value.shape[dim] - lengths[_selection_of(groups)]
        new = (torch.nn.functional.pad, (x, [0, 0] * (value.dim() - 1 - dim) + [0, missing]))
    else:
        raise ValueError(f"{node.name} reads a selection and has no plain counterpart")
    with target.inserting_before(node):
        made = target.call_function(*new)
    made.meta = dict(node.meta)
    node.replace_all_uses_with(made)
    target.erase_node(node)


def _selection_of(groups: fx.Node) -> fx.Node:
    """The last selection behind the groups of a merged stream."""
    while groups.target is ops.compose:
        groups = groups.args[0]  # type: ignore[assignment]
    return groups.args[1]  # type: ignore[return-value]


@dataclass(frozen=True)
class RandomScores(Pass[Planned, Planned]):
    """Score by random numbers: what the counts alone cost in accuracy.

    select(class_attention(q, k))  ==>  select(random_score(x))
    pack(passing(score, ..))       ==>  pack(shuffled(passing(score, ..)))    as many of each image, others
    """

    name: ClassVar[str] = "random control"

    def run(self, program: Planned) -> tuple[Planned, Counts]:
        """The program with every choice random; a fused token keeps its weights, which must be shares."""
        module = graph.copy(program.module)
        selections = [node for node in module.graph.nodes if node.target in ops.SELECTIONS]
        for selection in selections:
            score = selection.args[0]
            assert isinstance(score, fx.Node)
            ragged = selection.target in ops.RAGGED
            score = score.args[0] if score.target is ops.with_best_dropped else score
            assert isinstance(score, fx.Node)
            with module.graph.inserting_before(score.next):
                if ragged:
                    _, prefix, suffix, *_ = selection.args
                    valid = score.args[5] if len(score.args) > 5 else None
                    made = module.graph.call_function(
                        ops.random_mask, (score, prefix, suffix, valid, _pairs_of(score))
                    )
                elif selection.target is ops.select_pairs:
                    made = module.graph.call_function(ops.random_among, (score,))
                else:
                    state = _chosen_from(selection, program.anatomy.states)
                    made = module.graph.call_function(ops.random_score, (state, program.anatomy.token_dim))
            made.meta = dict(score.meta)
            for user in list(score.users):
                if user is not made and (ragged or user is selection):
                    user.replace_input_with(score, made)
        return program.replace(module=module), Counts({"scores": len(selections)})

    def ensures(self, program: Planned) -> None:
        """Every selection is random."""
        selections = [node for node in program.graph.nodes if node.target in ops.SELECTIONS]
        chosen = [graph.operand(node, 0) for node in selections]
        chosen = [graph.operand(node, 0) if node.target is ops.with_best_dropped else node for node in chosen]
        for node in chosen:
            self.promise(node.target in _RANDOM, "is no random choice", node)


_RANDOM = (ops.random_score, ops.random_among, ops.random_mask)


def _pairs_of(kept: fx.Node) -> fx.Node | None:
    """The scores behind a choice, where they are of pairs."""
    score = kept.args[0]
    assert isinstance(score, fx.Node)
    return (
        score if any(source.target in (ops.pairs, ops.windows) for source in score.all_input_nodes) else None
    )


def _chosen_from(selection: fx.Node, states: tuple[str, ...]) -> fx.Node:
    """The state of the stream that a selection takes its rows from, before it or before its attention."""
    taken = [
        user.args[0]
        for user in selection.users
        if user.target in (ops.gather, ops.fuse, ops.fuse_each, ops.merge)
    ]
    state = next((node for node in taken if isinstance(node, fx.Node) and node.name in states), None)
    if state is None:
        raise InternalError(
            f"{selection.name} takes no rows of the token stream", where=graph.place(selection), remedy=REPORT
        )
    return state
