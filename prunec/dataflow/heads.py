"""Where a model has class scores of each token, which those of an early exit may replace.

last state -- norm -- linear -- [B, N, K] -- reshape -- upsample -- out
                                '-- scores: no parameter comes after them, and row i depends on token i alone
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from prunec.ir import graph
from prunec.ir.program import Recognised
from prunec.structure import Anatomy, NoMatch


@dataclass(frozen=True)
class ClassScores:
    """A value with class scores of each token."""

    node: str
    axis: int  # where the classes are
    classes: int
    all_tokens: bool  # whether protected tokens have some too


def class_scores(program: Recognised) -> ClassScores | NoMatch:
    """The class scores of a recognised program, or why there are none."""
    anatomy = program.anatomy
    names = graph.by_name(program.graph)
    state = names[anatomy.states[-1]]
    node = _last_learned(program.graph, state)
    if node is None:
        return _miss("no layer after the last block makes class scores", graph.output_node(program.graph))
    values = _Watching(program, anatomy)
    for axis, all_tokens in _layouts(node.meta["val"], anatomy):
        if values.is_local(node, axis):
            return ClassScores(node.name, axis, int(node.meta["val"].shape[axis]), all_tokens)
    sizes = list(node.meta["val"].shape[1:])
    return _miss(f"the head's last learned value {sizes} is not one vector for each token", node)


def _miss(reason: str, node: fx.Node) -> NoMatch:
    return NoMatch(reason, node.name, graph.place(node))


def _last_learned(target: fx.Graph, state: fx.Node) -> fx.Node | None:
    """The last product with a weight matrix, bias added; no parameter comes after it."""
    behind = graph.reachable([state])
    outputs = [node for node in graph.output_node(target).all_input_nodes if node in behind]
    node = next((node for node in outputs if node.meta["val"].is_floating_point()), state)
    found = None
    while node is not state:
        tensors = [source for source in node.all_input_nodes if graph.is_tensor(source)]
        inputs = [source for source in tensors if source in behind]
        weights = [source.meta["val"].dim() for source in tensors if source not in behind]
        if len(inputs) != 1:
            return None
        if weights and found is None:
            found = node
        if max(weights, default=0) > 1:
            return found
        if weights and graph.op(node) != "add":  # a norm or a scale, which makes no classes of channels
            return None
        node = inputs[0]
    return None


def _layouts(value: Any, anatomy: Anatomy) -> Iterator[tuple[int, bool]]:
    """Axes that may hold the classes, the last one first: the sizes of the others multiply to the tokens."""
    sizes = [size if isinstance(size, int) else None for size in value.shape]
    for axis in reversed(range(1, len(sizes))):
        rest = [size for place, size in enumerate(sizes[1:], 1) if place != axis]
        if rest and None not in rest and (sizes[axis] or 0) > 1:
            count = math.prod(size for size in rest if size is not None)
            if count in (anatomy.grid, anatomy.tokens):
                yield axis, count == anatomy.tokens


class _Watching(fx.Interpreter):
    """Runs the program, with one token of the last state changed or not."""

    def __init__(self, program: Recognised, anatomy: Anatomy) -> None:
        super().__init__(program.module, garbage_collect_values=False)
        self.program, self.anatomy = program, anatomy
        self.row: int | None = None

    def is_local(self, node: fx.Node, axis: int) -> bool:
        """Whether the scores of a token change when, and only when, the token does."""
        row = self.anatomy.prefix + self.anatomy.grid // 3
        before, after = (self._value(node, changed).movedim(axis, -1) for changed in (None, row))
        differs = (before != after).flatten(1, -2).any(dim=-1)  # [B, N or T]
        place = row if differs.shape[1] == self.anatomy.tokens else row - self.anatomy.prefix
        here = torch.zeros_like(differs)
        here[:, place] = True
        return bool((differs == here).all())

    def _value(self, node: fx.Node, row: int | None) -> Tensor:
        self.row = row
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            self.run(*self.program.interface.example)
        value = self.env[node]
        assert isinstance(value, Tensor)
        return value

    def run_node(self, n: fx.Node) -> Any:
        """The node's value, with one row of the last state changed."""
        value = super().run_node(n)
        if self.row is None or n.name != self.anatomy.states[-1]:
            return value
        changed = value.clone()
        row = changed.select(self.anatomy.token_dim, self.row)
        row += torch.linspace(
            -1, 1, row.shape[-1], dtype=row.dtype, device=row.device
        ).exp()  # which no norm undoes
        return changed
