"""Rows that must not be met: padding, and tokens that are only preserved.

Where images keep different numbers of tokens, the shorter ones are padded with rows that they have dropped.
Row by row these do no harm. Attention must not look at them: its keys are masked. Where a head sums tokens
up (a mean, a maximum, a pooling attention), they are filled with what makes no difference to it; what that is
is found by watching. Whatever else lets rows meet (a convolution, a cumulative sum) must not have them, nor
may anything have the kept tokens alone where those that were not kept are to take part: it gets the whole
stream instead.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import sympy
import torch
from torch import fx

from prunec import compat, ops
from prunec.errors import PolicyError
from prunec.ir.calls import signature
from prunec.ir.graph import is_getitem, is_size, is_tensor, op, place, shape
from prunec.probing.lengths import Lengths
from prunec.probing.neutral import Neutral, neutral
from prunec.probing.probe import Probe
from prunec.probing.questions import is_row_local, keeps_row_order, keeps_zero, rows_before
from prunec.structure import NoMatch
from prunec.token_axis.selected import Space

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
        self.neutral: dict[Any, Neutral | None] = {}
        self.among: dict[Any, fx.Node] = {}  # what counts of values that have more rows, or fewer
        self.weights: dict[fx.Node, int] = {}  # of attention, in which hidden keys have none: where keys are

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
            probe = self._probe(made)
            self.local[key] = all(is_row_local(probe, source, (axis, axes[0])) for source, axis in watched)
        return not self.local[key]

    def without(self, node: fx.Node, made: fx.Node, space: Space) -> fx.Node | None:
        """What the call yields when it does not see padding; None where nothing can be done about it."""
        if op(node) == "scaled_dot_product_attention":
            self.hide(node, made, space)
            return made
        result = self.axes(made.meta["val"])
        for operand in made.all_input_nodes:
            axes = self.axes(operand.meta.get("val"))
            images, each = images_of(operand, space)
            if len(axes) != 1 or images in (None, *axes) or is_size(operand):
                continue
            (axis,) = axes
            key = (
                node.target,
                signature(made.args),
                signature(made.kwargs),
                made.all_input_nodes.index(operand),
            )
            if key not in self.neutral:
                lengths = (axis, result[0] if result else None)
                self.neutral[key] = neutral(made, operand, lengths, self._lengths())
            found = self.neutral[key]
            if found is not None:
                return self._filled(node, made, operand, (axis, images, each), found, space)
        return None

    def _filled(
        self,
        node: fx.Node,
        made: fx.Node,
        operand: fx.Node,
        axes: tuple[int, int, int],
        found: Neutral,
        space: Space,
    ) -> fx.Node | None:
        """The call with padding rows of one operand filled."""
        axis, images, each = axes
        valid = self._valid(made, operand, axis, space)
        result_images, heads = images_of(made, space)
        if valid is None or (found.mean and (result_images is None or heads > 1)):
            return None
        with made.graph.inserting_before(made):
            args = (operand, valid, found.value, axis, images, each)
            filled = self.call(ops.fill, args, f"{operand.name}_valid")
        made.replace_input_with(operand, filled)
        if not found.mean:
            return made
        scaled = (made, filled, valid, axis, result_images)
        return self.call(ops.rescale, scaled, f"{node.name}_valid")

    def hide(self, node: fx.Node, made: fx.Node, space: Space) -> None:
        """Let attention (the old node, and the one made of it) not look at padding rows."""
        logits = made.args[0]
        assert isinstance(logits, fx.Node)
        images, heads = images_of(logits, space)
        fused = op(node) == "scaled_dot_product_attention"
        if images != 0 or (fused and heads != 1):
            raise PolicyError(
                "images that keep different numbers of tokens need attention with images on its first axis",
                where=place(node),
                remedy="use mode static, with a policy whose selector is top_k",
            )
        attended = made.args[1] if fused else logits
        assert isinstance(attended, fx.Node)
        last = attended.meta["val"].dim() - 1
        valid = self._valid_keys(node, made, attended, last - 1 if fused else last, space)
        with made.graph.inserting_before(made):
            if fused:
                set_mask(made, self.call(ops.key_mask, (valid, mask_of(made)), f"{node.name}_valid"))
            elif heads == 1:
                hidden = self.call(ops.mask_keys, (logits, valid), f"{node.name}_valid")
                made.replace_input_with(logits, hidden)
            else:  # [B * h, n, n]
                args = (logits, valid, float("-inf"), last, 0, heads)
                made.replace_input_with(logits, self.call(ops.fill, args, f"{node.name}_valid"))
        if not fused:
            self.weights[made] = last

    def hide_again(self, node: fx.Node, made: fx.Node, space: Space) -> fx.Node:
        """A value made of attention's weights, without those that it gives hidden keys (softmax - 1 / n)."""
        given = {source: self.weights[source] for source in made.all_input_nodes if source in self.weights}
        axes = self.axes(made.meta["val"])
        if not given or len(axes) != 2:
            return made
        lasting = (axis for axis in axes if all(self._stays(made, *one, axis) for one in given.items()))
        keys = next(lasting, None)
        if keys is None:
            return made
        images, each = images_of(made, space)
        if images is not None and not keeps_zero(self._probe(made), list(given)):
            args = (made, self._valid_keys(node, None, made, keys, space), 0.0, keys, images, each)
            made = self.call(ops.fill, args, f"{node.name}_valid")
        self.weights[made] = keys
        return made

    def _stays(self, made: fx.Node, source: fx.Node, keys: int, axis: int) -> bool:
        """Whether the keys of a value stand on this axis of what is made of it."""
        return rows_before(self._probe(made), source, (keys, axis)) == 0

    def _valid_keys(
        self, node: fx.Node, made: fx.Node | None, value: fx.Node, axis: int, space: Space
    ) -> fx.Node:
        """What says which keys count; PolicyError where that cannot be told."""
        valid = self._valid(made, value, axis, space)
        if valid is None:
            raise PolicyError(
                "this attention looks at some of the tokens, or at them and at others together, and which of "
                "its keys are padding cannot be told",
                where=place(node),
                remedy="use mode static, with a policy whose selector is top_k",
            )
        return valid

    def _valid(self, made: fx.Node | None, value: fx.Node, axis: int, space: Space) -> fx.Node | None:
        """What says which rows of a value count; it stands before `made`. None where that cannot be told.

        The value may have fewer rows than the stream (protected ones were cut off), or more: rows of another
        origin joined it, such as a class token.
        """
        assert space.valid is not None
        size, count = shape(value)[axis], shape(space.valid)[1]
        more = compat.expression(size) - compat.expression(count)
        if _equal(size, count):
            return space.valid
        front = self._front(value, axis, count)
        if front is None or not more.is_Integer:
            return None
        key = (space.valid, front, int(more))
        if key not in self.among:
            with contextlib.nullcontext() if made is None else made.graph.inserting_before(made):
                args = (space.valid, front, int(more) - front)
                self.among[key] = self.call(ops.valid_mask_among, args, f"{space.valid.name}_among")
        return self.among[key]

    def _front(self, value: fx.Node, axis: int, count: int | torch.SymInt) -> int | None:
        """How many rows of another origin stand before those of the stream; None if that cannot be seen."""
        first, *_ = compat.tree_leaves(value.meta["val"])  # of several values, such as an unbind's
        if _equal(first.shape[axis], count):
            return 0
        for source in value.all_input_nodes:
            axes = () if is_size(source) else self.axes(source.meta.get("val"))
            for own in axes:
                probe = self._probe(value)
                before = rows_before(probe, source, (own, axis))
                if isinstance(before, NoMatch) and keeps_row_order(probe, source, (own, axis)):
                    before = 0
                front = None if isinstance(before, NoMatch) else self._front(source, own, count)
                if not isinstance(before, NoMatch) and front is not None:
                    return before + front
        return None

    def _probe(self, made: fx.Node) -> Probe:
        return Probe(made, self._lengths())

    def _lengths(self) -> Lengths:
        return Lengths(self.sizes(), strict=True)


