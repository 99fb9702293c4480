"""One graph beside the graphs of the same code at other token counts, number by number."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

import sympy
import torch
from torch import fx

from prunec import compat
from prunec.counting.rerun import is_call, is_of_batch
from prunec.ir import graph
from prunec.ir.sizes import at
from prunec.ir.weights import value_at
from prunec.token_axis.counted import Follows, Where
from prunec.token_axis.solve import solve

#: How far a number that PyTorch has computed may be from the expression that it is taken for.
_ROUNDING = 2e-6

_UNSOLVED = "follows the number of tokens, but in no form that prunec knows"

#: What a value is that has another row for each token: no number that follows how many there are.
POSITION: Final[Mapping[Where, Follows]] = {(): Follows(None, 0.0, "depends on where a token was")}


class Comparison:
    """Finds which numbers of a graph are others at other token counts."""

    def __init__(self, module: fx.GraphModule, tokens: int, ends: int) -> None:
        self.module, self.tokens, self.shifts = module, [tokens], range(-ends - 1, 2)
        self.constants = constants(module)  # what neither an input nor a parameter enters
        self.twins: list[dict[fx.Node, fx.Node]] = []
        self.others: list[dict[fx.Node, Any]] = []
        self.solved: dict[Any, sympy.Expr | None] = {}

    def add(self, module: fx.GraphModule, tokens: int) -> None:
        """Lay another graph beside it."""
        self.tokens.append(tokens)
        self.twins.append(aligned(self.module.graph, module.graph))
        self.others.append(constants(module))

    def differs(self) -> bool:
        """Whether any number is another one in another graph."""
        return any(self.of(node) not in ({}, None, POSITION) for node in self.module.graph.nodes)

    def of(self, node: fx.Node) -> Mapping[Where, Follows] | None:
        """What follows the token count in a node, POSITION included; None where that is unknown."""
        return self.whole(node) if node in self.constants else self.numbers(node)

    def numbers(self, node: fx.Node) -> Mapping[Where, Follows] | None:
        """The numbers of a call that follow the token count; None where that is unknown.

        Sizes are left out where types tell what becomes of them (see literals.py): they do not where a call
        makes its result of sizes alone, or takes another number of rows in a form that is not known.
        """
        twins = [twin[node] for twin in self.twins if node in twin]
        if len(twins) < len(self.tokens) - 1 or not twins:
            return None
        mine, others = dict(numbers_of(node)), [dict(numbers_of(twin)) for twin in twins]
        sizes = set(compat.symbolic_positions(node.target, node.args))
        found = {}
        for where, number in mine.items():
            values = [number, *(other.get(where, number) for other in others)]
            if any(value != number for value in values):
                found[where] = self._solved(values, number)
        made = _is_operand(node) if graph.is_size(node) else not graph.data_inputs(node)
        return {
            where: how
            for where, how in found.items()
            if (where not in sizes and not graph.is_size(node))
            or made
            or (how.value is None and not only_moves(node))
        }

    def whole(self, node: fx.Node) -> Mapping[Where, Follows] | None:
        """The same of a value that is the same number throughout."""
        twins = [twin[node] for twin in self.twins if node in twin]
        if len(twins) < len(self.tokens) - 1 or not twins:
            return None
        values = [self.constants[node]]
        for twin, known in zip(twins, self.others, strict=True):
            if twin not in known:
                return None
            values.append(known[twin])
        if not all(isinstance(value, torch.Tensor) and value.numel() for value in values):
            return self._solved_scalar(values)
        first = values[0]
        if all(value.shape == first.shape and torch.equal(value, first) for value in values):
            return {}
        rows = any(value.shape != first.shape for value in values)
        if first.is_complex() or any((value != value.flatten()[0]).any() for value in values):
            return POSITION if rows else {(): Follows(None, float("nan"), _UNSOLVED)}
        numbers = [value.flatten()[0].item() for value in values]
        if all(number == numbers[0] for number in numbers):
            return {}  # ones: as many as there are tokens, but not what that number is
        return {(): self._solved(numbers, numbers[0], tuple(value.shape for value in values))}

    def _solved_scalar(self, values: list[Any]) -> Mapping[Where, Follows]:
        if all(isinstance(value, int | float) for value in values) and any(v != values[0] for v in values):
            return {(): self._solved(values, values[0])}
        return {}

    def _solved(self, values: list[float], number: float, shapes: tuple[torch.Size, ...] = ()) -> Follows:
        exact = all(isinstance(value, int) for value in values)
        found = self._expression(values, 1e-9) or (None if exact else self._expression(values, _ROUNDING))
        sizes = [self._expression(list(lengths), 0.0) for lengths in zip(*shapes, strict=True)]
        if found is None or any(size is None for size in sizes):
            return Follows(None, number, _UNSOLVED)
        return Follows(found, number, shape=tuple(sizes))

    def _expression(self, values: list[float], tolerance: float) -> sympy.Expr | None:
        if all(value == values[0] for value in values):
            return sympy.sympify(values[0])
        if len(values) < 3:
            return None
        key = (tuple(values), tolerance)
        if key not in self.solved:  # every block has the same
            points = list(zip(self.tokens, values, strict=True))
            self.solved[key] = solve(points, self.shifts, tolerance)
        return self.solved[key]


def _is_operand(size: fx.Node) -> bool:
    """Whether a call computes with a size, and does not only shape its result by it."""

    def computes(user: fx.Node) -> bool:
        places = compat.symbolic_positions(user.target, user.args)
        shaping = sum(at(user.args, where) is size for where in places)
        return shaping < sum(leaf is size for leaf in compat.tree_leaves((user.args, user.kwargs)))

    return any(_is_operand(user) if graph.is_size(user) else computes(user) for user in size.users)


def only_moves(node: fx.Node) -> bool:
    """Whether a call yields as many numbers as it gets."""
    given = [_numel(leaf) for source in graph.data_inputs(node) for leaf in _tensors(source)]
    return not given or max(given) in map(_numel, _tensors(node))


def _tensors(node: fx.Node) -> list[torch.Tensor]:
    leaves = compat.tree_leaves(node.meta.get("val"))
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _numel(tensor: torch.Tensor) -> int:
    return math.prod(compat.hint(size) for size in tensor.shape)


def numbers_of(node: fx.Node) -> Iterator[tuple[Where, float]]:
    """The numbers in a call's arguments, with their places."""
    yield from _numbers(node.args, ())
    yield from _numbers(node.kwargs, ())


