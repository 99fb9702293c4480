"""Which of a model's streams hold tokens of the image, and which stay dense.

    image --> encoder [B, N, C] --keys, values--> decoder [B, Q, C] --> boxes
              row i is made of patch i            row i is made of query i, a learned one

Queries attend to the image, but none of them stands for a part of it. A test run separates the two: with the
learned rows in reverse order queries come out in that order, tokens of an image do not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from prunec.dataflow.flow import DataFlow
from prunec.ir import graph
from prunec.probing.replay import Replay

#: Two runs agree if their difference is less than this share of the difference between rows.
_LEFT_OVER = 0.05
_ATTENTION = {"scaled_dot_product_attention", "softmax", "_softmax"}


def holds_image_tokens(
    module: fx.GraphModule, state: fx.Node, dim: int, inputs: Sequence[Any], flow: DataFlow
) -> bool:
    """Whether the rows of a state along `dim` come from the image, and not from learned queries.

    Queries made of learned rows and of places picked from the image are queries. Tokens that a model picks
    from the image by index are tokens.
    """
    rows = graph.shape(state)[dim]
    if not any(_axes(source, rows) for source in _learned(state, flow)):
        return True
    kinds = ((True, False), (False,), ())  # learned rows and numbers, numbers alone, nothing
    queries, picked, plain = (
        _Exchanged(module, flow, rows, each).value(state, inputs).float() for each in kinds
    )
    expected = plain.flip(dim)
    apart = float((expected - plain).abs().max()) * _LEFT_OVER
    return not _near(queries, expected, apart) or _near(picked, expected, apart)


def _near(found: Tensor, expected: Tensor, apart: float) -> bool:
    return float((found - expected).abs().max()) < apart


def _learned(state: fx.Node, flow: DataFlow) -> Iterator[fx.Node]:
    """Values between the image and a state that do not depend on the image."""
    for node in graph.ancestors(state) & flow.reached:
        yield from (source for source in graph.data_inputs(node) if source not in flow.reached)


def _axes(node: fx.Node, rows: int | torch.SymInt) -> list[int]:
    """The axes on which a value may have rows; a parameter with two of them is a convolution's kernel."""
    if not graph.is_tensor(node):
        return []
    axes = [axis for axis, size in enumerate(graph.shape(node)) if isinstance(size, int) and size == rows]
    return axes if node.op != "get_attr" or len(axes) == 1 else []


class _Exchanged(Replay):
    """Runs a graph in which the learned rows that meet image data are in reverse order."""

    def __init__(
        self, module: fx.GraphModule, flow: DataFlow, rows: int | torch.SymInt, floating: Collection[bool]
    ) -> None:
        super().__init__(module)
        self.flow, self.rows = flow, rows
        self.floating = floating  # reverse floating-point values, integers, or both

    def map_nodes_to_values(self, args: Any, n: fx.Node) -> Any:
        """The arguments of a node."""
        meets = n in self.flow.reached and _is_floating(n)

        def given(source: fx.Node) -> Any:
            value, number = self.env[source], not _is_floating(source)
            foreign = number or source not in self.flow.reached
            if not (meets and foreign and (not number) in self.floating):
                return value
            axes = _axes(source, self.rows)
            return value.flip(axes) if axes else value

        return fx.map_arg(args, given)


def _is_floating(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return not isinstance(value, Tensor) or value.is_floating_point()


# --- attention that stays dense ---------------------------------------------------------------


def left_alone(source: fx.Graph, cores: Collection[str], flow: DataFlow) -> Iterator[str]:
    """Notes for the user where another image, or another call on it, has attention that stays dense.

    Args:
        source: the graph.
        cores: the attention of the stream that is pruned, by name.
        flow: of the same graph.
    """
    mine = [flow.nodes[name] for name in cores]
    others = [node for node in source.nodes if graph.op(node) in _ATTENTION and node.name not in cores]
    again = _called_again(mine, others)
    if again:
        first = min(map(flow.order.__getitem__, mine)) < min(map(flow.order.__getitem__, again))
        times, part = 1 + _most(again), _taking_images(mine, again, flow.pixels)
        remedy = (
            f"transform(..., submodule={part!r}) prunes all calls" if part else "give all images as one batch"
        )
        yield (
            f"the blocks of this stream are called {times} times, and only the "
            f"{'first' if first else 'last'} call is pruned, the others stay dense: {remedy} "
            f"({graph.place(again[0])})"
        )
    images = [node for node in source.nodes if node is not flow.pixels and _is_like(node, flow.pixels)]
    for image in images:
        behind = graph.reachable([image]) - flow.reached
        alone = [node for node in others if node in behind and node not in again]
        if alone:
            yield (
                f"the image {image.name} has attention of its own, which stays dense "
                f"({graph.place(alone[0])}): only that of {flow.pixels.name} is pruned"
            )


def _is_like(node: fx.Node, pixels: fx.Node) -> bool:
    """Whether an input is an image of the same kind."""
    like = node.op == "placeholder" and graph.is_tensor(node)
    return like and node.meta["val"].dim() == pixels.meta["val"].dim() and _is_floating(node)


def _called_again(mine: Sequence[fx.Node], others: Sequence[fx.Node]) -> list[fx.Node]:
    """The attention of other calls of the same modules, if all of them are called again."""
    calls = {_stack(node)[-1][0] for node in mine if _stack(node)}
    paths = {graph.module_path(node) for node in mine} - {""}
    again = [node for node in others if graph.module_path(node) in paths and _stack(node)[-1][0] not in calls]
    return again if paths and paths <= {graph.module_path(node) for node in again} else []


def _stack(node: fx.Node) -> list[tuple[str, str]]:
    """The modules whose calls a node stands in, outermost first: the call's name and the module's path."""
    return [(call, path) for call, (path, _) in (node.meta.get("nn_module_stack") or {}).items()]


def _most(nodes: Sequence[fx.Node]) -> int:
    """The largest number of calls of one module."""
    paths = [graph.module_path(node) for node in nodes]
    return max(map(paths.count, paths))


def _taking_images(mine: Sequence[fx.Node], again: Sequence[fx.Node], pixels: fx.Node) -> str:
    """The outermost module that takes an image, holds all of this attention, and is called again."""
    takes = {path for user in pixels.users for _, path in _stack(user)}
    calls = {call for node in mine for call, _ in _stack(node)}
    around = [[path for call, path in _stack(node) if call not in calls] for node in again]
    common = [path for path in around[0] if path in takes and all(path in paths for paths in around)]
    return common[0] if common else ""
