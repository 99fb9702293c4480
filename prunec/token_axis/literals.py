"""Calls whose sizes tracing burnt in, typed again with sizes that follow the token count.

    view(x: [b, n, 192], [b, 197, 3, 64])   ->  view(x, [b, n, 3, 64])

Which sizes are candidates is found in sizes.py, whether a call with them has a type in calls.py. A repair
that was found is used again for every equal call.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx

from prunec import compat
from prunec.ir.calls import CallTypes, signature
from prunec.ir.graph import is_size
from prunec.ir.sizes import (
    Position,
    SizeNodes,
    Substitution,
    at,
    same_stride,
    sizes_of,
    substitutions,
    with_sizes,
)
from prunec.probing.lengths import Lengths
from prunec.probing.probe import Probe
from prunec.probing.questions import keeps_order

_MAX_ATTEMPTS = 48


@dataclass(frozen=True)
class Fitted:
    """A call that has a type now: its arguments, what it yields, and how many literals were replaced."""

    args: tuple[Any, ...]
    value: Any
    literals: int


class Literals:
    """Finds sizes for calls; the arguments are nodes of the new graph, the node is the old one."""

    def __init__(self, calls: CallTypes, sizes: SizeNodes) -> None:
        self.calls, self.sizes = calls, sizes
        self.hints: dict[sympy.Symbol, int] = {}  # token count -> a length that stands in for it
        self.solved: dict[Any, Substitution] = {}

    def fit(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Fitted | None:
        """Replace sizes burnt in by tracing with expressions that give them back at the original length."""
        recorded = {where: _recorded(node, where) for where in compat.symbolic_positions(node.target, args)}
        if not recorded:
            return None
        known = (node.target, signature(args), signature(kwargs))
        shapes = [sizes_of(value) for value in _values(args, kwargs) if isinstance(value, torch.Tensor)]
        attempts = iter([self.solved[known]]) if known in self.solved else self._candidates(recorded, shapes)
        plain = self.without_wildcards(node, args)
        for substitution in itertools.islice(attempts, _MAX_ATTEMPTS):
            values = {where: self.sizes.node(size).meta["val"] for where, size in substitution.items()}
            value = self.calls.type_of(node.target, with_sizes(plain, values), kwargs, node.meta.get("val"))
            if value is not None and (known in self.solved or self._keeps_rows(node, shapes, value)):
                self.solved[known] = substitution
                burnt = {where: size for where, size in substitution.items() if at(args, where) != -1}
                nodes = {where: self.sizes.node(size) for where, size in burnt.items()}
                return Fitted(with_sizes(args, nodes), value, len(burnt))
        return None

    def without_wildcards(self, node: fx.Node, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Every -1 of a shape with its recorded size, or it may absorb a literal that no longer fits."""
        wild = [where for where in compat.symbolic_positions(node.target, args) if at(args, where) == -1]
        sizes = {where: _recorded(node, where) for where in wild}
        symbolic = {
            where: self.sizes.node(size).meta["val"] for where, size in sizes.items() if size.free_symbols
        }
        return with_sizes(args, {**sizes, **symbolic})

    def _candidates(
        self, recorded: Mapping[Position, sympy.Expr], shapes: Sequence[tuple[sympy.Expr, ...]]
    ) -> Iterator[Substitution]:
        found = substitutions(recorded, shapes, frozenset(self.hints), self.calls.at_full_length)
        return (substitution for substitution in found if all(map(self._is_length, substitution.values())))

    def _is_length(self, size: sympy.Expr) -> bool:
        """Whether an expression is positive at the stand-in lengths; n - 24 may be -1 there, a wildcard."""
        at_hints = size.subs(self.hints)
        return not at_hints.is_number or bool(at_hints > 0)

    def _keeps_rows(self, node: fx.Node, shapes: Sequence[tuple[sympy.Expr, ...]], value: Any) -> bool:
        """Whether a reshape with this result has its rows where they were; sizes alone cannot always tell."""
        if (
            len(shapes) != 1
            or not isinstance(value, torch.Tensor)
            or not keeps_order(Probe(node, Lengths({})))
        ):
            return True
        return all(same_stride(shapes[0], sizes_of(value), symbol) for symbol in self.hints)


def _recorded(node: fx.Node, where: Position) -> sympy.Expr:
    """The size that stands at an argument position, as it was at capture."""
    value = at(node.args, where)
    if isinstance(value, fx.Node):
        return compat.expression(value.meta["val"])
    output = node.meta["val"]
    wild = value == -1 and len(where) == 2 and isinstance(output, torch.Tensor)
    if wild and len(node.args[where[0]]) == output.dim():  # type: ignore[arg-type]
        return compat.expression(output.shape[where[1]])
    return sympy.Integer(value)


def _values(args: Any, kwargs: Any) -> list[Any]:
    """What the operands of a call yield, each once; sizes are left out."""
    operands: dict[fx.Node, None] = {}
    fx.map_arg((args, kwargs), lambda operand: operands.setdefault(operand))
    return [operand.meta.get("val") for operand in operands if not is_size(operand)]
