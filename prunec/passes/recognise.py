"""Find the token stream, its blocks and its protected tokens, by structure alone.

    s0 --norm--qkv--attention--proj--(+)-- s1 --norm--fc--gelu--fc--(+)-- s2 -- ...
     '-------------------------------'  '---------------------------'
    a residual add whose state dominates its branch; the branch is classified by what it holds

A residual add is one whose immediate dominator (on the data-flow graph rooted at the pixels, without size and
metadata edges) is one of its operands, or whose other operand is a residual add from the same state (parallel
branches). Its branch is an attention where it holds a softmax between two products of data (or the fused
call), an MLP where it goes linear, activation, linear. Then the stream's token axis is made a symbol and
followed through the whole graph, which tells the heads, the taps and the rows that are read by position.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from prunec.dataflow.flow import NORMS, DataFlow, Link, chains, leads, residual_adds
from prunec.dataflow.streams import holds_image_tokens, left_alone
from prunec.errors import RecognitionError
from prunec.ir import graph
from prunec.ir.program import Counts, Program, Recognised
from prunec.ir.rewrite import Pass
from prunec.passes.find_tokens import find_tokens, token_dim
from prunec.probing.replay import example_inputs
from prunec.structure import Anatomy, Block, Branch, BranchKind, Core, NoMatch, NormPlace

PRODUCTS = {"matmul", "bmm", "einsum", "baddbmm"}
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
#: What may stand between the product, the softmax and the second product of a spelled-out attention.
_BETWEEN_PRODUCTS = {
    "mul", "div", "add", "sub", "masked_fill", "where", "to", "dropout", "softmax", "clamp", "view",
    "reshape", "expand", "type_as", "contiguous", "clone", "linear", "permute", "transpose",
    "slice", "slice_scatter", "copy",
}  # fmt: skip
_BESIDE = "this attention is in no residual branch of the token stream"


@dataclass(frozen=True)
class Recognise(Pass[Program, Recognised]):
    """Fill in the program's anatomy, or refuse with the reason."""

    name: ClassVar[str] = "recognise"

    def run(self, program: Program) -> tuple[Recognised, Counts]:
        """The same graph with its anatomy, and the counts of what was found."""
        anatomy = recognise(program.module)
        counts = {
            "blocks": anatomy.depth,
            "tokens": anatomy.tokens,
            "protected": anatomy.prefix + anatomy.suffix,
        }
        return program.recognised(anatomy), Counts(counts)

    def ensures(self, program: Recognised) -> None:
        """States that exist."""
        names = graph.by_name(program.graph)
        for state in program.anatomy.states:
            self.promise(state in names, f"the state {state} is not in the graph")


def recognise(module: fx.GraphModule) -> Anatomy:
    """The anatomy of a normalised graph; RecognitionError when there is no token stream with attention."""
    flow = DataFlow(module.graph)
    cores = find_cores(flow)
    adds = _without_long_skips(residual_adds(flow), cores, flow)
    attending = [
        chain for chain in chains(adds, flow) if any(_cores_in(link.region, cores) for link in chain)
    ]
    if not attending:
        raise RecognitionError(
            "no residual stream with attention was found in this model",
            where=_nearest_miss(flow, adds, cores),
            remedy="prunec works on Vision Transformers: residual blocks with softmax attention over tokens",
        )
    ranked = sorted(attending, key=lambda links: _work(links, cores, flow), reverse=True)
    chain = next((links for links in ranked if _is_of_image(module, links, flow)), None)
    if chain is None:
        raise RecognitionError(
            "the rows of this model's stream are learned queries, and none stands for a part of the image",
            where=graph.place(ranked[0][0].add),
            remedy="prunec prunes tokens of the image: name the part that makes them (submodule=), if it has "
            "attention",
        )
    queries = ranked[: ranked.index(chain)]
    branches = [_branch(link, cores, flow) for link in chain]
    matched = {core.node for branch in branches for core in branch.cores}
    last = flow.order[chain[-1].add]
    elsewhere = {
        core.node: _elsewhere(graph.shape(links[0].state), queries=links in queries)
        for links in attending
        for link in links
        for core in _cores_in(link.region, cores)
        if _sized(links[0].state, 1) > 1  # no class token that attends by itself (CaiT's last blocks)
    }
    misses = [
        _miss(elsewhere.get(core.node, _BESIDE), flow.nodes[core.node])
        for core in cores.values()
        if core.node not in matched and (core.node in elsewhere or flow.order[flow.nodes[core.node]] < last)
    ]
    end = _end_of_the_last(chain, branches, flow)
    names = (name for branch in branches for name in (branch.state, branch.add))
    states = tuple(dict.fromkeys((*names, *([end.name] if end is not None else ()))))
    blocks = _blocks(branches, flow)
    trunk = {node.name for link in chain for node in (*link.region, link.add)}
    tokens = find_tokens(module, states, trunk, flow.pixels)
    wrong = [miss for block in blocks for miss in _not_over_tokens(block, tokens.axes, flow)]
    _check_gain(blocks, {miss.node for miss in wrong})
    return Anatomy(
        blocks=blocks,
        tokens=tokens.tokens,
        prefix=tokens.prefix,
        suffix=tokens.suffix,
        token_dim=tokens.token_dim,
        class_token=tokens.class_token,
        head=tokens.head,
        taps=tokens.taps,
        states=states,
        pixels=flow.pixels.name,
        unmatched=tuple(misses) + tuple(wrong),
        learned=tokens.learned,
        notes=(*tokens.notes, *left_alone(module.graph, matched, flow)),
    )


