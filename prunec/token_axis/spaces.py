"""The symbolic token axis: after a selection the token count is a symbol, and the graph repairs itself.

No operator has a rule here. The captured graph is rebuilt node by node under PyTorch's own symbolic shapes,
with the length of every selection a fresh symbol n. A dimension whose size contains n is a token axis. A node
that no longer types is repaired by the first of these that does:

    a literal burnt in by tracing        reshape(x, [b, 197, 3, h, d])  ->  reshape(x, [b, n, 3, h, d])
    an operand that is indexed by token  q * cos[197, d]                ->  q * take(cos, index)
    a place that needs the whole grid    reshape(x, [b, 14, 14, c])     ->  reshape(scatter(x0, x, index), ..)

"Types" means: PyTorch accepts the shapes, no symbol was forced to a value, and putting the original length
back for n gives exactly the shape that was recorded at capture.

A value that is wanted whole again is traced back to the last state of the residual stream, scattered there
into what the stream was before the selection, and recomputed from there. Rows that are read by constant
position (x[:, 0], x[:, 5:]) must be protected ones; any other such reader gets the whole stream too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import fx

from prunec import compat, ops
from prunec.errors import PolicyError
from prunec.ir import arguments
from prunec.ir.calls import CallTypes
from prunec.ir.graph import place, with_graph
from prunec.ir.sizes import SizeNodes
from prunec.token_axis.counted import Given, Numbers
from prunec.token_axis.literals import Literals
from prunec.token_axis.padding import Padding
from prunec.token_axis.positions import Positions, call_of
from prunec.token_axis.repairs import Repairs
from prunec.token_axis.selected import Space, Spaces, Stream, stand_in
from prunec.token_axis.tables import Tables, of_these_images

_MOVES = (ops.gather, ops.fuse, ops.pool)


class TokenAxis:
    """Rebuilds one graph, in which selections stand but nothing after them fits, into one that does."""

    def __init__(
        self,
        module: fx.GraphModule,
        stream: Stream,
        *,
        preserve: bool = False,
        restore: str = "stale",
        probe: bool = False,
    ) -> None:
        self.module = module
        self.tokens, self.prefix, self.suffix = stream.tokens, stream.prefix, stream.suffix
        self.token_dim = stream.token_dim
        self.states, self.cores = set(stream.states), set(stream.cores)
        self.preserve = preserve  # tokens that are not kept take part in whatever is not attention
        self.restore = restore  # how they come back: as they were, or by means of their representatives
        self.probe = probe  # only look: rows read by position are recorded, not repaired
        self.mode = compat.fake_mode_of(module.graph)
        self.calls = CallTypes(self.mode, stream.tokens)
        self.graph = fx.Graph()
        self.sizes = SizeNodes(self.graph, self._call)
        self.new: dict[fx.Node, fx.Node] = {}
        self.whole: dict[fx.Node, fx.Node] = {}  # old node -> its full-length version
        self.spaces = Spaces()
        self.repairs = Repairs()
        spare = stream.tokens // 4 if probe else stream.prefix + stream.suffix
        self.tables = Tables(stream.tokens, stream.prefix, stream.suffix, spare, self.full, self._call)
        self.literals = Literals(self.calls, self.sizes)
        self.positions = Positions(stream, self.spaces, self.calls, self.new)
        self.padding = Padding(self.cores, self.spaces.axes, lambda: self.literals.hints, self._call)
        self.given: dict[fx.Node, Given] = {}  # calls with their numbers at the count that is left
        self.behind: dict[fx.Node, Space | None] = {}  # old node -> the rows that it was made of
        counts = (stream.tokens, spare)
        self.numbers = Numbers(module.graph, counts, self.new, self.behind, self.sizes, self._call)
        self.ended: set[fx.Node] = set()  # old nodes that are made of the whole stream again
        self.leaving = False  # what is made whole is an output

    # --- the walk ---------------------------------------------------------------------------

    def run(self) -> tuple[fx.GraphModule, Repairs]:
        """Rebuild the graph; every tensor node of the result carries its symbolic type."""
        for node in self.module.graph.nodes:
            self.new[node] = self._output(node) if node.op == "output" else self._visit(node)
            self.behind[node] = self._rows_of(node)
        self.repairs.counted = [node.name for node in self.given]
        return with_graph(self.module, self.graph), self.repairs

    def _visit(self, node: fx.Node) -> fx.Node:
        inputs = [self.new[source] for source in node.all_input_nodes]
        space = self.spaces.deepest(inputs)
        if node.target is ops.whole:
            return self.full(arguments.operand(node, "x"))
        if node.target is ops.valid_mask:
            return self._space_of(node).valid  # type: ignore[return-value]
        if node.target in ops.SELECTIONS:
            return self._open_space(node, space)
        self._count(node, space)
        if node.op != "call_function" or space is None:
            return self._copy(node, lambda source: self.new[source])
        if node.target is ops.paint:
            return self._end_region(node, "class scores of all tokens")
        made = self._as_is(node) or self._literals(node) or self._operands(node, space)
        if made is None:
            return self._end_region(node, "the operator needs the whole grid")
        self.repairs.axes[node.name] = self.spaces.axes(made.meta["val"])
        if node.target in _MOVES:
            moved, source = self._space_of(node), arguments.operand(node, "x")
            moved.source, moved.before, moved.start = source, self.new[source], made
        if node.target is ops.assign:
            self._space_of(node).nodes["group"] = made
        read = self.positions.read(node, self._mapped(call_of(node)), made)
        if read is not None:
            self.repairs.reads.append(read)
            if not self.probe and (read.front > self.prefix or read.back > self.suffix):
                return self._end_region(node, f"patch rows are read by position: {_brief(read.rows)}", made)
        elif (space.valid is not None or self.preserve) and self.padding.is_reached_by(node, made):
            alone = None if self.preserve else self.padding.without(node, made, space)
            return alone or self._end_region(node, "tokens meet here that are not kept", made)
        elif not self.probe:
            self.numbers.check_sizes(node)
        if space.valid is not None and node.name in self.cores:
            self.padding.hide(node, made, space)
        return made if space.valid is None else self.padding.hide_again(node, made, space)

    def _output(self, node: fx.Node) -> fx.Node:
        """Outputs leave at the length that the user expects."""
        self.leaving = not self.probe
        return self._copy(node, self.full)

    def _open_space(self, node: fx.Node, parent: Space | None) -> fx.Node:
        """A select: its length is a fresh symbol, whatever count the plan gives it."""
        made = self._copy(node, lambda source: self.new[source])
        hint = stand_in(self.tokens, self.literals.hints.values())
        size = compat.new_symbol(self.mode, f"n{len(self.spaces) + 1}", hint)
        chosen = arguments.chosen_from(made)
        batch = chosen.meta["val"].shape[0]
        made.meta["val"] = compat.fake_like(self.mode, (batch, size), torch.int64, node.meta["val"].device)
        symbol = compat.expression(size)
        assert isinstance(symbol, sympy.Symbol)
        space = Space(len(self.spaces), symbol, made, parent)
        self.sizes.selections[symbol] = (space.number, made)
        self.calls.symbols.add(symbol)
        self.literals.hints[symbol] = hint
        self.spaces[symbol] = space
        if node.target is ops.pack:
            space.valid = self._call(ops.valid_mask, (chosen, made), f"valid_{space.number}")
        return made

    # --- numbers that follow the token count --------------------------------------------------

    def _count(self, node: fx.Node, space: Space | None) -> None:
        """Let the numbers of a call be those at the count of the rows that it works on."""
        here = space or self._behind(node)
        given = None if here is None or self.probe else self.numbers.at(node, here)
        if given is not None:
            self.given[node] = given

    def _rows_of(self, node: fx.Node) -> Space | None:
        """The rows that a value is, or was made of; none where it was made of the whole stream."""
        return self.spaces.of(self.new[node].meta.get("val")) or self._behind(node)

    def _behind(self, node: fx.Node) -> Space | None:
        """Of the rows that a call's operands were made of, those of the last selection."""
        if node in self.ended or node.target is ops.whole or not self.ended.isdisjoint(node.all_input_nodes):
            self.ended.add(node)
            return None
        found = [self.behind.get(source) for source in node.all_input_nodes]
        return max(filter(None, found), key=lambda space: space.depth, default=None)

    # --- the three repairs ------------------------------------------------------------------

    def _as_is(self, node: fx.Node) -> fx.Node | None:
        args, kwargs = self._mapped(node)
        value = self._type_of(node, self.literals.without_wildcards(node, args), kwargs)
        return None if value is None else self._place(node, args, kwargs, value)

    def _literals(self, node: fx.Node) -> fx.Node | None:
        args, kwargs = self._mapped(node)
        fitted = self.literals.fit(node, args, kwargs)
        if fitted is None:
            return None
        self.repairs.literals += fitted.literals
        return self._place(node, fitted.args, kwargs, fitted.value)

    def _operands(self, node: fx.Node, space: Space) -> fx.Node | None:
        """Gather operands that still have the original length along the axes where they do."""
        args, kwargs = self._mapped(node)
        foreign = [
            source
            for source in node.all_input_nodes
            if self._is_foreign(source, space) and of_these_images(node, source, space)
        ]
        for source in foreign:
            for dims in self.tables.axes(node, source):
                swap = {self.new[source]: self.tables.take(node, source, dims, space)}
                new_args, new_kwargs = _swapped((args, kwargs), swap)
                value = self._type_of(node, new_args, new_kwargs)
                if value is not None:
                    self.repairs.gathered.append(source.name)
                    return self._place(node, new_args, new_kwargs, value)
        return None

    def _end_region(self, node: fx.Node, reason: str, made: fx.Node | None = None) -> fx.Node:
        """Give the node, and so all that follows it, the whole stream again."""
        if made is not None:
            self.graph.erase_node(made)
        self.given.pop(node, None)
        self.ended.add(node)
        self.repairs.axes.pop(node.name, None)
        self.repairs.region_ends.append(f"{reason}: {place(node)}")
        return self._copy(node, self.full)

    def full(self, node: fx.Node) -> fx.Node:
        """The full-length version of an old node's value."""
        made = self.new[node]
        space = self.spaces.of(made.meta.get("val"))
        if node in self.whole:
            return self.whole[node]
        if space is None and (node in self.numbers.data or self.behind.get(node) is None):
            return made
        own = (ops.gather, ops.fuse) if self.restore == "copy" else _MOVES  # before anything has become of it
        source = space.source if space and node.target in own else None
        if source is not None and arguments.operand(node, "x") is source:
            result = self.full(source)
        elif space and (node.name in self.states or node.target is ops.pool):
            result = self._way_back(node, made, space)
        elif self.leaving and node.name in self.cores:
            raise PolicyError(
                "the model returns what an attention makes of all tokens, such as its map, and this one has "
                "only those that are left",
                where=place(node),
                remedy="let the model not return it (output_attentions=False), or prune behind that block",
            )
        else:
            result = self._copy(node, self.full, suffix="_full")
        self.whole[node] = result
        return result

    def _way_back(self, node: fx.Node, made: fx.Node, space: Space) -> fx.Node:
        """A state, made whole: up one space at a time, so that only the last step writes the full length."""
        assert space.source is not None
        groups = self._call, (self.prefix, self.suffix), self.token_dim
        if self.restore == "copy":
            args: tuple[Any, ...] = (made, space.groups(*groups), None, None, self.token_dim)
            return self._step_back(node, ops.share, args, node.meta["val"])
        base, rows = self.new[space.source], space.selection
        if self.restore == "share":
            args = (made, space.group(*groups), base, space.start, self.token_dim)
            back = self._step_back(node, ops.share, args, base.meta["val"])
        else:
            if space.source in self.whole:  # all the way at once
                base, rows = self.full(space.source), space.origin(self._call)
            args = (base, made, rows, self.token_dim)
            args = args if space.valid is None else (*args, space.valid)
            back = self._step_back(node, ops.scatter, args, base.meta["val"])
        above = self.spaces.of(back.meta["val"])
        return back if above is None else self._way_back(node, back, above)

    def _step_back(self, node: fx.Node, function: Callable[..., Any], args: Any, value: Any) -> fx.Node:
        """A call that yields an old node's value with more rows than were left of it."""
        self.repairs.scatters += 1
        name = f"{node.name}_{'full' if self.spaces.of(value) is None else 'back'}"
        made = self.graph.create_node("call_function", function, args, {}, name=name)
        made.meta = {**node.meta, "val": value}
        return made

    def _type_of(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        return self.calls.type_of(self._given(node).target, args, kwargs, node.meta.get("val"))

    def _place(self, node: fx.Node, args: Any, kwargs: Any, value: Any) -> fx.Node:
        """Put the call into the new graph with the type that it was found to have."""
        target = self._given(node).target
        made = self.graph.create_node("call_function", target, args, kwargs, name=node.name)
        made.meta = {**node.meta, "val": value}
        return made

    def _call(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        name: str,
        kwargs: dict[str, Any] | None = None,
    ) -> fx.Node:
        node = self.graph.create_node("call_function", function, args, kwargs or {}, name=name)
        values = fx.map_arg((node.args, node.kwargs), lambda source: source.meta["val"])
        node.meta["val"], _ = compat.evaluate(self.mode, function, *values)
        return node

    # --- operands ---------------------------------------------------------------------------

    def _is_foreign(self, source: fx.Node, space: Space) -> bool:
        """A tensor operand that is not in the deepest space of its call."""
        value = self.new[source].meta.get("val")
        return isinstance(value, torch.Tensor) and self.spaces.of(value) is not space

    # --- small helpers ----------------------------------------------------------------------

    def _mapped(self, node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = self._given(node)
        args, kwargs = fx.map_arg((given.args, given.kwargs), lambda source: self.new.get(source, source))
        return args, kwargs

    def _given(self, node: fx.Node) -> Given:
        """The call with its numbers at the count that is left."""
        return self.given.get(node) or Given(node.target, node.args, node.kwargs)

    def _copy(self, node: fx.Node, mapping: Callable[[fx.Node], fx.Node], suffix: str = "") -> fx.Node:
        """The old node with its inputs mapped and its recorded type."""
        sources = {source: mapping(source) for source in node.all_input_nodes}
        given = Given(node.target, node.args, node.kwargs) if suffix else self._given(node)
        args, kwargs = fx.map_arg((given.args, given.kwargs), lambda source: sources.get(source, source))
        made = self.graph.create_node(
            node.op, given.target, args, kwargs, name=node.name + suffix, type_expr=node.type
        )
        made.meta = dict(node.meta)
        return made

    def _space_of(self, node: fx.Node) -> Space:
        """The rows of the selection that a node of the old graph moves or counts rows by."""
        return self.spaces.of_selection(self.new[arguments.operand(node, "index")])


def _swapped(args: Any, swap: Mapping[fx.Node, fx.Node]) -> Any:
    return fx.map_arg(args, lambda source: swap.get(source, source))


def _brief(rows: Sequence[int]) -> str:
    return f"{list(rows)}" if len(rows) <= 4 else f"{rows[0]}..{rows[-1]}"
