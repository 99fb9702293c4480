"""The data flow from the image through a graph, and the residual adds in it.

s ----------------(+)-- s'        a residual add: its state s dominates its branch, that is, every value
 '-- branch --------'             of the branch that depends on the pixels comes through s
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import networkx as nx
from torch import fx

from prunec.errors import RecognitionError
from prunec.ir import graph

NORMS = {"layer_norm", "rms_norm", "rsqrt", "batch_norm", "group_norm"}
#: Operators that may stand between two residual adds of one chain.
LIGHT = {"dropout", "to", "clone", "contiguous", "type_as", "mul", "add", "permute", "transpose"} | NORMS
#: Operators that split rows and join them again: s[:, :1] | s[:, 1:] + f(other).
JOINS = {"cat", "slice"}


class DataFlow:
    """The graph of values that depend on the pixels, with dominators and order."""

    def __init__(self, source: fx.Graph) -> None:
        self.nodes = graph.by_name(source)
        self.order = {node: place for place, node in enumerate(source.nodes)}
        self.pixels = find_pixels(source)
        self.reached = graph.reachable([self.pixels])
        edges = [(before, node) for node in self.reached for before in self.inputs(node)]
        self.dominators: dict[fx.Node, fx.Node] = (
            nx.immediate_dominators(nx.DiGraph(edges), self.pixels) if edges else {}
        )

    def inputs(self, node: fx.Node) -> list[fx.Node]:
        """Operands that depend on the pixels."""
        return [source for source in graph.data_inputs(node) if source in self.reached]

    def region(self, state: fx.Node, end: fx.Node) -> set[fx.Node]:
        """Nodes between `state` (left out) and `end` (included), walking back from the end."""
        found: set[fx.Node] = set()
        queue = [end]
        while queue:
            node = queue.pop()
            if node not in found and self.order[node] > self.order[state]:
                found.add(node)
                queue.extend(self.inputs(node))
        return found


def find_pixels(source: fx.Graph) -> fx.Node:
    """The image input: the largest floating-point tensor of at least three dimensions."""
    inputs = [node for node in source.nodes if node.op == "placeholder" and graph.is_tensor(node)]
    images = [node for node in inputs if node.meta["val"].is_floating_point() and node.meta["val"].dim() >= 3]
    if not images:
        raise RecognitionError(
            "the model takes no image tensor", remedy="give an example that holds the image as a float tensor"
        )
    largest: fx.Node = max(images, key=lambda node: (node.meta["val"].dim(), node.meta["val"][0].numel()))
    return largest


# --- residual adds ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Link:
    """One residual add: `add = state + branch`."""

    add: fx.Node
    state: fx.Node
    branch: fx.Node
    region: frozenset[fx.Node]  # from the state (left out) to the branch's end


def residual_adds(flow: DataFlow) -> list[Link]:
    """Every add whose state dominates its branch, in graph order."""
    found: dict[fx.Node, Link] = {}
    for node in sorted(flow.reached, key=flow.order.__getitem__):
        link = _residual(node, flow, found) if graph.op(node) in ("add", "addcmul") else None
        if link is not None:
            found[node] = link
    return list(found.values())


def _residual(node: fx.Node, flow: DataFlow, found: dict[fx.Node, Link]) -> Link | None:
    operands = [source for source in node.args if isinstance(source, fx.Node) and source in flow.reached]
    if len(operands) != 2 or operands[0] is operands[1]:
        return None
    dominator = flow.dominators.get(node)
    for operand, branch in (operands, operands[::-1]):
        if graph.shape(operand) != graph.shape(node):
            continue
        skip = _unscaled(operand, flow)
        if skip is dominator:
            return Link(node, skip, branch, frozenset(flow.region(skip, branch)))
        if skip in found and found[skip].state is dominator:  # x + attention(x) + mlp(x)
            region = flow.region(found[skip].state, branch)
            if skip not in region:  # or the branch reads the add, and the dominator is older than both
                return Link(node, found[skip].state, branch, frozenset(region))
    for skip, branch in (
        operands,
        operands[::-1],
    ):  # the branch also reads an earlier value: look at the operands
        if graph.shape(skip) == graph.shape(node) and branch is not skip:
            region = flow.region(skip, branch)
            if any(skip in flow.inputs(inner) for inner in region):
                return Link(node, skip, branch, frozenset(region))
    return None


def _unscaled(skip: fx.Node, flow: DataFlow) -> fx.Node:
    """The state whose skip is scaled by a learned vector: x * scale + f(x)."""
    if graph.op(skip) != "mul":
        return skip
    inputs = flow.inputs(skip)
    others = [source for source in skip.args if isinstance(source, fx.Node) and source not in inputs]
    return inputs[0] if len(inputs) == 1 and others else skip


def chains(links: Sequence[Link], flow: DataFlow) -> list[list[Link]]:
    """Sequences of residual adds, each of which starts from the result of the one before."""
    found: list[list[Link]] = []
    for link in links:
        for chain in found:
            last = chain[-1]
            if link.state is last.state or leads(last.add, link.state, flow):
                chain.append(link)
                break
        else:
            found.append([link])
    return found


def leads(before: fx.Node, state: fx.Node, flow: DataFlow) -> bool:
    """Whether `state` is `before`, a norm or the like of it, or has the same rows with something added."""
    same_rows = graph.shape(state) == graph.shape(before)
    light = LIGHT | JOINS if same_rows else LIGHT
    queue, seen = [state], {state}
    while queue and len(seen) < 16:
        node = queue.pop(0)
        if node is before:
            return True
        inputs = [source for source in flow.inputs(node) if graph.is_tensor(source)]
        if graph.op(node) in light and (len(inputs) == 1 or same_rows):
            queue.extend(source for source in inputs if source not in seen)
            seen.update(inputs)
    return False
