"""Attention cores: queries against keys, a softmax, values. Where they are, and what they cost.

scaled_dot_product_attention(q, k, v)                   fused
matmul(q, k) -- scale -- mask -- softmax -- matmul(v)   spelled out
"""

from __future__ import annotations

import math

from torch import fx

from prunec.dataflow.flow import DataFlow, Link
from prunec.ir import graph
from prunec.structure import Core

PRODUCTS = {"matmul", "bmm", "einsum", "baddbmm"}
#: What may stand between the product, the softmax and the second product of a spelled-out attention.
_BETWEEN_PRODUCTS = {
    "mul", "div", "add", "sub", "masked_fill", "where", "to", "dropout", "softmax", "clamp", "view",
    "reshape", "expand", "type_as", "contiguous", "clone", "linear", "permute", "transpose",
    "slice", "slice_scatter", "copy",
}  # fmt: skip


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


def cores_in(region: frozenset[fx.Node], cores: dict[str, Core]) -> list[Core]:
    """Those of the cores that stand in a region."""
    return [cores[node.name] for node in sorted(region, key=lambda node: node.name) if node.name in cores]


def work(links: list[Link], cores: dict[str, Core], flow: DataFlow) -> int:
    """Multiplications of a chain for one image, roughly: what its linears and its attention cost."""
    regions = {node for link in links for node in link.region}
    linears = [node for node in regions if graph.op(node) == "linear"]
    products = sum(_numel(node) * size_along(flow.inputs(node)[0], -1) for node in linears)
    return products + sum(_attended(core, flow) for core in cores_in(frozenset(regions), cores))


def _attended(core: Core, flow: DataFlow) -> int:
    """Twice the heads' widths for each pair of a query and a key; windows of one image count once."""
    value = flow.nodes[core.value]
    queries = size_along(flow.nodes[core.query if core.form == "fused" else core.node], -2)
    return 2 * queries * size_along(*scores_of(core, flow)) * size_along(value, -1) * size_along(value, -3)


def scores_of(core: Core, flow: DataFlow) -> tuple[fx.Node, int]:
    """A value of the core and its axis that counts the positions that are looked at."""
    node = flow.nodes[core.key if core.form == "fused" else core.node]
    return node, len(graph.shape(node)) - (2 if core.form == "fused" else 1)


def _numel(node: fx.Node) -> int:
    return math.prod(size_along(node, axis) for axis in range(len(graph.shape(node))))


def size_along(node: fx.Node, axis: int) -> int:
    """The size of a value along an axis; one where it has no such axis, or where the size is a symbol."""
    sizes = graph.shape(node)
    size = sizes[axis] if -len(sizes) <= axis < len(sizes) else 1
    return size if isinstance(size, int) else 1  # to ask a symbol for its value would fix it
