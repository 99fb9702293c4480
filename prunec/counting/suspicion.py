"""Numbers that could follow the token count, by what they equal.

This decides whether a model is captured a second time, and what becomes of its numbers where it cannot be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import fx

from prunec import compat
from prunec.counting.comparison import constants, numbers_of, only_moves
from prunec.ir import graph
from prunec.ir.program import Recognised
from prunec.ir.sizes import at
from prunec.token_axis.counted import Where

#: Numbers that stand in any model: halves and squares, and what keeps a quotient finite. Forms of a width are
#: not among them: log(n) / log(197) / sqrt(d), with as many tokens as in training, equals 1 / sqrt(d).
_COMMON = (0.0, 0.5, 2.0)
_SMALL, _LARGE = 1e-4, 1e9
#: How many numbers of a tensor that the code wrote down are looked at; larger ones are tables.
_FEW = 64
#: Places that are the same at any length: the first, the second, the last, and the end.
_PLACES = (-1, 0, 1)


class Suspicion:
    """Looks at the numbers of one graph."""

    def __init__(self, module: fx.GraphModule, dense: Recognised) -> None:
        self.graph = module.graph
        tokens, ends = dense.anatomy.tokens, dense.anatomy.prefix + dense.anatomy.suffix
        self.lengths = range(tokens - ends, tokens + 1)
        self.counts = {form for length in range(tokens - ends - 1, tokens + 2) for form in _forms(length)}
        self.plain = {form for length in {tokens, tokens - ends} for form in (length, 1 / length)}
        self.constants = constants(module)
        names = graph.by_name(module.graph)
        self.stream = graph.reachable(names[name] for name in dense.anatomy.states if name in names)

    def any(self) -> bool:
        """Whether any number of the graph could follow the token count."""
        return any(map(self.may_follow, self.graph.nodes))

    def may_follow(self, node: fx.Node) -> bool:
        """Whether any number of a node could follow the token count in any way."""
        found = any(self._is_count(number) or not _is_common(number) for _, number in self._numbers(node))
        return found or self._takes_rows(node)

    def _takes_rows(self, node: fx.Node) -> bool:
        """Whether a call on the stream says how many of something it takes, as topk does."""
        if node not in self.stream or only_moves(node):
            return False
        places = compat.symbolic_positions(node.target, node.args)
        sizes = [at(node.args, where) for where in places]
        return any(isinstance(size, int) and size not in _PLACES and size < _LARGE for size in sizes)

    def by_value(self, node: fx.Node, *, plain: bool = False) -> Iterator[tuple[Where, float]]:
        """The numbers of a node that equal a form of the token count, and no width that it sees.

        `plain`: only the count itself, with or without protected tokens, and one over it.
        """
        numbers = [*self._numbers(node)]
        if node in self.constants:  # one number throughout, or nothing that could be a count
            numbers = list({number: ((), number) for where, number in numbers if not where}.values())
            numbers = numbers if len(numbers) == 1 else []
        for where, number in numbers:
            if self._is_count(number, plain=plain) and not self._is_width(node, number):
                yield where, number

    def _numbers(self, node: fx.Node) -> Iterator[tuple[Where, float]]:
        """Those that are values: neither sizes, nor numbers of dimensions."""
        if node in self.constants:
            value = self.constants[node]
            if isinstance(value, torch.Tensor) and 0 < value.numel() <= _FEW:
                yield from (((), number) for number in value.flatten().tolist())
        if node.op != "call_function" or not compat.is_aten(node.target):
            return
        whole = set(compat.whole_numbers(node.target, node.args)) if node not in self.constants else set()
        yield from ((where, number) for where, number in numbers_of(node) if where not in whole)

    def _is_count(self, number: float, *, plain: bool = False) -> bool:
        among = self.plain if plain else self.counts
        return any(math.isclose(abs(number), count, rel_tol=1e-6) for count in among)

    def _is_width(self, node: fx.Node, number: float) -> bool:
        """Whether a number is a form of a size that a call sees, other than the token count."""
        return any(
            math.isclose(abs(number), form, rel_tol=1e-6)
            for source in (node, *node.all_input_nodes)
            for leaf in compat.tree_leaves(source.meta.get("val"))
            if isinstance(leaf, torch.Tensor)
            for size in leaf.shape
            if isinstance(size, int) and size > 1 and size not in self.lengths
            for form in (*_forms(size), size**-0.25)
        )


def _forms(size: int) -> tuple[float, ...]:
    return (size, 1 / size, size**0.5, size**-0.5, math.log(size), math.log2(size)) if size > 1 else ()


def _is_common(number: float) -> bool:
    return abs(number) in _COMMON or abs(number) <= _SMALL or not abs(number) < _LARGE
