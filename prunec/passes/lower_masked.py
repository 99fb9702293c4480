"""Lower a padded program to masks: every token is computed, and those not kept are hidden and blended out.

    pack(kept)                          ==>  all_rows(kept)                    in place
    gather(x, index)                    ==>  x
    take(table, index)                  ==>  table
    attention(q, k, v, key_mask(valid))  ==>  attend_kept(q, k, v, m)           keys weigh m
    scatter(base, x, index, valid)       ==>  blend(base, x, m)                 m * x + (1 - m) * base
    share(x, group, base, at)            ==>  blend(share(..), x, m)            where m has a gradient
    mean(fill(x, valid)) * n / valid      ==>  the same of m

m is the mask of kept rows. Where a learned scorer chose them, m is a tensor of 0 and 1 with a gradient by the
score (straight through), which trains the scorer. The outputs are those of the padded program. Pairs and
novelty depend on the places in the pruned stream, so there all rows are put in its order, kept ones first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import fx

from prunec import compat, ops
from prunec.ir import arguments, graph
from prunec.ir.program import Counts, Planned
from prunec.ir.rewrite import Pass
from prunec.token_axis.padding import mask_of

#: What takes rows of a value, and the argument that holds it.
_ROWS_OF = {ops.gather: "x", ops.take: "table"}
#: What makes a score out of what a learned scorer gives, and the argument that holds that.
_READS_SCORES = {ops.beside: "score", ops.doubt: "logits", ops.novelty: "importance"}


@dataclass(frozen=True)
class LowerMasked(Pass[Planned, Planned]):
    """Compute all tokens, hide those that are not kept."""

    name: ClassVar[str] = "mask"

    def requires(self, program: Planned) -> None:
        """A padded program."""
        mode = program.plan.lowering.mode
        self.promise(mode == "masked", f"made for mode masked, and the mode is {mode}")

    def run(self, program: Planned) -> tuple[Planned, Counts]:
        """The program on all tokens."""
        module = graph.copy(program.module)
        selections = [node for node in module.graph.nodes if node.target is ops.pack]
        if any(map(_reads_places, module.graph.nodes)):
            for node in selections:
                arguments.retarget(node, ops.pack_all)
            return program.replace(module=module), Counts({"all rows": len(selections)})
        masking = _Masking(module.graph, program.anatomy.cores)
        masking.run(selections)
        return program.replace(module=module), Counts(masking.counts)

    def ensures(self, program: Planned) -> None:
        """No row is left out."""
        for node in program.graph.nodes:
            self.promise(node.target is not ops.pack, "leaves rows out", node)


class _Masking:
    """Rewrites one graph in place."""

    def __init__(self, target: fx.Graph, cores: tuple[str, ...]) -> None:
        self.graph, self.cores = target, cores
        self.masks: dict[fx.Node, fx.Node] = {}  # valid -> m
        self.counts = {"masked": 0, "blended": 0, "trained": 0}

    def run(self, selections: list[fx.Node]) -> None:
        """Rewrite it from front to back."""
        for selection in selections:
            arguments.retarget(selection, ops.all_rows)
        for node in list(self.graph.nodes):
            if node.target is ops.valid_mask:
                self._mask(node)
            elif node.target in _ROWS_OF:
                if arguments.operand(node, "index").target is ops.all_rows:  # all rows, in place
                    node.replace_all_uses_with(arguments.operand(node, _ROWS_OF[node.target]))
            elif node.target is ops.compose:
                if (rows := arguments.operand(node, "inner")).target is ops.all_rows:  # or it composes groups
                    node.replace_all_uses_with(rows)
            elif node.target is ops.scatter:
                mask = self.masks[arguments.operand(node, "valid")]
                arguments.retarget(node, ops.blend, mask=mask)
                self.counts["blended"] += 1
            elif node.target is ops.share:
                self._blend(node)
            elif node.target in (ops.fill, ops.rescale, ops.counts, ops.valid_mask_among):
                node.args = fx.map_arg(node.args, lambda source: self.masks.get(source, source))
                if node.target is ops.valid_mask_among:
                    self.masks[node] = node
            elif node.name in self.cores:
                self._weigh(node)

    def _mask(self, valid: fx.Node) -> None:
        """The mask of kept rows, with a gradient where a learned scorer chose them."""
        kept = chosen = arguments.operand(valid, "kept")
        valid.replace_all_uses_with(kept)
        self.masks[kept] = kept
        while chosen.target in (ops.with_best_dropped, ops.context_mask):
            chosen = arguments.operand(chosen, "kept")
        given = arguments.bind(chosen)
        score, before = given.get("score"), given["valid"]
        if score is None or not _is_learned(score):
            return
        mask = self.masks[before] if before is not None else None
        trained = (kept, score, given.get("threshold"), given["prefix"], given["suffix"], mask)
        with self.graph.inserting_after(kept):
            made = self.graph.create_node(
                "call_function", ops.straight_through, trained, name=f"{kept.name}_trained"
            )
        made.meta["val"] = score.meta["val"]
        self.masks[kept] = made
        self.counts["trained"] += 1

    def _blend(self, shared: fx.Node) -> None:
        """Where the choice is trained, let the mask say how much of a token's own value there is in it."""
        group = arguments.operand(shared, "group")
        while group.target is ops.compose:
            group = arguments.operand(group, "outer")
        mask = self.masks.get(arguments.operand(group, "kept"))
        if mask is None or mask.target is not ops.straight_through:
            return
        given = arguments.bind(shared)
        with self.graph.inserting_after(shared):
            made = self.graph.create_node("call_function", ops.blend, (), name=f"{shared.name}_blended")
        made.meta = dict(shared.meta)
        shared.replace_all_uses_with(made)
        made.args = (shared, given["x"], mask, given["dim"])
        self.counts["blended"] += 1

    def _weigh(self, node: fx.Node) -> None:
        """Let the mask weigh the keys of an attention."""
        if graph.op(node) == "scaled_dot_product_attention":
            hidden, names = mask_of(node), compat.argument_names_of(node.target)
            if hidden is None or hidden.target is not ops.key_mask:
                return
            given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
            key_mask = arguments.bind(hidden)
            mask, own = self.masks[key_mask["valid"]], key_mask["mask"]
            _becomes(node, ops.attend_kept, (*node.args[:3], mask, own, given.get("scale")))
        else:
            logits = hidden = graph.operand(node, 0)
            if logits.target is ops.rows:  # of the queries, where some are dead rows
                hidden = arguments.operand(logits, "x")
            if hidden.target is not ops.mask_keys:
                return
            mask, shown = self.masks[arguments.operand(hidden, "valid")], arguments.operand(hidden, "logits")
            if logits is hidden:
                logits = shown
            else:
                arguments.rebind(logits, x=shown)
            _becomes(node, ops.softmax_kept, (logits, mask, node.meta["val"].dtype))
        self.counts["masked"] += 1


def _becomes(node: fx.Node, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    node.target, node.args, node.kwargs = function, args, {}


def _reads_places(node: fx.Node) -> bool:
    """Whether a call tells tokens by their places in the pruned stream."""
    return node.target in (ops.pairs, ops.novelty)


def _is_learned(score: fx.Node) -> bool:
    """Whether a scorer with parameters gave these scores."""
    while score.target in _READS_SCORES:
        read = arguments.bind(score)[_READS_SCORES[score.target]]
        if read is None:
            return False
        score = read
    return isinstance(score.target, ops.Learned) and score.target.trainable
