"""Operands that are indexed by token: along which axes, and their rows for the tokens that are left.

q[b, n, d] * cos[197, d]          ->  q * take(cos, index)            every row of every token
scores[b, h, n, n] + bias[h, 197, 197]  ->  scores + take(take(bias, index), index)   two axes
x[b, n, d] + positions[196, d]    the class token has no row: the index shifts by the prefix
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from prunec import compat, ops
from prunec.token_axis.selected import Call, Space


class Tables:
    """Gathers tables by the rows of a space; each table once for each."""

    def __init__(
        self,
        tokens: int,
        prefix: int,
        suffix: int,
        spare: int,
        full: Callable[[fx.Node], fx.Node],
        call: Call,
    ) -> None:
        self.tokens, self.prefix, self.suffix = tokens, prefix, suffix
        self.spare = spare  # how many rows fewer than tokens a table may have
        self.full = full  # old node -> its full-length version in the new graph
        self.call = call
        self.taken: dict[Any, fx.Node] = {}

    def axes(self, node: fx.Node, operand: fx.Node) -> list[tuple[int, ...]]:
        """Axes of an operand that may be token axes by their length: all first, then each, then pairs."""
        rank, sizes = _padded(node, operand)
        fits = [
            dim - rank
            for dim, size in enumerate(sizes)
            if isinstance(size, int) and self.tokens - self.spare <= size <= self.tokens and size > 1
        ]
        choices = [tuple(fits), *((dim,) for dim in fits), *itertools.combinations(fits, 2)]
        return list(dict.fromkeys(choices)) if fits else []

    def take(self, node: fx.Node, operand: fx.Node, dims: tuple[int, ...], space: Space) -> fx.Node:
        """The operand with every axis in `dims` gathered by the space's original rows."""
        rank, sizes = _padded(node, operand)
        table = self.full(operand)
        batch_dim = _batch_dim(node, rank)
        key = (table, dims, rank, batch_dim, space.symbol)
        if key in self.taken:
            return self.taken[key]
        for _ in range(rank - table.meta["val"].dim()):
            table = self.call(torch.ops.aten.unsqueeze.default, (table, 0), f"{operand.name}_row")
        for dim in dims:
            args = (table, space.origin(self.call), dim + rank, batch_dim, *self.missing(sizes[dim]))
            table = self.call(ops.take, args, f"{operand.name}_taken")
        self.taken[key] = table
        return table

    def missing(self, size: int) -> tuple[int, int]:
        """How many protected rows, in front and at the end, an axis that counts so many tokens has not."""
        first = min(self.tokens - size, self.prefix)
        return first, self.tokens - size - first


def of_these_images(node: fx.Node, operand: fx.Node, space: Space) -> bool:
    """Whether an operand is the same for all images, or has one entry for each of the selection's."""
    rank, sizes = _padded(node, operand)
    entries = sizes[_batch_dim(node, rank)] if sizes else 1
    batch = space.selection.meta["val"].shape[0]
    return isinstance(entries, int) or compat.expression(entries) == compat.expression(batch)


def _padded(node: fx.Node, operand: fx.Node) -> tuple[int, list[Any]]:
    """The operand's shape, broadcast on the left to the rank of the result."""
    sizes = list(operand.meta["val"].shape)
    output = node.meta["val"]
    rank = max(len(sizes), output.dim() if isinstance(output, torch.Tensor) else 0)
    if node.target in ops.SCORES:
        rank = max(rank, 4)  # a bias of an attention score broadcasts against [B, h, T, T]
    return rank, [1] * (rank - len(sizes)) + sizes


def _batch_dim(node: fx.Node, rank: int) -> int:
    """Where the batch stands in a result of this rank; in front unless a symbol says otherwise."""
    output = node.meta["val"]
    if isinstance(output, torch.Tensor) and output.dim() == rank:
        for dim, size in enumerate(output.shape):
            if compat.expression(size).is_Symbol:
                return dim
    return 0