def _work(links: list[Link], cores: dict[str, Core], flow: DataFlow) -> int:
    """Multiplications of a chain for one image, roughly: what its linears and its attention cost."""
    regions = {node for link in links for node in link.region}
    linears = [node for node in regions if graph.op(node) == "linear"]
    products = sum(_numel(node) * _sized(flow.inputs(node)[0], -1) for node in linears)
    return products + sum(_attended(core, flow) for core in _cores_in(frozenset(regions), cores))


def _attended(core: Core, flow: DataFlow) -> int:
    """Twice the heads' widths for each pair of a query and a key; windows of one image count once."""
    value = flow.nodes[core.value]
    queries = _sized(flow.nodes[core.query if core.form == "fused" else core.node], -2)
    return 2 * queries * _sized(*_scores(core, flow)) * _sized(value, -1) * _sized(value, -3)


def _numel(node: fx.Node) -> int:
    return math.prod(_sized(node, axis) for axis in range(len(graph.shape(node))))


def _sized(node: fx.Node, axis: int) -> int:
    sizes = graph.shape(node)
    size = sizes[axis] if -len(sizes) <= axis < len(sizes) else 1
    return size if isinstance(size, int) else 1  # to ask a symbol for its value would fix it


def _scores(core: Core, flow: DataFlow) -> tuple[fx.Node, int]:
    """A value of the core and its axis that counts the positions that are looked at."""
    node = flow.nodes[core.key if core.form == "fused" else core.node]
    return node, len(graph.shape(node)) - (2 if core.form == "fused" else 1)


def _is_of_image(module: fx.GraphModule, links: list[Link], flow: DataFlow) -> bool:
    """Whether a chain's rows are tokens of the image; feature maps are left to find_tokens."""
    state = links[0].state
    if len(graph.shape(state)) != 3:
        return True
    inputs = example_inputs(module, flow.pixels)
    return holds_image_tokens(module, state, token_dim(state), inputs, flow)


def _elsewhere(shape: tuple[int | torch.SymInt, ...], *, queries: bool) -> str:
    what = "a stream of learned queries" if queries else "another stream"
    return f"this attention is in {what}, {list(shape)}, which is left alone"


def _without_long_skips(links: list[Link], cores: dict[str, Core], flow: DataFlow) -> list[Link]:
    """Drop skips over whole blocks, and adds inside a branch (q = x + f(x), or attention that adds its q)."""
    working = [link for link in links if _cores_in(link.region, cores) or _activation(link.region, cores)]
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


# --- attention cores --------------------------------------------------------------------------


def find_cores(flow: DataFlow) -> dict[str, Core]:
    """Every attention core that depends on the pixels, by the name of its fused call or softmax."""
    found: dict[str, Core] = {}
    for node in sorted(flow.reached, key=flow.order.__getitem__):
        core = None
        if graph.op(node) == "scaled_dot_product_attention":
            core = _fused_core(node)
        elif graph.op(node) in ("softmax", "_softmax"):
            core = _spelled_core(node, flow)
        if core is not None:
            found[core.node] = core
    return found


