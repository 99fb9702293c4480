"""A whole graph run again with some values changed: what an image, or one row, makes a difference to.

A graph runs as it is, in the precision of its weights and at the lengths of its example; what is compared are
rows, by `changed_rows`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from prunec.compat import hint
from prunec.probing.numbers import seeded


class Replay(fx.Interpreter):
    """Runs a graph as far as one value needs it."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)

    def value(
        self,
        node: fx.Node,
        inputs: Sequence[Any],
        changes: Mapping[fx.Node, Callable[[Tensor], Tensor]] | None = None,
    ) -> Tensor:
        """A node's value for these inputs, with other values changed where they are made."""
        needed = _needed(node)
        self.args_iter = iter(inputs)
        self.env = {}
        with seeded():
            for each in node.graph.nodes:
                if each.op == "placeholder" or each in needed:
                    value = self.run_node(each)
                    change = changes.get(each) if changes else None
                    self.env[each] = value if change is None else change(value)
        found = self.env[node]
        assert isinstance(found, Tensor)
        return found


def _needed(node: fx.Node) -> set[fx.Node]:
    """The node, and all that it is computed from, sizes as well."""
    found, queue = {node}, [node]
    while queue:
        fresh = set(queue.pop().all_input_nodes) - found
        found |= fresh
        queue.extend(fresh)
    return found


def example_inputs(module: fx.GraphModule, pixels: fx.Node, seed: int = 0) -> list[object]:
    """An image of noise, and zeros for all other inputs."""
    generator = torch.Generator().manual_seed(seed)
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    return [_example(node, generator if node is pixels else None) for node in inputs]


def _example(node: fx.Node, generator: torch.Generator | None) -> object:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return value
    sizes = [hint(size) for size in value.shape]
    if generator is None:
        return torch.zeros(sizes, dtype=value.dtype, device=value.device)
    return torch.rand(sizes, generator=generator, dtype=torch.float32).to(value.device, value.dtype)
