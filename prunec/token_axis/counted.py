"""Numbers of the graph that follow the token count, at the count that is left.

    div(sum, 197)                    ->  div(sum, n)             the number of rows that go on
    sdpa(q, k, v, scale=0.66)        ->  scale = 0.125 log(n)
    full([197], 1 / 197) @ x         ->  full([n], 1 / n) @ x

Which numbers those are is found before (see counts.py) and stands in the `meta` of their nodes. Here each is
computed from the rows that the call at hand works on: those of its operands, or, where these have no token
axis any more (a sum), those that they were made of. Numbers of the whole stream stay. Where images keep
different numbers of tokens, each image has its own, and the number becomes a tensor with one for each.

A table whose rows differ says where a token was, not how many there are: it is gathered (see tables.py).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx

from prunec import compat, ops
from prunec.errors import PolicyError, RecognitionError
from prunec.ir.graph import ancestors, data_inputs, is_size, is_tensor, place, reachable
from prunec.ir.sizes import SizeNodes, at, with_sizes
from prunec.token_axis.padding import images_of
from prunec.token_axis.selected import Space
from prunec.token_axis.solve import TOKENS

Where = tuple[int | str, ...]  # of an argument: place or keyword, elements of lists; () is the node's value

_META, _POSITION = "follows", "position"
_REMEDY = (
    "write the line with the number of tokens as n, n - 1, 1 / n, n ** 0.5 or log(n), or as a mean; or "
    "choose sites behind it"
)


@dataclass(frozen=True)
class Follows:
    """How a number follows the token count."""

    value: sympy.Expr | None  # in TOKENS; None: it does, or may, and nobody knows how
    recorded: float
    reason: str = ""
    shape: tuple[sympy.Expr, ...] = ()  # of a value that is one number throughout


@dataclass(frozen=True)
class Given:
    """A call with its numbers at the count that is left: old nodes, and new ones for those."""

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def follows(node: fx.Node) -> Mapping[Where, Follows]:
    """The numbers of a call that follow the token count."""
    found: Mapping[Where, Follows] = node.meta.get(_META, {})
    return found


def operands_that_follow(node: fx.Node) -> dict[Where, Follows]:
    """Those of a call that are operands, and sizes of what is made of sizes alone."""
    sizes = set(compat.symbolic_positions(node.target, node.args)) if data_inputs(node) else ()
    return {where: how for where, how in follows(node).items() if where and where not in sizes}


def note(node: fx.Node, where: Where, how: Follows) -> None:
    """Write down that a number of a call follows the token count."""
    node.meta[_META] = {**follows(node), where: how}


def note_position(node: fx.Node) -> None:
    """Write down that a value tells where each token was."""
    node.meta[_POSITION] = True


def is_position(node: fx.Node) -> bool:
    """Whether a value was found to tell where each token was."""
    return bool(node.meta.get(_POSITION))


class Numbers:
    """What the rewriting of one graph has to know about numbers that follow its token count."""

    def __init__(
        self,
        graph: fx.Graph,
        lengths: tuple[int, int],
        new: Mapping[fx.Node, fx.Node],
        behind: Mapping[fx.Node, Space | None],
        sizes: SizeNodes,
        call: Callable[..., fx.Node],  # (function, arguments, name, keywords) -> a new, typed node
    ) -> None:
        self.tokens, self.spare = lengths  # of the stream, and how many rows fewer a table may have
        self.new, self.behind = new, behind  # by old nodes: the new ones, and the rows that they are made of
        self.sizes, self.call = sizes, call
        self.data = reachable(node for node in graph.nodes if node.op == "placeholder")
        self.changing: dict[fx.Node, bool] = {}
        self.constant: dict[fx.Node, bool] = {}
        self.made: dict[Any, Any] = {}

    def at(self, node: fx.Node, space: Space) -> Given | None:
        """A call on rows of this space with its numbers as they are there; None if none follows."""
        if not operands_that_follow(node) and not any(map(self._changes, node.all_input_nodes)):
            return None
        return self._given(node, node, space)

    # --- which ----------------------------------------------------------------------------------

    def check_sizes(self, node: fx.Node) -> None:
        """Refuse a call that fits as it is, and would take another number of rows of a shorter stream."""
        for where in compat.symbolic_positions(node.target, node.args):
            how = follows(node).get(where)
            if how is not None and how.value is None and data_inputs(node):
                raise self._unknown(how, node)

    def _changes(self, node: fx.Node) -> bool:
        """Whether a value that no image enters follows the token count, other than by position."""
        if self.behind.get(node) is not None:
            return False  # its numbers are those of rows that are left
        if node not in self.changing:
            own = () in follows(node) or bool(operands_that_follow(node))
            inner = not self._is_constant(node) and any(map(self._changes, node.all_input_nodes))
            self.changing[node] = node not in self.data and (own or inner) and not self._is_position(node)
        return self.changing[node]

    def _is_constant(self, node: fx.Node) -> bool:
        """Whether neither a parameter nor an input enters a value: it is known as a whole (see counts.py)."""
        if node not in self.constant:
            known = compat.is_literal(node) or (node.op == "call_function" and not is_size(node))
            self.constant[node] = known and all(
                is_size(source) or self._is_constant(source) for source in node.all_input_nodes
            )
        return self.constant[node]

    def _is_position(self, node: fx.Node) -> bool:
        """Whether a value has rows for tokens that tell where these were, not what was learned."""
        sources = ancestors(node) if () not in follows(node) and self._has_rows(node) else set()
        learned = (one for one in sources if one.op == "get_attr" and not compat.is_literal(one))
        return any(map(is_position, sources)) and not any(map(self._has_rows, learned))

    def _has_rows(self, node: fx.Node) -> bool:
        value = node.meta.get("val")
        return isinstance(value, torch.Tensor) and any(
            isinstance(size, int) and size > 1 and self.tokens - self.spare <= size <= self.tokens
            for size in value.shape
        )

    # --- calls ----------------------------------------------------------------------------------

    def _given(self, node: fx.Node, consumer: fx.Node, space: Space) -> Given:
        """A call's arguments; `consumer` is the call on rows of the space that they are for."""
        changed = filter(self._changes, node.all_input_nodes)
        swap = {source: self._operand(source, consumer, space) for source in changed}
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: swap.get(source, source))
        sizes = {where: at(node.args, where) for where in compat.symbolic_positions(node.target, node.args)}
        args = with_sizes(args, sizes) if sizes else args  # solved for, if anything, whatever makes them
        differing = []
        for where, how in operands_that_follow(node).items():
            number = self._number(how, node, consumer, space)
            args, kwargs = _with(args, kwargs, where, number)
            if isinstance(number, fx.Node) and is_tensor(number):
                differing.append(where)
        target = compat.overload_with_tensors(node.target, differing) if differing else node.target
        if target is None:
            raise _differs(node, "this operator takes one number for all images")
        return Given(target, args, dict(kwargs))

    def _operand(self, source: fx.Node, consumer: fx.Node, space: Space) -> Any:
        """A value that no image enters, at the count that is left."""
        how = follows(source).get(())
        if how is None:
            return self._again(source, consumer, space)
        number = self._number(how, source, consumer, space)
        rows = any(TOKENS in size.free_symbols for size in how.shape)
        if space.valid is not None:
            if rows:
                raise _differs(source, "it has a row for each token")
            return number
        value = source.meta["val"]
        sizes = [
            self.sizes.node(expected.subs(TOKENS, space.symbol)) if TOKENS in expected.free_symbols else size
            for size, expected in zip(value.shape, how.shape, strict=True)
        ]
        args = (sizes, number, value.dtype, value.device)
        return self._once((source, space.symbol), ops.throughout, args, f"{source.name}_{space.number}")

    def _again(self, source: fx.Node, consumer: fx.Node, space: Space) -> fx.Node:
        """The calls that made a value of parameters, once more."""
        if self._has_rows(source):
            raise RecognitionError(
                "a parameter with a row for each token meets a number that follows how many there are: "
                "whether that is a position or a count cannot be seen",
                where=place(source),
                remedy="let the tokens meet the number, and not the parameter",
            )
        given = self._given(source, consumer, space)
        args, kwargs = fx.map_arg((given.args, given.kwargs), lambda old: self.new.get(old, old))
        return self.call(given.target, args, f"{source.name}_{space.number}", kwargs)

    # --- numbers --------------------------------------------------------------------------------

    def _number(self, how: Follows, node: fx.Node, consumer: fx.Node, space: Space) -> Any:
        """A number at the count of a space; a tensor with one for each image where these differ."""
        if how.value is None:
            raise self._unknown(how, node)
        number = self._expression(how.value, space)
        if space.valid is None:
            return number
        images, each = images_of(consumer, space)
        if images is None:
            raise _differs(node, "its result has no axis of images")
        rank = consumer.meta["val"].dim()
        args = (number, images, rank, each, _dtype(node, how.value))
        return self._once((space.symbol, *args), ops.for_images, args, f"{node.name}_each")

    def _unknown(self, how: Follows, node: fx.Node) -> RecognitionError:
        return RecognitionError(
            f"the number {how.recorded:g} {how.reason}; there are {self.tokens} tokens here, and fewer once "
            "they are pruned",
            where=place(node),
            remedy=_REMEDY,
        )

    def _expression(self, value: sympy.Expr, space: Space) -> Any:
        """An expression in the token count, of a space's rows or of each image's: a node, or a number."""
        if value.is_number:
            return int(value) if value.is_Integer else float(value)
        if value == TOKENS and space.valid is None:
            return self.sizes.node(space.symbol)
        if value == TOKENS:
            return self._once(space.symbol, ops.counts, (space.valid,), f"counts_{space.number}")
        parts = [self._expression(part, space) for part in value.args]
        if isinstance(value, sympy.log):
            return self._computed(ops.log, (parts[0],), space)
        function = {sympy.Add: operator.add, sympy.Mul: operator.mul, sympy.Pow: operator.pow}[value.func]
        first, *rest = parts
        for part in rest:
            first = self._computed(function, (first, part), space)
        return first

    def _computed(self, function: Callable[..., Any], args: tuple[Any, ...], space: Space) -> fx.Node:
        node = self._once((function, args), function, args, f"count_{space.number}")
        if space.valid is None:  # what the others compute with is a number too
            values = fx.map_arg(args, lambda operand: compat.hint(operand.meta["val"]))
            node.meta["val"] = function(*values)
        return node

    def _once(self, key: Any, function: Callable[..., Any], args: tuple[Any, ...], name: str) -> fx.Node:
        key = str(key)  # sizes do not hash
        if key not in self.made:
            self.made[key] = self.call(function, args, name, {})
        return self.made[key]  # type: ignore[no-any-return]


