"""Residual branches, what each holds, and the blocks that they make.

s0 --norm--qkv--attention--proj--(+)-- s1 --norm--fc--gelu--fc--(+)-- s2
 '--------- attention ----------'  '------------- mlp ---------'
"""

from __future__ import annotations

import itertools

from torch import fx

from prunec.dataflow.cores import cores_in
from prunec.dataflow.flow import NORMS, DataFlow, Link, chains, leads
from prunec.ir import graph
from prunec.structure import Block, Branch, BranchKind, Core, NormPlace

ACTIVATIONS = {
    "gelu",
    "silu",
    "relu",
    "sigmoid",
    "tanh",
    "hardswish",
    "mish",
    "elu",
    "leaky_relu",
    "softplus",
}
LINEARS = {"linear", "addmm", "mm", "conv2d", "conv1d"}


def without_long_skips(links: list[Link], cores: dict[str, Core], flow: DataFlow) -> list[Link]:
    """Drop skips over whole blocks, and adds inside a branch (q = x + f(x), or attention that adds its q)."""
    working = [link for link in links if cores_in(link.region, cores) or _activation(link.region, cores)]
    over_blocks = {link.add for link in links if _spans_blocks(link, working, flow)}
    branches = [link for link in working if link.add not in over_blocks]
    return [
        link
        for link in links
        if link.add not in over_blocks and not any(link.add in other.region for other in branches)
    ]


def _spans_blocks(link: Link, working: list[Link], flow: DataFlow) -> bool:
    """Whether a stream runs inside the branch: its own goes on there, or another of more than one add."""
    inside = [other for other in working if other.add in link.region and other is not link]
    own = any(other.state is link.state or leads(link.state, other.state, flow) for other in inside)
    return own or any(len(chain) > 1 for chain in chains(inside, flow))


def branch_of(link: Link, cores: dict[str, Core], flow: DataFlow) -> Branch:
    """What a residual branch is: by what its region holds."""
    inside = cores_in(link.region, cores)
    activation = _activation(link.region, cores)
    kind: BranchKind = "mlp" if activation else "other"
    if inside:
        kind = "parallel" if activation else "attention"
    return Branch(
        kind=kind,
        state=link.state.name,
        add=link.add.name,
        norm=_norm_place(link, flow),
        layer_scale=_has_layer_scale(link),
        cores=tuple(inside),
        activation=activation,
    )


def _activation(region: frozenset[fx.Node], cores: dict[str, Core]) -> str | None:
    """`gelu`, `silu gated`, ... where the region goes linear, activation, linear beside any attention."""
    attending = {node for node in region if node.name in cores}
    past_core = graph.reachable(attending, within=region)
    # A product with what attention made is a gate on it, not a step of an MLP.
    inside = {node for node in region if not (node in past_core and graph.op(node) == "mul")}
    for node in sorted(region, key=lambda node: node.name):
        if graph.op(node) not in ACTIVATIONS or node in past_core:
            continue
        before = _first(node, lambda inner: [s for s in graph.data_inputs(inner) if s in region], LINEARS)
        after = _first(node, lambda inner: [u for u in inner.users if u in inside], LINEARS)
        if before is not None and after is not None and not (_feeds_core(after, region, attending)):
            gated = any(
                graph.op(user) == "mul"
                and len({source for source in graph.data_inputs(user) if source in region}) == 2
                for user in node.users
            )
            return f"{graph.op(node)} gated" if gated else graph.op(node)
    return None


def _feeds_core(node: fx.Node, region: frozenset[fx.Node], attending: set[fx.Node]) -> bool:
    return bool(graph.reachable([node], within=region) & attending)


def _first(node: fx.Node, step: object, wanted: set[str]) -> fx.Node | None:
    assert callable(step)
    queue, seen = list(step(node)), set()
    while queue:
        current = queue.pop(0)
        if current in seen:
            continue
        seen.add(current)
        if graph.op(current) in wanted:
            return current  # type: ignore[no-any-return]
        queue.extend(step(current))
    return None


def _norm_place(link: Link, flow: DataFlow) -> NormPlace:
    readers = [node for node in link.region if link.state in flow.inputs(node)]
    if any(graph.op(node) in NORMS | {"pow", "mean", "to"} for node in readers):
        return "pre"
    node = link.branch
    for _ in range(4):
        if graph.op(node) in NORMS:
            return "post"
        inputs = flow.inputs(node)
        if len(inputs) != 1:
            break
        node = inputs[0]
    normed = len(link.add.users) == 1 and any(graph.op(user) in NORMS for user in link.add.users)
    return "post" if normed else "none"


def _has_layer_scale(link: Link) -> bool:
    """Whether the branch ends in a product with a learned vector."""
    if graph.op(link.add) == "addcmul":
        return True
    node: object = link.branch
    for _ in range(4):
        if not isinstance(node, fx.Node):
            return False
        if graph.op(node) == "mul":
            return any(isinstance(source, fx.Node) and source.op == "get_attr" for source in node.args)
        if graph.op(node) not in ("dropout", "to", "clone", *NORMS):
            return False
        node = node.args[0]
    return False


def blocks_of(branches: list[Branch], flow: DataFlow) -> tuple[Block, ...]:
    """Branches in groups that each start with an attention; what stands before the first one joins it."""
    groups: list[list[Branch]] = []
    for branch in branches:
        beside = (
            bool(groups) and groups[-1][-1].state == branch.state
        )  # parallel branches read the same state
        starts = bool(branch.cores) and any(other.cores for other in groups[-1]) if groups else True
        if starts and not beside:
            groups.append([branch])
        else:
            groups[-1].append(branch)
    return tuple(Block(index, _path(group, flow), tuple(group)) for index, group in enumerate(groups))


def _path(group: list[Branch], flow: DataFlow) -> str:
    """The module path that the block's adds share."""
    paths = [graph.module_path(flow.nodes[branch.add]) for branch in group]
    return min(paths, key=len)


def end_of_the_last(chain: list[Link], branches: list[Branch], flow: DataFlow) -> fx.Node | None:
    """Where the last block ends if not at its add: behind what every block has there, such as a norm.

        x = norm(x + f(x))    post-norm        x = x + f(x) + table    positions that are added again

    A token that sits blocks out has had its last norm, so it comes back behind this one.
    """
    before = [
        place
        for place, (link, after) in enumerate(itertools.pairwise(chain))
        if branches[place].kind == branches[-1].kind and after.state is not link.state
    ]
    if not before:
        return None
    steps = _in_order(flow.region(chain[before[-1]].add, chain[before[-1] + 1].state), flow)
    after_last = _in_order(graph.reachable([chain[-1].add]) - {chain[-1].add}, flow)[: len(steps)]
    if not steps or list(map(graph.op, after_last)) != list(map(graph.op, steps)):
        return None
    end = after_last[-1]
    return end if flow.region(chain[-1].add, end) == set(after_last) else None


def _in_order(nodes: set[fx.Node], flow: DataFlow) -> list[fx.Node]:
    return sorted(nodes, key=flow.order.__getitem__)
