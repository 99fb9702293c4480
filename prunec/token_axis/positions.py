"""Rows of the stream that a call reads by constant position, watched once for equal calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from prunec import compat
from prunec.ir.calls import CallTypes, signature
from prunec.ir.graph import is_getitem, is_size, operand
from prunec.ir.sizes import sizes_of
from prunec.probing.lengths import Lengths
from prunec.probing.probe import Probe
from prunec.probing.rows import RowRead, rows_apart, rows_picked
from prunec.structure import NoMatch
from prunec.token_axis.selected import Spaces, Stream


class Positions:
    """Finds out which token rows calls pick that shorten or drop the token axis."""

    def __init__(
        self, stream: Stream, spaces: Spaces, calls: CallTypes, new: Mapping[fx.Node, fx.Node]
    ) -> None:
        self.stream, self.spaces, self.calls = stream, spaces, calls
        self.new = new  # old node -> new node
        self.known: dict[Any, RowRead | None] = {}

    def read(self, node: fx.Node, arguments: tuple[Any, Any], made: fx.Node) -> RowRead | None:
        """What a node of the old graph reads by position, if it does.

        Args:
            node: the call, or what picks one of its results.
            arguments: those of the call in the new graph, positional and by keyword.
            made: the node in the new graph.
        """
        call = call_of(node)
        tensors = [source for source in call.all_input_nodes if not is_size(source)]
        if len(tensors) != 1 or not compat.is_aten(call.target):
            return None
        element = node.args[1] if call is not node else None
        assert element is None or isinstance(element, int)
        key = (call.target, element, *map(signature, arguments))
        if key not in self.known:
            self.known[key] = self._find(call, element, tensors[0], made)
        found = self.known[key]
        return None if found is None else RowRead(node.name, found.front, found.back, found.rows)

    def _find(self, call: fx.Node, element: int | None, source: fx.Node, made: fx.Node) -> RowRead | None:
        value = self.new[source].meta["val"]
        axes = self.spaces.axes(value) if isinstance(value, torch.Tensor) else ()
        outputs = [leaf for leaf in compat.tree_leaves(made.meta["val"]) if isinstance(leaf, torch.Tensor)]
        sizes = {size for leaf in outputs for size in sizes_of(leaf)}
        if len(axes) != 1 or sizes_of(value)[axes[0]] in sizes:
            return None
        length = self.calls.at_full_length(sizes_of(value)[axes[0]])
        if not length.is_Integer:  # tokens of all images on one axis: no row of one image is picked there
            return None
        picked = rows_picked(Probe(call, Lengths({})), source, axes[0], element)
        if isinstance(picked, NoMatch):
            return None
        follows = any(self.spaces.axes(leaf) for leaf in outputs)
        stream = self.stream
        return rows_apart(call.name, picked, int(length), stream.tokens, stream.prefix, follows=follows)


def call_of(node: fx.Node) -> fx.Node:
    """The call that makes a value: x.split([1, 20], 1) for its first result."""
    return operand(node, 0) if is_getitem(node) else node
