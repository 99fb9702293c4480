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

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import fx

from prunec import compat, ops
from prunec.errors import PolicyError
from prunec.ir import arguments
from prunec.ir.calls import CallTypes, signature
from prunec.ir.graph import is_getitem, is_size, operand, place, with_graph
from prunec.ir.sizes import SizeNodes, sizes_of
from prunec.probing.lengths import Lengths
from prunec.probing.probe import Probe
from prunec.probing.rows import RowRead, rows_apart, rows_picked
from prunec.structure import NoMatch
from prunec.token_axis.counted import Given, Numbers
from prunec.token_axis.literals import Literals
from prunec.token_axis.padding import Padding
from prunec.token_axis.tables import Space, Tables, of_these_images

_MOVES = (ops.gather, ops.fuse, ops.fuse_each, ops.merge)

#: How many kept tokens one that was not kept is made of, and how fast their weight falls with the distance.
NEAREST, SHARPNESS = 20, 20.0


@dataclass
class Repairs:
    """What the rewriting did; counts are results."""

    literals: int = 0
    gathered: list[str] = field(default_factory=list)
    counted: list[str] = field(default_factory=list)  # calls with a number that follows the token count
    scatters: int = 0
    region_ends: list[str] = field(default_factory=list)
    reads: list[RowRead] = field(default_factory=list)
    axes: dict[str, tuple[int, ...]] = field(
        default_factory=dict
    )  # node -> its token axes (none: only its inputs)

    def counts(self) -> dict[str, int]:
        """The numbers that reports and tests read."""
        return {
            "literals": self.literals,
            "gathered": len(self.gathered),
            "scatters": self.scatters,
            "region_ends": len(self.region_ends),
            **({"counted": len(self.counted)} if self.counted else {}),
        }


