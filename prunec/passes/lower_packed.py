"""Lower a padded program to packed rows: all images' kept tokens one after the other, and no padding.

    gather -- x [B, n, C] -- norm -- linear -- attention(keys hidden) -- linear -- (+) -- rows 0:1 -- head
becomes
    pick -- x [1, S, C] -- norm -- linear -- attend -- linear -- (+) -- spread 0:1 -- head

Every value of a pruned stream can be had in two forms: padded [B, n, ..], as the program has it, and packed
[1, S, ..]. A call that does the same to each row, which is found by watching it, runs on packed rows: the
same call, on one image of S tokens. Everything else runs on padded ones as before. Where the form changes,
`spread` or `pick` stands between: so there is nothing that cannot be packed, only what does not gain by it.

`spread` leaves anything in padding rows. Where these must hold something (what hides a key, or fills a mean)
the padded form is the only one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import sympy
import torch
from torch import fx

from prunec import compat, graph, ops
from prunec.calls import signature
from prunec.errors import UsageError
from prunec.lowering import Attention
from prunec.padding import mask_of
from prunec.program import Program
from prunec.sizes import SizeNodes, sizes_of
from prunec.watch import treats_rows_alike


@dataclass(frozen=True)
class LowerPacked:
    """Run what can be run on the rows of all images at once."""

    name: ClassVar[str] = "pack rows"
    attention: Attention = "rows"  # image by image, or padded to the longest

    def requires(self, program: Program) -> None:
        """A padded program with its types."""
        assert program.plan is not None and program.plan.lowering.mode == "packed"

    def run(self, program: Program) -> tuple[Program, dict[str, int]]:
        """The program on packed rows."""
        if program.interface.batch is None:
            raise UsageError(
                "mode packed puts the rows of all images together, and the model's own code fixes the batch",
                where="mode",
                remedy="modes that can: static, padded, masked",
            )
        packing = _Packing(program, self.attention)
        return program.replace(module=packing.run()), packing.counts

    def ensures(self, program: Program) -> None:
        """No key is hidden from attention on packed rows."""
        cores = [node for node in program.graph.nodes if node.target is ops.attend]
        assert all(len(core.args) == 6 for core in cores)


@dataclass(frozen=True)
class _Space:
    """The packed rows of one selection; nodes of the new graph, but for the selection."""

    selection: fx.Node
    padded: sympy.Symbol  # n
    packed: sympy.Symbol  # S
    live: fx.Node  # [B, n]
    rows: fx.Node  # [1, S]
    slots: fx.Node  # [B, n]
    made: dict[Any, fx.Node] = field(default_factory=dict)  # places, each made once


class _Packing:
    """Builds the packed graph; a node of the old one has a padded form, a packed one, or both."""

    def __init__(self, program: Program, attention: Attention) -> None:
        assert program.plan is not None and program.anatomy is not None
        self.module, self.attention, self.cores = program.module, attention, program.anatomy.cores
        self.bound = program.plan.lowering.bound
        self.totals = fixed_totals(program)
        self.mode = compat.fake_mode_of(program.graph)
        self.graph = fx.Graph()
        self.sizes = SizeNodes(self.graph, self._call)
        self.padded: dict[fx.Node, fx.Node] = {}
        self.packed: dict[fx.Node, fx.Node] = {}
        self.spaces: dict[sympy.Symbol, _Space] = {}
        self.batch: sympy.Expr | None = None
        self.filled: dict[fx.Node, int | None] = {}
        self.alike: dict[Any, bool] = {}  # calls that were watched
        self.counts = {"packed": 0, "attention": 0, "picks": 0, "spreads": 0}

    def run(self) -> fx.GraphModule:
        """The new graph module, on the same parameters."""
        for node in self.module.graph.nodes:
            made = self._packed_call(node) if self.spaces and node.op == "call_function" else None
            if made is not None:
                self.packed[node] = made
                self.counts["packed"] += 1
            else:
                self.padded[node] = self._out_of_rows(node) or self._copy(node)
            if node.target in ops.SELECTIONS:
                self._open(node)
            self.filled[node] = self._filled_axis(node)
        return graph.with_graph(self.module, self.graph)

    # --- the two forms --------------------------------------------------------------------------

    def _in_padded_form(self, node: fx.Node) -> fx.Node:
        if node not in self.padded and node.target is ops.take:
            self.padded[node] = self._copy(node)  # a table: to read it again is cheaper than to move it
        elif node not in self.padded:
            space, (axis, images) = self._space(node), self._axes(node)
            assert space is not None
            self.counts["spreads"] += 1
            spread = (self.packed[node], space.slots, axis, images)
            self.padded[node] = self._call(ops.spread, spread, f"{node.name}_padded")
        return self.padded[node]

    def _in_packed_form(self, node: fx.Node) -> fx.Node:
        if node not in self.packed:
            space = self._space(node)
            assert space is not None
            self.counts["picks"] += 1
            pick = (self.padded[node], space.rows, *self._axes(node))
            self.packed[node] = self._call(ops.pick, pick, f"{node.name}_packed")
        return self.packed[node]

    def _copy(self, node: fx.Node) -> fx.Node:
        """The call as it is, on padded operands."""
        operands = {source: self._in_padded_form(source) for source in node.all_input_nodes}
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: operands[source])
        made = self.graph.create_node(node.op, node.target, args, kwargs, node.name, node.type)
        made.meta = dict(node.meta)
        return made

    def _open(self, node: fx.Node) -> None:
        """The packed rows of what a selection leaves."""
        index, kept = self.padded[node], self._in_padded_form(node.all_input_nodes[0])
        number, name, value = len(self.spaces), node.name, node.meta["val"]
        if self.totals:  # a length that no batch changes
            index.target, index.args = ops.pack_all, (*index.args[:3], *index.args[4:5])
        live = self._call(ops.live, (kept, index), f"{name}_live")
        if self.totals:
            rows = self._call(ops.fixed_rows_of, (live, self.totals[number]), f"{name}_rows")
        else:
            bound = () if self.bound is None else (self.bound,)
            rows = self._typed(ops.rows_of, (live, *bound), f"{name}_rows", None)
        total = compat.new_symbol(self.mode, f"s{number + 1}", 8 * compat.hint(value.shape[1]) + 3)
        rows.meta["val"] = compat.fake_like(self.mode, (1, total), torch.int64, value.device)
        padded, packed = compat.expression(value.shape[1]), compat.expression(total)
        assert isinstance(padded, sympy.Symbol) and isinstance(packed, sympy.Symbol)
        self.batch = compat.expression(value.shape[0])
        self.sizes.selections[packed] = (number, rows)
        slots = self._call(ops.slots, (live,), f"{name}_slots")
        self.spaces[padded] = _Space(node, padded, packed, live, rows, slots)

    # --- calls on packed rows -------------------------------------------------------------------

    def _packed_call(self, node: fx.Node) -> fx.Node | None:
        """The call on packed rows; None where it needs padded ones, or yields them."""
        space = self._space(node)
        if space is None or not self._has_both_forms(node) or self._filled_axis(node) is not None:
            return None
        if graph.is_getitem(node):
            made = self.packed.get(graph.operand(node, 0))
            return made and self._call(operator.getitem, (made, node.args[1]), node.name)
        if node.target is ops.gather:
            return self._gathered(node, space)
        if node.target is ops.scatter:
            return self._scattered(node, space)
        if node.target is ops.take:
            return self._taken(node, space)
        if node.name in self.cores:
            return self._attended(node, space)
        return self._row_by_row(node, space)

    def _row_by_row(self, node: fx.Node, space: _Space) -> fx.Node | None:
        """The same call on one image of S tokens."""
        tensors = [source for source in node.all_input_nodes if not graph.is_size(source)]
        pruned = [source for source in tensors if self._space(source) is not None]
        fixed = [source for source in tensors if source not in pruned]
        if not pruned or not self._are_rows_of(space, pruned) or any(map(self._counts_images, fixed)):
            return None
        if not self._treats_rows_alike(node, pruned):
            return None
        operands = {source: self._in_packed_form(source) for source in pruned}
        operands |= {source: self.padded[source] for source in fixed}
        given = _unprotected(node) if isinstance(node.target, ops.Learned) else node.args
        args, kwargs = fx.map_arg(
            (given, node.kwargs),
            lambda source: operands[source] if source in operands else self._size(source, space),
        )
        values = fx.map_arg((args, kwargs), lambda source: source.meta["val"])
        assert callable(node.target)
        try:
            value, forced = compat.evaluate(self.mode, node.target, *values)
        except Exception:  # noqa: BLE001  what has no type on packed rows runs on padded ones
            return None
        if forced or not self._is_packed_form(value, node, space):
            return None
        made = self.graph.create_node("call_function", node.target, args, kwargs, node.name)
        made.meta = {**node.meta, "val": value}
        return made

    def _gathered(self, node: fx.Node, space: _Space) -> fx.Node | None:
        source, index = graph.operand(node, 0), graph.operand(node, 1)
        axis, images = self._axes(node)
        before = self._space(source)
        if index is not space.selection:
            return None
        if before is not None:
            kept = (self._in_packed_form(source), self._places_among(before, space), axis)
            return self._call(ops.keep, kept, node.name)
        places = self._places(space, index, source.meta["val"].shape[axis])
        return self._call(ops.pick, (self.padded[source], places, axis, images), node.name)

    def _scattered(self, node: fx.Node, space: _Space) -> fx.Node | None:
        """Packed rows back among those that were packed before."""
        base, x, index = (graph.operand(node, place) for place in range(3))
        inner = self._space(x)
        if inner is None or index is not inner.selection or self._space(base) is not space:
            return None
        places = self._places_among(space, inner)
        rows = (self._in_packed_form(base), self._in_packed_form(x), places, self._axes(node)[0])
        return self._call(ops.put_among, rows, node.name)

    def _taken(self, node: fx.Node, space: _Space) -> fx.Node | None:
        """Rows of a table that all images share."""
        table, index = graph.operand(node, 0), graph.operand(node, 1)
        dim, images, *skipped = node.args[2:]
        assert isinstance(images, int)
        shared = self._space(table) is None and table.meta["val"].shape[images] == 1
        if any(skipped) or not shared:
            return None
        numbers = self._made(space, ("numbers", index), ops.numbers, (self.padded[index], space.rows))
        return self._call(ops.take, (self.padded[table], numbers, dim, images), node.name)

    def _attended(self, node: fx.Node, space: _Space) -> fx.Node | None:
        """Attention image by image, where nothing but padding is hidden from it."""
        names = compat.argument_names_of(node.target)
        given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        mask, scale = mask_of(node), given.pop("scale", None)
        operands = [given.pop(name, None) for name in ("query", "key", "value")]
        given.pop("attn_mask", None)
        plain = mask is not None and mask.target is ops.key_mask and not any(mask.args[1:])
        if self.attention != "rows" or not plain or any(given.values()):
            return None
        query, *others = nodes = [operand for operand in operands if isinstance(operand, fx.Node)]
        among = self._space(others[0])
        if among is None or not self._are_rows_of(space, [query]) or not self._are_rows_of(among, others):
            return None
        self.counts["attention"] += 1
        rows = [self._in_packed_form(operand) for operand in nodes]
        return self._call(ops.attend, (*rows, space.live, among.live, scale), node.name)

    def _out_of_rows(self, node: fx.Node) -> fx.Node | None:
        """Padded or whole values that are better made of packed rows."""
        if node.target is ops.rows:
            source, dim, *span = node.args
            assert isinstance(source, fx.Node)
            space = self._space(source) if source in self.packed else None
            if space is None or self._axes(source)[0] != dim:
                return None
            slots = self._call(ops.rows, (space.slots, 1, *span), f"{node.name}_slots")
            return self._call(ops.spread, (self.packed[source], slots, *self._axes(source)), node.name)
        if node.target is ops.scatter:
            base, x, index = (graph.operand(node, place) for place in range(3))
            space = self._space(x) if x in self.packed else None
            if space is None or self._space(base) is not None:
                return None
            axis, images = self._axes(x)
            places = self._places(space, index, base.meta["val"].shape[axis])
            return self._call(ops.put, (self.padded[base], self.packed[x], places, axis, images), node.name)
        return None

    # --- what is known of values ----------------------------------------------------------------

    def _space(self, node: fx.Node) -> _Space | None:
        """Of the selections that a value's rows went through, the last one."""
        found = [symbol for symbol in self._symbols(node) if symbol in self.spaces]
        return self.spaces[max(found, key=list(self.spaces).index)] if found else None

    def _symbols(self, node: fx.Node) -> set[sympy.Symbol]:
        leaves = compat.tree_leaves(node.meta.get("val"))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        return {symbol for leaf in tensors for size in sizes_of(leaf) for symbol in size.free_symbols}

    def _counts_images(self, node: fx.Node) -> bool:
        return bool(self._symbols(node) & self.batch.free_symbols) if self.batch is not None else False

    def _has_both_forms(self, node: fx.Node) -> bool:
        """Whether a value is rows of each image: floating-point numbers, tokens and images an axis each."""
        space, leaves = self._space(node), compat.tree_leaves(node.meta["val"])
        wanted = sorted([str(space.padded), str(self.batch)]) if space else []
        return bool(leaves) and all(
            isinstance(leaf, torch.Tensor)
            and leaf.is_floating_point()
            and sorted(str(size) for size in sizes_of(leaf) if not size.is_number) == wanted
            for leaf in leaves
        )

    def _filled_axis(self, node: fx.Node) -> int | None:
        """The axis, from the end, on which padding rows of a value hold something on purpose."""
        if graph.op(node) == "scaled_dot_product_attention":
            return None
        (value, *_) = compat.tree_leaves(node.meta.get("val"))
        sizes = sizes_of(value) if isinstance(value, torch.Tensor) else ()
        axes = [self.filled.get(source) for source in node.all_input_nodes]
        if node.target in _FILLING:
            axes.append(int(node.args[3]) - len(sizes) if node.target is ops.fill else -1)  # type: ignore[arg-type]
        found = [axis for axis in axes if axis is not None and -axis <= len(sizes)]
        return next((axis for axis in found if sizes[axis].free_symbols & set(self.spaces)), None)

    def _are_rows_of(self, space: _Space, nodes: list[fx.Node]) -> bool:
        return all(self._space(node) is space and self._has_both_forms(node) for node in nodes)

    def _axes(self, node: fx.Node) -> tuple[int, int]:
        """The axes of tokens and of images."""
        space, (leaf, *_) = self._space(node), compat.tree_leaves(node.meta["val"])
        assert space is not None
        sizes = sizes_of(leaf)
        return sizes.index(space.padded), sizes.index(self.batch)

    def _treats_rows_alike(self, node: fx.Node, pruned: list[fx.Node]) -> bool:
        if isinstance(node.target, ops.Learned):
            return not node.target.context
        key = (node.target, signature(node.args), signature(node.kwargs))
        if key not in self.alike:
            axes = {source: self._axes(source)[0] for source in pruned}
            lengths = {
                symbol: compat.hint(space.selection.meta["val"].shape[1])
                for symbol, space in self.spaces.items()
            }
            self.alike[key] = treats_rows_alike(node, axes, self._axes(node)[0], lengths)
        return self.alike[key]

    def _packed_size(self, size: sympy.Expr, space: _Space) -> sympy.Expr:
        return size.subs({space.padded: space.packed, self.batch: 1})

    def _is_packed_form(self, value: Any, node: fx.Node, space: _Space) -> bool:
        """Whether a value has the sizes of the node's, but for one image of S tokens."""
        found, expected = compat.tree_leaves(value), compat.tree_leaves(node.meta["val"])
        return len(found) == len(expected) and all(
            tuple(self._packed_size(size, space) for size in sizes_of(other)) == sizes_of(one)
            for one, other in zip(found, expected, strict=True)
        )

    def _size(self, node: fx.Node, space: _Space) -> fx.Node | int:
        size = self._packed_size(compat.expression(node.meta["val"]), space)
        return int(size) if size.is_Integer else self.sizes.node(size)

    # --- small helpers --------------------------------------------------------------------------

    def _places(self, space: _Space, index: Any, length: int) -> fx.Node:
        args = (self.padded[index], space.rows, length)
        return self._made(space, ("places", index), ops.places, args)

    def _places_among(self, before: _Space, space: _Space) -> fx.Node:
        args = (before.slots, self.padded[space.selection], space.rows)
        return self._made(space, ("among", before.padded), ops.places_among, args)

    def _made(self, space: _Space, key: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> fx.Node:
        if key not in space.made:
            space.made[key] = self._call(function, args, f"{space.selection.name}_{key[0]}")
        return space.made[key]

    def _call(self, function: Callable[..., Any], args: tuple[Any, ...], name: str) -> fx.Node:
        values = fx.map_arg(args, lambda source: source.meta["val"])
        value, _ = compat.evaluate(self.mode, function, values, {})
        return self._typed(function, args, name, value)

    def _typed(self, function: Callable[..., Any], args: tuple[Any, ...], name: str, value: Any) -> fx.Node:
        node = self.graph.create_node("call_function", function, args, {}, name)
        node.meta["val"] = value
        return node


#: What hides padding, or makes no difference of it.
_FILLING = (ops.key_mask, ops.mask_keys, ops.key_bias, ops.bias_keys, ops.fill)


def _unprotected(node: fx.Node) -> tuple[Any, ...]:
    """A learned scorer's arguments, but with no row protected: where those stand, packed rows do not tell."""
    x, _, _, dim, _, *parameters = node.args
    return (x, 0, 0, dim, None, *parameters)


def fixed_totals(program: Program) -> tuple[int, ...]:
    """How many rows an image has on average behind each site, where no batch changes that; else nothing."""
    assert program.plan is not None
    steps = [program.plan.step(site) for site in program.plan.sites]
    fixed = all(step.selector.budget == "batch" and step.fate != "fuse" for step in steps)
    return tuple(site.leaves for site in program.plan.sites) if fixed else ()
