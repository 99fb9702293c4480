"""Lower a padded program to packed rows: all images' kept tokens one after the other, and no padding.

    gather -- x [B, n, C] -- norm -- linear -- attention(keys hidden) -- linear -- (+) -- rows 0:1 -- head
becomes
    unpad -- x [1, S, C] -- norm -- linear -- attend -- linear -- (+) -- pad 0:1 -- head

Every value of a pruned stream has two forms: padded [B, n, ..], as in the program, and packed [1, S, ..]. A
call that does the same to each row, as a trial run shows, runs on packed rows: the same call, on one image of
S tokens. All other calls run on padded rows as before, with `pad` or `unpad` where the form changes. So every
program can be packed; one with few token-wise calls only gains less.

`pad` leaves any values in padding rows. Where padding must hold a certain value (it hides a key, or fills a
mean) there is only the padded form.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import sympy
import torch
from torch import fx

from prunec import compat, ops
from prunec.dataflow.forms import Forms, PackedSpace, fixed_totals, unprotected
from prunec.errors import UsageError
from prunec.ir import arguments, graph
from prunec.ir.program import Counts, Planned
from prunec.ir.rewrite import Pass
from prunec.ir.sizes import SizeNodes
from prunec.policy.lowering import Attention
from prunec.token_axis.padding import mask_of

_LOG = logging.getLogger(__name__)
_ADD, _SUB = torch.ops.aten.add.Tensor, torch.ops.aten.sub.Tensor


@dataclass(frozen=True)
class LowerPacked(Pass[Planned, Planned]):
    """Run token-wise calls on the rows of all images at once."""

    name: ClassVar[str] = "pack rows"
    attention: Attention = "rows"  # image by image, or padded to the longest

    def requires(self, program: Planned) -> None:
        """A padded program with its types."""
        mode = program.plan.lowering.mode
        self.promise(mode == "packed", f"made for mode packed, and the mode is {mode}")

    def run(self, program: Planned) -> tuple[Planned, Counts]:
        """The program on packed rows."""
        if program.interface.batch is None:
            raise UsageError(
                "mode packed puts the rows of all images together, and the model's own code fixes the batch",
                where="mode",
                remedy="modes that can: static, padded, masked",
            )
        packing = _Packing(program, self.attention)
        return program.replace(module=packing.run()), Counts(packing.counts)

    def ensures(self, program: Planned) -> None:
        """Attention image by image reads the rows of all images as those of one."""
        for core in (node for node in program.graph.nodes if node.target is ops.attend):
            operands = [arguments.operand(core, name) for name in ("query", "key", "value")]
            packed = all(graph.shape(operand)[0] == 1 for operand in operands)
            self.promise(packed, "reads rows that are not packed", core)


class _Packing:
    """Builds the packed graph; each node of the padded one gets a padded form, a packed form, or both."""

    def __init__(self, program: Planned, attention: Attention) -> None:
        self.module, self.attention, self.cores = program.module, attention, program.anatomy.cores
        self.max_tokens = program.plan.lowering.max_tokens
        self.totals = fixed_totals(program)
        self.mode = compat.fake_mode_of(program.graph)
        self.graph = fx.Graph()
        self.sizes = SizeNodes(self.graph, self._call)
        self.padded: dict[fx.Node, fx.Node] = {}
        self.packed: dict[fx.Node, fx.Node] = {}
        self.forms = Forms()
        self.counts = {"packed": 0, "attention": 0, "picks": 0, "spreads": 0}

    def run(self) -> fx.GraphModule:
        """The new graph module, on the same parameters."""
        for node in self.module.graph.nodes:
            made = self._packed_call(node) if self.forms.spaces and node.op == "call_function" else None
            if node.target is ops.valid_mask:
                self.padded[node] = self.forms.space_of(arguments.operand(node, "index")).valid
            elif made is not None:
                self.packed[node] = made
                self.counts["packed"] += 1
            else:
                self.padded[node] = self._out_of_rows(node) or self._copy(node)
            if node.target in ops.SELECTIONS:
                self._open(node)
            self.forms.filled[node] = self.forms.filled_axis(node)
        return graph.with_graph(self.module, self.graph)

    # --- the two forms --------------------------------------------------------------------------

    def _in_padded_form(self, node: fx.Node) -> fx.Node:
        if node not in self.padded and node.target is ops.take:
            self.padded[node] = self._copy(node)  # a table: reading it again is cheaper than moving its rows
        elif node not in self.padded and (space := self.forms.space(node)) is not None:
            self.counts["spreads"] += 1
            given = (self.packed[node], space.slots, *self.forms.axes(node))
            self.padded[node] = self._call(ops.pad, given, f"{node.name}_padded")
        return self.padded[node]

    def _in_packed_form(self, node: fx.Node) -> fx.Node:
        if node not in self.packed and (space := self.forms.space(node)) is not None:
            self.counts["picks"] += 1
            given = (self.padded[node], space.rows, *self.forms.axes(node))
            self.packed[node] = self._call(ops.unpad, given, f"{node.name}_packed")
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
        index, kept = self.padded[node], self._in_padded_form(arguments.chosen_from(node))
        number, name, value = len(self.forms.spaces), node.name, node.meta["val"]
        if self.totals:  # a length that no batch changes
            arguments.retarget(index, ops.pack_all)
        valid = self._call(ops.valid_mask, (kept, index), f"{name}_valid")
        if self.totals:
            rows = self._call(ops.fixed_rows_of, (valid, self.totals[number]), f"{name}_rows")
        else:
            most = () if self.max_tokens is None else (self.max_tokens,)
            rows = self._typed(ops.rows_of, (valid, *most), f"{name}_rows", None)
        total = compat.new_symbol(self.mode, f"s{number + 1}", 8 * compat.hint(value.shape[1]) + 3)
        rows.meta["val"] = compat.fake_like(self.mode, (1, total), torch.int64, value.device)
        padded, packed = compat.expression(value.shape[1]), compat.expression(total)
        assert isinstance(padded, sympy.Symbol) and isinstance(packed, sympy.Symbol)
        self.sizes.selections[packed] = (number, rows)
        slots = self._call(ops.slots, (valid,), f"{name}_slots")
        self.forms.open(PackedSpace(node, padded, packed, valid, rows, slots))

    # --- calls on packed rows -------------------------------------------------------------------

    def _packed_call(self, node: fx.Node) -> fx.Node | None:
        """The call on packed rows; None where it needs padded ones, or yields them."""
        space = self.forms.space(node)
        if space is None or not self.forms.has_both_forms(node) or self.forms.filled_axis(node) is not None:
            return None
        if graph.is_getitem(node):
            made = self.packed.get(graph.operand(node, 0))
            return made and self._call(operator.getitem, (made, node.args[1]), node.name)
        if node.target is ops.gather:
            return self._gathered(node, space)
        if node.target is ops.scatter:
            return self._scattered(node, space)
        if node.target is ops.share:
            return self._shared_among(node, space)
        if node.target is ops.take:
            return self._taken(node, space)
        if node.name in self.cores:
            return self._attended(node, space)
        return self._row_by_row(node, space)

    def _row_by_row(self, node: fx.Node, space: PackedSpace) -> fx.Node | None:
        """The same call on one image of S tokens."""
        tensors = [source for source in node.all_input_nodes if not graph.is_size(source)]
        pruned = [source for source in tensors if self.forms.space(source) is not None]
        fixed = [source for source in tensors if source not in pruned]
        if (
            not pruned
            or not self.forms.are_rows_of(space, pruned)
            or any(map(self.forms.counts_images, fixed))
        ):
            return None
        if not self.forms.treats_rows_alike(node, pruned):
            return None
        operands = {source: self._in_packed_form(source) for source in pruned}
        operands |= {source: self.padded[source] for source in fixed}
        given = unprotected(node) if isinstance(node.target, ops.Learned) else node.args
        args, kwargs = fx.map_arg(
            (given, node.kwargs),
            lambda source: operands[source] if source in operands else self._size(source, space),
        )
        values = fx.map_arg((args, kwargs), lambda source: source.meta["val"])
        assert callable(node.target)
        try:
            value, forced = compat.evaluate(self.mode, node.target, *values)
        except Exception as error:  # noqa: BLE001  an operator raises what it likes
            _LOG.debug("%s has no type on packed rows and runs on padded ones: %s", node.name, error)
            return None
        if forced or not self.forms.is_packed_form(value, node, space):
            return None
        made = self.graph.create_node("call_function", node.target, args, kwargs, node.name)
        made.meta = {**node.meta, "val": value}
        return made

    def _gathered(self, node: fx.Node, space: PackedSpace) -> fx.Node | None:
        source, index = arguments.operand(node, "x"), arguments.operand(node, "index")
        axis, images = self.forms.axes(node)
        before = self.forms.space(source)
        if index is not space.selection:
            return None
        if before is not None:
            kept = (self._in_packed_form(source), self._places_among(before, space), axis)
            return self._call(ops.keep, kept, node.name)
        places = self._places(space, index, source.meta["val"].shape[axis])
        return self._call(ops.unpad, (self.padded[source], places, axis, images), node.name)

    def _scattered(self, node: fx.Node, space: PackedSpace) -> fx.Node | None:
        """Packed rows back among those that were packed before."""
        base, x, index = (arguments.operand(node, name) for name in ("base", "x", "index"))
        inner = self.forms.space(x)
        if inner is None or index is not inner.selection or self.forms.space(base) is not space:
            return None
        places = self._places_among(space, inner)
        rows = (self._in_packed_form(base), self._in_packed_form(x), places, self.forms.axes(node)[0])
        return self._call(ops.put_among, rows, node.name)

    def _shared_among(self, node: fx.Node, space: PackedSpace) -> fx.Node | None:
        """Updates of packed rows, or their values, for those that were packed before."""
        given = arguments.bind(node)
        base, inner = given["base"], self.forms.space(given["x"])
        if inner is None or (base is not None and self.forms.space(base) is not space):
            return None
        args = (inner.slots, self.padded[given["group"]], space.rows)
        places = self._made(space, ("shares", given["group"]), ops.places_among, args)
        rows = self._call(ops.keep, (self._update(node), places, self.forms.axes(node)[0]), f"{node.name}_of")
        return rows if base is None else self._call(_ADD, (self._in_packed_form(base), rows), node.name)

    def _shared_by_all(self, node: fx.Node) -> fx.Node | None:
        """The same for all tokens."""
        given = arguments.bind(node)
        x, base, group = given["x"], given["base"], given["group"]
        space = self.forms.space(x) if x in self.packed else None
        if space is None or self.forms.space(node) is not None:
            return None
        places = self._made(space, ("shares", group), ops.compose, (space.slots, self.padded[group]))
        spread = (self._update(node), places, *self.forms.axes(x))
        rows = self._call(ops.pad, spread, f"{node.name}_of")
        return rows if base is None else self._call(_ADD, (self.padded[base], rows), node.name)

    def _update(self, node: fx.Node) -> fx.Node:
        """What is shared of packed rows: their change since the site, or their values."""
        given = arguments.bind(node)
        rows = self._in_packed_form(given["x"])
        if given["base"] is None:
            return rows
        start = self._in_packed_form(given["at"])
        return self._call(_SUB, (rows, start), f"{node.name}_update")

    def _taken(self, node: fx.Node, space: PackedSpace) -> fx.Node | None:
        """Rows of a table that all images share."""
        given = arguments.bind(node)
        table, index, dim, images = (given[name] for name in ("table", "index", "dim", "batch_dim"))
        shared = self.forms.space(table) is None and table.meta["val"].shape[images] == 1
        if given["skip_prefix"] or given["skip_suffix"] or not shared:
            return None
        numbers = self._made(space, ("numbers", index), ops.token_numbers, (self.padded[index], space.rows))
        return self._call(ops.take, (self.padded[table], numbers, dim, images), node.name)

    def _attended(self, node: fx.Node, space: PackedSpace) -> fx.Node | None:
        """Attention image by image, where its mask hides nothing but padding."""
        names = compat.argument_names_of(node.target)
        given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        mask, scale = mask_of(node), given.pop("scale", None)
        operands = [given.pop(name, None) for name in ("query", "key", "value")]
        given.pop("attn_mask", None)
        padding = mask is not None and mask.target is ops.key_mask
        if self.attention != "rows" or not padding or any(given.values()):
            return None
        own = arguments.bind(mask)["mask"]  # type: ignore[arg-type]
        if own is not None and (own.target is not ops.key_bias or arguments.bind(own)["mask"] is not None):
            return None
        size = None if own is None else arguments.operand(own, "size")
        query, *others = nodes = [operand for operand in operands if isinstance(operand, fx.Node)]
        among = self.forms.space(others[0])
        widths = {operand.meta["val"].shape[-1] for operand in nodes}
        if (
            among is None
            or (query.meta["val"].is_cuda and (len(widths) > 1 or size is not None))  # the kernel's limits
            or (size is not None and not self.forms.are_rows_of(among, [size]))
            or not self.forms.are_rows_of(space, [query])
            or not self.forms.are_rows_of(among, others)
        ):
            return None
        self.counts["attention"] += 1
        rows = [self._in_packed_form(operand) for operand in nodes]
        sizes = () if size is None else (self._in_packed_form(size),)
        return self._call(ops.attend, (*rows, space.valid, among.valid, scale, *sizes), node.name)

    def _out_of_rows(self, node: fx.Node) -> fx.Node | None:
        """Padded or whole values that cost less when computed from packed rows."""
        if node.target is ops.rows:
            given = arguments.bind(node)
            source, start, stop = given["x"], given["start"], given["stop"]
            space = self.forms.space(source) if source in self.packed else None
            if space is None or self.forms.axes(source)[0] != given["dim"]:
                return None
            slots = self._call(ops.rows, (space.slots, 1, start, stop), f"{node.name}_slots")
            return self._call(ops.pad, (self.packed[source], slots, *self.forms.axes(source)), node.name)
        if node.target is ops.share:
            return self._shared_by_all(node)
        if node.target is ops.scatter:
            base, x, index = (arguments.operand(node, name) for name in ("base", "x", "index"))
            space = self.forms.space(x) if x in self.packed else None
            if space is None or self.forms.space(base) is not None:
                return None
            axis, images = self.forms.axes(x)
            places = self._places(space, index, base.meta["val"].shape[axis])
            return self._call(ops.put, (self.padded[base], self.packed[x], places, axis, images), node.name)
        return None

    # --- small helpers --------------------------------------------------------------------------

    def _size(self, node: fx.Node, space: PackedSpace) -> fx.Node | int:
        size = self.forms.packed_size(compat.expression(node.meta["val"]), space)
        return int(size) if size.is_Integer else self.sizes.node(size)

    def _places(self, space: PackedSpace, index: Any, length: int) -> fx.Node:
        args = (self.padded[index], space.rows, length)
        return self._made(space, ("places", index), ops.places, args)

    def _places_among(self, before: PackedSpace, space: PackedSpace) -> fx.Node:
        args = (before.slots, self.padded[space.selection], space.rows)
        return self._made(space, ("among", before.padded), ops.places_among, args)

    def _made(
        self, space: PackedSpace, key: Any, function: Callable[..., Any], args: tuple[Any, ...]
    ) -> fx.Node:
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