class TokenAxis:
    """Rebuilds one graph, in which selections stand but nothing after them fits, into one that does."""

    def __init__(
        self,
        module: fx.GraphModule,
        *,
        tokens: int,
        prefix: int,
        suffix: int,
        token_dim: int,
        states: Sequence[str],
        cores: Collection[str] = (),
        preserve: bool = False,
        restore: str = "stale",
        probe: bool = False,
    ) -> None:
        self.module = module
        self.tokens, self.prefix, self.suffix, self.token_dim = tokens, prefix, suffix, token_dim
        self.states = set(states)
        self.cores = set(cores)  # attention over tokens: fused calls and softmaxes
        self.preserve = preserve  # tokens that are not kept take part in whatever is not attention
        self.restore = restore  # how they come back: as they were, or like what they were most like
        self.probe = probe  # only look: rows read by position are recorded, not repaired
        self.mode = compat.fake_mode_of(module.graph)
        self.calls = CallTypes(self.mode, tokens)
        self.graph = fx.Graph()
        self.sizes = SizeNodes(self.graph, self._call)
        self.new: dict[fx.Node, fx.Node] = {}
        self.whole: dict[fx.Node, fx.Node] = {}  # old node -> its full-length version
        self.spaces: dict[sympy.Symbol, Space] = {}
        self.repairs = Repairs()
        spare = tokens // 4 if probe else prefix + suffix
        self.tables = Tables(tokens, prefix, suffix, spare, self.full, self._call)
        self.literals = Literals(self.calls, self.sizes)
        self.rows: dict[Any, RowRead | None] = {}
        self.padding = Padding(self.cores, self._axes, self._sizes, self._call)
        self.given: dict[fx.Node, Given] = {}  # calls with their numbers at the count that is left
        self.behind: dict[fx.Node, Space | None] = {}  # old node -> the rows that it was made of
        counts = (tokens, spare)
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
        space = self._deepest(inputs)
        if node.target is ops.whole:
            return self.full(arguments.operand(node, "x"))
        if node.target is ops.valid_mask:
            return self._space_of_selection(node).valid  # type: ignore[return-value]
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
        self.repairs.axes[node.name] = self._axes(made.meta["val"])
        if node.target in _MOVES:
            self._space_of_selection(node).source = arguments.operand(node, "x")
        if node.target is ops.members:
            self._space_of_selection(node).group = made
        read = self._rows_read(node, made)
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
        hint = _hint(self.tokens, self.literals.hints.values())
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
        return self._space(self.new[node].meta.get("val")) or self._behind(node)

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
        space = self._space(made.meta.get("val"))
        if node in self.whole:
            return self.whole[node]
        if space is None and (node in self.numbers.data or self.behind.get(node) is None):
            return made
        source = space.source if space and node.target in (ops.gather, ops.fuse, ops.fuse_each) else None
        if source is not None and arguments.operand(node, "x") is source:
            result = self.full(source)
        elif space and (node.name in self.states or node.target is ops.merge):
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
        if space.group is not None:
            groups = space.groups(self._call)
            return self._step_back(node, ops.unmerge, (made, groups, self.token_dim), node.meta["val"])
        base, rows = self.new[space.source], space.selection
        nearest = self.restore == "nearest"
        if nearest or space.source in self.whole:  # all the way at once
            base, rows = self.full(space.source), space.origin(self._call)
        if nearest:
            ends, mixture = (self.prefix, self.suffix), (NEAREST, SHARPNESS)
            args: tuple[Any, ...] = (base, made, rows, ends, mixture, self.token_dim, space.valid)
            return self._step_back(node, ops.reconstruct, args, base.meta["val"])
        args = (base, made, rows, self.token_dim)
        args = args if space.valid is None else (*args, space.valid)
        back = self._step_back(node, ops.scatter, args, base.meta["val"])
        above = self._space(back.meta["val"])
        return back if above is None else self._way_back(node, back, above)

    def _step_back(self, node: fx.Node, function: Callable[..., Any], args: Any, value: Any) -> fx.Node:
        """A call that yields an old node's value with more rows than were left of it."""
        self.repairs.scatters += 1
        name = f"{node.name}_{'full' if self._space(value) is None else 'back'}"
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
        return isinstance(value, torch.Tensor) and self._space(value) is not space

    # --- rows read by position --------------------------------------------------------------

    def _rows_read(self, node: fx.Node, made: fx.Node) -> RowRead | None:
        """Which token rows a node that shortens or drops the token axis picks by constant position.

        Found by running the operator on numbered rows, four times: the same rows must come out each time.
        """
        call = operand(node, 0) if is_getitem(node) else node  # x.split([1, 20], 1)[0]
        element = node.args[1] if is_getitem(node) else None
        args, kwargs = self._mapped(call)
        tensors = [source for source in call.all_input_nodes if not is_size(source)]
        if len(tensors) != 1 or not compat.is_aten(call.target):
            return None
        key = (call.target, element, signature(args), signature(kwargs))
        if key not in self.rows:
            self.rows[key] = self._find_rows(node, call, tensors[0], made)
        found = self.rows[key]
        return None if found is None else RowRead(node.name, found.front, found.back, found.rows)

    def _find_rows(self, node: fx.Node, call: fx.Node, source: fx.Node, made: fx.Node) -> RowRead | None:
        value = self.new[source].meta["val"]
        axes = self._axes(value) if isinstance(value, torch.Tensor) else ()
        outputs = [leaf for leaf in compat.tree_leaves(made.meta["val"]) if isinstance(leaf, torch.Tensor)]
        if len(axes) != 1 or sizes_of(value)[axes[0]] in {
            size for leaf in outputs for size in sizes_of(leaf)
        }:
            return None
        length = self.calls.at_full_length(sizes_of(value)[axes[0]])
        if not length.is_Integer:  # tokens of all images on one axis: no row of one image is picked there
            return None
        element = node.args[1] if call is not node else None
        assert element is None or isinstance(element, int)
        probe = Probe(call, Lengths(dict.fromkeys(self.spaces, self.tokens)))
        picked = rows_picked(probe, source, axes[0], element)
        if isinstance(picked, NoMatch):
            return None
        follows = any(self._axes(leaf) for leaf in outputs)
        return rows_apart(node.name, picked, int(length), self.tokens, self.prefix, follows=follows)

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

    def _sizes(self) -> dict[sympy.Symbol, int]:
        """Numbers for the token counts, to run operators at."""
        return self.literals.hints

    def _axes(self, value: Any) -> tuple[int, ...]:
        """Dimensions of a tensor (or of all tensors of a tuple) whose size holds a token symbol."""
        tensors = [leaf for leaf in compat.tree_leaves(value) if isinstance(leaf, torch.Tensor)]
        found = {
            dim
            for tensor in tensors
            for dim, size in enumerate(tensor.shape)
            if compat.expression(size).free_symbols & set(self.spaces)
        }
        return tuple(sorted(found))

    def _space_of_selection(self, node: fx.Node) -> Space:
        selection = self.new[arguments.operand(node, "index")]
        return next(space for space in self.spaces.values() if space.selection is selection)

    def _space(self, value: Any) -> Space | None:
        """The deepest space whose symbol occurs in a value's shape."""
        found = [
            self.spaces[symbol]
            for leaf in compat.tree_leaves(value)
            for size in (leaf.shape if isinstance(leaf, torch.Tensor) else [leaf])
            if isinstance(size, torch.SymInt)
            for symbol in compat.expression(size).free_symbols & set(self.spaces)
        ]
        return max(found, key=lambda space: space.depth, default=None)

    def _deepest(self, nodes: Sequence[fx.Node]) -> Space | None:
        found = [space for node in nodes if (space := self._space(node.meta.get("val"))) is not None]
        return max(found, key=lambda space: space.depth, default=None)


def _swapped(args: Any, swap: Mapping[fx.Node, fx.Node]) -> Any:
    return fx.map_arg(args, lambda source: swap.get(source, source))


def _hint(tokens: int, taken: Collection[int]) -> int:
    """A stand-in length that no size is likely to equal: the primes from 5/8 of the stream upwards.

    It must differ from the stand-ins before it, for PyTorch takes equal hints for the same size. And it must
    be shorter than the stream while there are such primes, or a literal of the full length would seem to fit.
    """
    start = max(3, math.ceil(tokens * 0.62))
    candidates = itertools.chain(range(start, tokens), range(start - 1, 2, -1), itertools.count(tokens + 1))
    primes = (
        number for number in candidates if all(number % part for part in range(2, math.isqrt(number) + 1))
    )
    return next(prime for prime in primes if prime not in taken)


def _brief(rows: Sequence[int]) -> str:
    return f"{list(rows)}" if len(rows) <= 4 else f"{rows[0]}..{rows[-1]}"