def _with(args: Any, kwargs: Any, where: Where, value: Any) -> tuple[Any, Any]:
    """Arguments with one of them, or an element of one, replaced."""

    def changed(container: Any, path: Where) -> Any:
        if not path:
            return value
        first, rest = path[0], path[1:]
        if isinstance(container, Mapping):
            return {**container, first: changed(container[first], rest)}
        items = list(container)
        items[first] = changed(items[first], rest)  # type: ignore[index]
        return tuple(items) if isinstance(container, tuple) else items

    return (args, changed(kwargs, where)) if isinstance(where[0], str) else (changed(args, where), kwargs)


def _dtype(node: fx.Node, value: sympy.Expr) -> torch.dtype:
    """In which precision a call is to have its number, so that the result has the one that it had."""
    values = [node.meta["val"], *(source.meta.get("val") for source in node.all_input_nodes)]
    kinds = [one.dtype for one in values if isinstance(one, torch.Tensor)]
    floating = [kind for kind in kinds if kind.is_floating_point]
    if floating:
        return floating[-1]
    return torch.int64 if value.is_polynomial() else torch.get_default_dtype()


def _differs(node: fx.Node, reason: str) -> PolicyError:
    return PolicyError(
        "a number of this line follows the number of tokens, and where images keep different numbers of them "
        f"each image needs its own: {reason}",
        where=place(node),
        remedy="use mode static, with a policy whose selector is top_k",
    )
