"""Rows that must not be met: padding, and tokens that are only preserved.

Where images keep different numbers of tokens, the shorter ones are padded with rows that they have dropped.
Row by row these do no harm. Attention must not look at them: its keys are masked. Whatever else lets rows
meet (a mean, a convolution, a cumulative sum) must not have them, nor may it have the kept tokens alone where
those that were not kept are to take part: it gets the whole stream instead.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import sympy
from torch import fx

from prunec import compat, ops
from prunec.calls import signature
from prunec.errors import PolicyError
from prunec.graph import is_getitem, is_size, op, place
from prunec.tables import Space
from prunec.watch import is_row_local

Call = Callable[[Any, tuple[Any, ...], str], fx.Node]


class Padding:
    """What the rewriting of one graph has to know about rows that do not count."""

    def __init__(
        self,
        cores: Collection[str],
        axes: Callable[[Any], tuple[int, ...]],
        sizes: Callable[[], Mapping[sympy.Symbol, int]],
        call: Call,
    ) -> None:
        self.cores = cores  # attention over tokens, by node
        self.axes, self.sizes = axes, sizes  # token axes of a value; numbers for token counts
        self.call = call
        self.local: dict[Any, bool] = {}  # calls that were watched

    def is_reached_by(self, node: fx.Node, made: fx.Node) -> bool:
        """Whether an operator other than attention over tokens lets rows of its stream meet."""
        if ops.is_ours(node.target) or node.name in self.cores or is_getitem(node):
            return False
        inputs = {source: self.axes(source.meta.get("val")) for source in made.all_input_nodes}
        axes = self.axes(made.meta["val"])
        if len(axes) > 1 or any(len(found) > 1 for found in inputs.values()):
            return False  # scores of every token for every token, between the products of an attention
        if not axes:
            return any(inputs.values())
        key = (node.target, signature(made.args), signature(made.kwargs))
        if key not in self.local:
            watched = [
                (source, found[0]) for source, found in inputs.items() if found and not is_size(source)
            ]
            self.local[key] = all(
                is_row_local(made, source, (axis, axes[0]), self.sizes()) for source, axis in watched
            )
        return not self.local[key]

    def hide(self, node: fx.Node, made: fx.Node, space: Space) -> None:
        """Let attention (the old node, and the one made of it) not look at padding rows."""
        logits = made.args[0]
        assert isinstance(logits, fx.Node)
        batch = space.selection.meta["val"].shape[0]
        if compat.expression(logits.meta["val"].shape[0]) != compat.expression(batch):
            raise PolicyError(
                "images that keep different numbers of tokens need attention with images on its first axis",
                where=place(node),
                remedy="use a policy whose selector is top_k",
            )
        with made.graph.inserting_before(made):
            if op(node) != "scaled_dot_product_attention":
                hidden = self.call(ops.mask_keys, (logits, space.live), f"{node.name}_live")
                made.replace_input_with(logits, hidden)
                return
            keys = self.call(ops.key_mask, (space.live, mask_of(made)), f"{node.name}_live")
        set_mask(made, keys)


def mask_of(attention: fx.Node) -> fx.Node | None:
    """The mask of a fused attention, if it has one."""
    return attention.args[3] if len(attention.args) > 3 else attention.kwargs.get("attn_mask")  # type: ignore[return-value]


def set_mask(attention: fx.Node, mask: fx.Node) -> None:
    """Give a fused attention another mask."""
    names = compat.argument_names_of(attention.target)
    others = {**dict(zip(names[3:], attention.args[3:], strict=False)), **attention.kwargs}
    attention.args, attention.kwargs = attention.args[:3], {**others, "attn_mask": mask}
