"""Writes typed calls into a graph: each new node knows what it yields at the original token count."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from prunec.compat import FakeMode, evaluate, fake_like, fake_mode_of


class Writer:
    """One graph, and the place in it where the next call goes."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module, self.graph = module, module.graph
        self.mode: FakeMode = fake_mode_of(module.graph)
        self.after: fx.Node | None = None  # the next call comes behind this node, and behind its operands
        self.number = 0  # of the site that is written, for names

    def call(
        self, name: str, function: Callable[..., Any], args: tuple[Any, ...], value: Any = None
    ) -> fx.Node:
        """A call; `value` is its type where running it on types would not tell."""
        order = {node: place for place, node in enumerate(self.graph.nodes)}
        before = [operand for operand in (self.after, *args) if isinstance(operand, fx.Node)]
        with self.graph.inserting_after(max(before, key=order.__getitem__)):
            made = self.graph.create_node("call_function", function, args, {}, name=f"{name}_{self.number}")
        if value is None:
            values = fx.map_arg(args, lambda operand: operand.meta["val"])
            value, _ = evaluate(self.mode, function, values, {})
        made.meta["val"] = value
        self.after = made
        return made

    def two(self, pair: fx.Node, first: str, second: str) -> tuple[fx.Node, fx.Node]:
        """The elements of a pair."""
        one = self.call(first, operator.getitem, (pair, 0))
        return one, self.call(second, operator.getitem, (pair, 1))

    def parameter(self, name: str, value: torch.Tensor) -> fx.Node:
        """A parameter or buffer of the site that is written."""
        first = next(node for node in self.graph.nodes if node.op != "placeholder")
        with self.graph.inserting_before(first):
            node = self.graph.get_attr(f"prunec.site_{self.number}.{name}")
        node.meta["val"] = fake_like(self.mode, value.shape, value.dtype, value.device)
        return node

    def like(self, value: torch.Tensor, rows: int, dtype: torch.dtype) -> torch.Tensor:
        """The type of one number for each row of a stream: [B, T]."""
        value = value.movedim(rows, 1)
        return fake_like(self.mode, value.shape[:2], dtype, value.device)

    def let_read(self, users: list[fx.Node], old: fx.Node, new: fx.Node) -> None:
        """Let these users of one node read another."""
        for user in users:
            user.replace_input_with(old, new)