def _fused_core(node: fx.Node) -> Core:
    query, key, value = (str(operand) for operand in node.args[:3])
    mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    scale = node.kwargs.get("scale")
    return Core(
        "fused", node.name, query, key, value, mask=mask.name if isinstance(mask, fx.Node) else None,
        scale=float(scale) if isinstance(scale, (int, float)) else None,
    )  # fmt: skip


def _spelled_core(softmax: fx.Node, flow: DataFlow) -> Core | None:
    """matmul(q, k) .. softmax .. matmul(.., v), all three depending on the pixels."""
    product = _walk(softmax, flow, lambda node: flow.inputs(node)[:1])
    after = _walk(softmax, flow, lambda node: list(node.users))
    if product is None or after is None:
        return None
    query, key = _operands(product, flow)
    _, value = _operands(after, flow)
    return Core("spelled", softmax.name, query.name, key.name, value.name)


def _operands(product: fx.Node, flow: DataFlow) -> tuple[fx.Node, fx.Node]:
    first, second = flow.inputs(product)[-2:]
    return first, second


def _walk(softmax: fx.Node, flow: DataFlow, step: object) -> fx.Node | None:
    """The nearest product of two data values in one direction, through scaling, masks and the like."""
    assert callable(step)
    queue: list[fx.Node] = list(step(softmax))
    seen: set[fx.Node] = set()
    while queue:
        node = queue.pop(0)
        if node in seen or len(seen) > 24:
            continue
        seen.add(node)
        if graph.op(node) in PRODUCTS:
            if len(flow.inputs(node)) >= 2:
                return node
        elif graph.op(node) in _BETWEEN_PRODUCTS:
            queue.extend(step(node))
    return None


def _cores_in(region: frozenset[fx.Node], cores: dict[str, Core]) -> list[Core]:
    return [cores[node.name] for node in sorted(region, key=lambda node: node.name) if node.name in cores]


# --- branches and blocks ----------------------------------------------------------------------


def _branch(link: Link, cores: dict[str, Core], flow: DataFlow) -> Branch:
    inside = _cores_in(link.region, cores)
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


def _end_of_the_last(chain: list[Link], branches: list[Branch], flow: DataFlow) -> fx.Node | None:
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


def _blocks(branches: list[Branch], flow: DataFlow) -> tuple[Block, ...]:
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


def _not_over_tokens(block: Block, axes: Mapping[str, tuple[int, ...]], flow: DataFlow) -> list[NoMatch]:
    """Cores whose softmax does not run over the token axis, with what it runs over instead."""
    found = []
    for core in (core for branch in block.branches for core in branch.cores):
        node, axis = _scores(core, flow)
        if axis in axes.get(node.name, ()):
            continue
        reason = "its softmax does not run over the token axis"
        if not any(axes.get(operand) for operand in (core.query, core.key, core.node)):
            reason = "attention within windows or on a map of the whole grid, which stays dense"
        found.append(_miss(reason, flow.nodes[core.node]))
    return found


def _check_gain(blocks: tuple[Block, ...], elsewhere: set[str]) -> None:
    """Refuse a stream where fewer tokens would save nothing: no attention over them, and no MLP."""
    over_tokens = any(
        core.node not in elsewhere for block in blocks for branch in block.branches for core in branch.cores
    )
    if not over_tokens and all(block.mlp is None for block in blocks):
        raise RecognitionError(
            "no block of this model gains from fewer tokens: no softmax runs over the token axis, and no MLP "
            "stands in the residual stream",
            where=f"{len(blocks)} blocks, the first is {blocks[0].path or 'at the top'}",
            remedy="prunec prunes attention over tokens and token-wise MLPs",
        )


def _miss(reason: str, node: fx.Node) -> NoMatch:
    return NoMatch(reason, node.name, graph.place(node))


def _nearest_miss(flow: DataFlow, links: list[Link], cores: dict[str, Core]) -> str:
    """What was there, for the error message."""
    softmaxes = [node for node in flow.reached if graph.op(node) == "softmax"]
    found = f"{len(links)} residual adds, {len(cores)} attention cores, {len(softmaxes)} softmaxes in all"
    nearest = next(iter(cores.values()), None)
    return f"{found}; {graph.place(flow.nodes[nearest.node])}" if nearest else found