def _numbers(value: Any, where: Where) -> Iterator[tuple[Where, float]]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield where, value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _numbers(item, (*where, name))
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            yield from _numbers(item, (*where, place))


def aligned(one: fx.Graph, other: fx.Graph) -> dict[fx.Node, fx.Node]:
    """The calls of two graphs that are the same call of the model's code, in order.

    What reads the batch is the same in all: where that is a number, the other graph has no such node.
    """
    mine, theirs = ([node for node in which.nodes if is_call(node)] for which in (one, other))
    batch = {node: node for node in one.nodes if is_of_batch(node)}
    names = [[str(node.target) for node in nodes] for nodes in (mine, theirs)]
    literals = [[node for node in which.nodes if compat.is_literal(node)] for which in (one, other)]
    pairs = dict(zip(*literals, strict=True)) if len(literals[0]) == len(literals[1]) else {}
    pairs |= batch
    if names[0] == names[1]:
        return pairs | dict(zip(mine, theirs, strict=True))
    first, second = (
        [(str(node.target), graph.source_line(node)) for node in nodes] for nodes in (mine, theirs)
    )
    matcher = difflib.SequenceMatcher(None, first, second, autojunk=False)
    for block in matcher.get_matching_blocks():
        pairs |= dict(zip(mine[block.a : block.a + block.size], theirs[block.b :], strict=False))
    return pairs


def constants(module: fx.GraphModule) -> dict[fx.Node, Any]:
    """The values of all nodes that no input and no parameter enters, at the example's batch."""
    found: dict[fx.Node, Any] = {}
    sizes: dict[fx.Node, int] = {}
    for node in module.graph.nodes:
        if compat.is_literal(node):
            found[node] = value_at(module, str(node.target))
        elif node.op != "call_function" or compat.is_random(node.target):
            continue
        elif graph.is_size(node) and not any(source in found for source in node.all_input_nodes):
            sizes[node] = compat.hint(node.meta["val"])
        elif all(source in found or source in sizes for source in node.all_input_nodes):
            known = {**sizes, **found}
            args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
            with torch.no_grad():
                value = node.target(*args, **kwargs)
            found[node] = torch.zeros_like(value) if compat.is_unset(node.target) else value
    return found
