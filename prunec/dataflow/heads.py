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
from prunec.probing.replay import Replay
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
    for axis, all_tokens in _layouts(node.meta["val"], anatomy):
        if _is_local(program, node, axis):
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


def _is_local(program: Recognised, node: fx.Node, axis: int) -> bool:
    """Whether the scores of a token change when, and only when, the token does."""
    anatomy = program.anatomy
    row = anatomy.prefix + anatomy.grid // 3
    state = graph.by_name(program.graph)[anatomy.states[-1]]
    changes = {state: lambda value: _with_another(value, anatomy.token_dim, row)}
    before, after = (
        Replay(program.module).value(node, program.interface.example, each).movedim(axis, -1)
        for each in (None, changes)
    )
    differs = (before != after).flatten(1, -2).any(dim=-1)  # [B, N or T]
    place = row if differs.shape[1] == anatomy.tokens else row - anatomy.prefix
    here = torch.zeros_like(differs)
    here[:, place] = True
    return bool((differs == here).all())


def _with_another(value: Tensor, dim: int, row: int) -> Tensor:
    """A state with one row changed, by other amounts in each channel: no norm takes that away."""
    changed = value.clone()
    channels = value.shape[-1]
    step = torch.linspace(-1, 1, channels, dtype=value.dtype, device=value.device).exp()
    changed.select(dim, row).add_(step)
    return changed
