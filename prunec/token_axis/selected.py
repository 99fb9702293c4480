"""The rows that selections leave: a symbol for their number, and which values have them.

select -> index [B, n1]     x[b, n1, c] is in space 1, and its axis 1 is a token axis
select -> index [B, n2]     of those, n2 are left: space 2 is deeper
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import fx

from prunec import compat, ops
from prunec.ir import arguments

Call = Callable[[Callable[..., Any], tuple[Any, ...], str], fx.Node]  # (function, arguments, name)


@dataclass(frozen=True)
class Stream:
    """The residual stream whose token axis is followed."""

    tokens: int
    prefix: int  # protected tokens in front
    suffix: int  # and at the end
    token_dim: int
    states: Collection[str]  # its values, by node
    cores: Collection[str] = ()  # attention over its tokens: fused calls and softmaxes


@dataclass
class Space:
    """The rows that one selection leaves: a symbol for their number and the way back to the original ones."""

    number: int  # in the order of the selections, for names
    symbol: sympy.Symbol
    selection: fx.Node  # select node in the new graph: rows of the parent stream, [B, n]
    parent: Space | None
    source: fx.Node | None = None  # old node: the stream before the gather
    before: fx.Node | None = None  # the same in the new graph
    start: fx.Node | None = None  # and what the gather made of it
    valid: fx.Node | None = None  # which rows count, where images differ in how many they keep: [B, n]
    nodes: dict[str, fx.Node] = field(default_factory=dict)  # made when first needed

    @property
    def depth(self) -> int:
        """How many selections lie behind."""
        return 1 if self.parent is None else 1 + self.parent.depth

    def origin(self, call: Call) -> fx.Node:
        """Original rows: the selection, composed with those before it; `call` makes nodes."""
        if self.parent is None:
            return self.selection
        if "origin" not in self.nodes:
            rows = (self.parent.origin(call), self.selection)
            self.nodes["origin"] = call(ops.compose, rows, f"origin_{self.number}")
        return self.nodes["origin"]

    def group(self, call: Call, ends: tuple[int, int], dim: int) -> fx.Node:
        """The place of what stands for each row of the parent stream: [B, T].

        Where merging has not said it, it is the most similar patch that goes on.
        """
        if "group" not in self.nodes:
            assert self.before is not None
            kept = arguments.chosen_from(self.selection) if self.valid is not None else None
            similar = call(ops.similarities, (self.before, None, dim), f"similar_{self.number}")
            pair = call(ops.nearest, (similar, self.selection, *ends, kept), f"nearest_{self.number}")
            partner = call(operator.getitem, (pair, 1), f"partner_{self.number}")
            assign = (partner, self.selection, kept)
            self.nodes["group"] = call(ops.assign, assign, f"group_{self.number}")
        return self.nodes["group"]

    def groups(self, call: Call, ends: tuple[int, int], dim: int) -> fx.Node:
        """The place of what stands for every original row, through all selections before."""
        if self.parent is None:
            return self.group(call, ends, dim)
        if "groups" not in self.nodes:
            rows = (self.group(call, ends, dim), self.parent.groups(call, ends, dim))
            self.nodes["groups"] = call(ops.compose, rows, f"groups_{self.number}")
        return self.nodes["groups"]


class Spaces(dict[sympy.Symbol, Space]):
    """All spaces of a graph, by their symbols."""

    def axes(self, value: Any) -> tuple[int, ...]:
        """Dimensions of a tensor (or of all tensors of a tuple) whose size holds a token symbol."""
        tensors = [leaf for leaf in compat.tree_leaves(value) if isinstance(leaf, torch.Tensor)]
        found = {
            dim
            for tensor in tensors
            for dim, size in enumerate(tensor.shape)
            if compat.expression(size).free_symbols & set(self)
        }
        return tuple(sorted(found))

    def of_selection(self, selection: fx.Node) -> Space:
        """The rows that a selection (a node of the new graph) leaves."""
        return next(space for space in self.values() if space.selection is selection)

    def of(self, value: Any) -> Space | None:
        """The deepest space whose symbol occurs in a value's shape."""
        found = [
            self[symbol]
            for leaf in compat.tree_leaves(value)
            for size in (leaf.shape if isinstance(leaf, torch.Tensor) else [leaf])
            if isinstance(size, torch.SymInt)
            for symbol in compat.expression(size).free_symbols & set(self)
        ]
        return max(found, key=lambda space: space.depth, default=None)

    def deepest(self, nodes: Sequence[fx.Node]) -> Space | None:
        """The deepest space of several values."""
        found = [space for node in nodes if (space := self.of(node.meta.get("val"))) is not None]
        return max(found, key=lambda space: space.depth, default=None)


def stand_in(tokens: int, taken: Collection[int]) -> int:
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