def _equal(size: int | torch.SymInt, other: int | torch.SymInt) -> bool:
    """Whether two sizes are one number, however each is written: at numbers that nothing else suggests."""
    difference = compat.expression(size) - compat.expression(other)
    symbols = sorted(difference.free_symbols, key=str)
    return bool(difference.subs({symbol: 24 + 7 * place for place, symbol in enumerate(symbols)}) == 0)


def images_of(value: fx.Node, space: Space) -> tuple[int | None, int]:
    """The axis of the images, and how many entries each has on it."""
    batch = compat.expression(space.selection.meta["val"].shape[0])
    for axis, size in enumerate(value.meta["val"].shape if is_tensor(value) else ()):
        each = sympy.cancel(compat.expression(size) / batch)
        if each.is_Integer:
            return axis, int(each)
    return None, 1


def mask_of(attention: fx.Node) -> fx.Node | None:
    """The mask of a fused attention, if it has one."""
    return attention.args[3] if len(attention.args) > 3 else attention.kwargs.get("attn_mask")  # type: ignore[return-value]


def set_mask(attention: fx.Node, mask: fx.Node) -> None:
    """Give a fused attention another mask."""
    names = compat.argument_names_of(attention.target)
    others = {**dict(zip(names[3:], attention.args[3:], strict=False)), **attention.kwargs}
    attention.args, attention.kwargs = attention.args[:3], {**others, "attn_mask": mask}
