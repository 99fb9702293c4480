"""Which values of a padded program have a packed form too, and which calls may run on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import fx

from prunec import compat, ops
from prunec.ir import arguments, graph
from prunec.ir.calls import signature
from prunec.ir.program import Planned
from prunec.ir.sizes import sizes_of
from prunec.probing.lengths import Lengths
from prunec.probing.probe import Probe
from prunec.probing.questions import treats_rows_alike


@dataclass(frozen=True)
class PackedSpace:
    """The packed rows of one selection; nodes of the new graph, but for the selection."""

    selection: fx.Node
    padded: sympy.Symbol  # n
    packed: sympy.Symbol  # S
    valid: fx.Node  # [B, n]
    rows: fx.Node  # [1, S]
    slots: fx.Node  # [B, n]
    made: dict[Any, fx.Node] = field(default_factory=dict)  # calls that are written once


#: Operations that put certain values into padding rows.
_FILLING = (ops.key_mask, ops.mask_keys, ops.key_bias, ops.bias_keys, ops.fill)


class Forms:
    """What is known of the values of the padded graph; `open` adds its selections in order."""

    def __init__(self) -> None:
        self.spaces: dict[sympy.Symbol, PackedSpace] = {}
        self.batch: sympy.Expr | None = None
        self.filled: dict[fx.Node, int | None] = {}  # axes on which padding holds certain values
        self.alike: dict[Any, bool] = {}  # results of trial runs

    def open(self, space: PackedSpace) -> None:
        """Add a selection."""
        self.spaces[space.padded] = space
        self.batch = compat.expression(space.selection.meta["val"].shape[0])

    def space_of(self, selection: fx.Node) -> PackedSpace:
        """The rows of a selection."""
        return next(space for space in self.spaces.values() if space.selection is selection)

    def space(self, node: fx.Node) -> PackedSpace | None:
        """The last selection that a value's rows went through."""
        found = [symbol for symbol in self.symbols(node) if symbol in self.spaces]
        return self.spaces[max(found, key=list(self.spaces).index)] if found else None

    def symbols(self, node: fx.Node) -> set[sympy.Symbol]:
        """The symbols in the sizes of a value."""
        leaves = compat.tree_leaves(node.meta.get("val"))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        return {symbol for leaf in tensors for size in sizes_of(leaf) for symbol in size.free_symbols}

    def counts_images(self, node: fx.Node) -> bool:
        """Whether a value has a batch axis."""
        return bool(self.symbols(node) & self.batch.free_symbols) if self.batch is not None else False

    def has_both_forms(self, node: fx.Node) -> bool:
        """Whether a value is floating-point rows, with one axis of tokens and one of images."""
        space, leaves = self.space(node), compat.tree_leaves(node.meta["val"])
        wanted = sorted([str(space.padded), str(self.batch)]) if space else []
        return bool(leaves) and all(
            isinstance(leaf, torch.Tensor)
            and leaf.is_floating_point()
            and sorted(str(size) for size in sizes_of(leaf) if not size.is_number) == wanted
            for leaf in leaves
        )

    def filled_axis(self, node: fx.Node) -> int | None:
        """The axis, from the end, on which padding rows of a value must keep their values."""
        if graph.op(node) == "scaled_dot_product_attention":
            return None
        (value, *_) = compat.tree_leaves(node.meta.get("val"))
        sizes = sizes_of(value) if isinstance(value, torch.Tensor) else ()
        axes = [self.filled.get(source) for source in node.all_input_nodes]
        if node.target in _FILLING:
            axes.append(arguments.bind(node)["dim"] - len(sizes) if node.target is ops.fill else -1)
        found = [axis for axis in axes if axis is not None and -axis <= len(sizes)]
        return next((axis for axis in found if sizes[axis].free_symbols & set(self.spaces)), None)

    def are_rows_of(self, space: PackedSpace, nodes: list[fx.Node]) -> bool:
        """Whether values are all rows of the same selection, and have both forms."""
        return all(self.space(node) is space and self.has_both_forms(node) for node in nodes)

    def axes(self, node: fx.Node) -> tuple[int, int]:
        """The axes of tokens and of images."""
        space, (leaf, *_) = self.space(node), compat.tree_leaves(node.meta["val"])
        assert space is not None
        sizes = sizes_of(leaf)
        return sizes.index(space.padded), sizes.index(self.batch)

    def treats_rows_alike(self, node: fx.Node, pruned: list[fx.Node]) -> bool:
        """Whether a call on these operands does the same to each row, by a trial run."""
        if isinstance(node.target, ops.Learned):
            return not node.target.context
        key = (node.target, signature(node.args), signature(node.kwargs))
        if key not in self.alike:
            axes = {source: self.axes(source)[0] for source in pruned}
            lengths = {
                symbol: compat.hint(space.selection.meta["val"].shape[1])
                for symbol, space in self.spaces.items()
            }
            probe = Probe(node, Lengths(lengths))
            self.alike[key] = bool(treats_rows_alike(probe, axes, self.axes(node)[0]))
        return self.alike[key]

    def packed_size(self, size: sympy.Expr, space: PackedSpace) -> sympy.Expr:
        """A size with one image of S tokens in the place of B images of n."""
        return size.subs({space.padded: space.packed, self.batch: 1})

    def is_packed_form(self, value: Any, node: fx.Node, space: PackedSpace) -> bool:
        """Whether a value has the sizes of the node's, but for one image of S tokens."""
        found, expected = compat.tree_leaves(value), compat.tree_leaves(node.meta["val"])
        return len(found) == len(expected) and all(
            tuple(self.packed_size(size, space) for size in sizes_of(other)) == sizes_of(one)
            for one, other in zip(found, expected, strict=True)
        )


def fixed_totals(program: Planned) -> tuple[int, ...]:
    """How many rows an image has on average after each site, if all batches have as many; else ()."""
    steps = [program.plan.step(site) for site in program.plan.sites]
    fixed = all(step.selector.budget == "batch" and step.fate != "fuse" for step in steps)
    return tuple(site.leaves for site in program.plan.sites) if fixed else ()


def unprotected(node: fx.Node) -> tuple[Any, ...]:
    """A learned scorer's arguments with no row protected: in packed rows they have no constant place."""
    given = arguments.bind(node)
    return (given["x"], 0, 0, given["dim"], None, *given["parameters"])
