"""Normalise a captured graph, exactly.

    wrap_with_set_grad_enabled(False, body, x)      ->  the body's own operators
    sdpa(q, k, v, expand(arange(n) >= 0))           ->  sdpa(q, k, v)          a mask that hides nothing
    dropout(x, 0.1, False), alias(x), x[0:, :]      ->  x
    image.to(float32), of a float32 image           ->  image
    copy(x, y)                                      ->  y        as x's type: the copy has no gradient
    chunk(table) in block 1, chunk(table) again in block 2  ->  one chunk(table)
    _to_copy(x, dtype=bfloat16)                     ->  to(x, bfloat16)
    arange(tensor([[1, 8, 8]])[0, 1].item())        ->  arange(8)              a number read off a constant
    _assert_tensor_metadata(x, ...)                 ->  gone

A mask is dropped only where it is proved to hide nothing: it is an expansion of values that depend on no
input, and those values, computed, are all true (or all zero for an additive mask). It would cost the fused
kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from prunec import compat
from prunec.ir import graph
from prunec.ir.program import Counts, Program
from prunec.ir.rewrite import Pass
from prunec.ir.sizes import sizes_of
from prunec.ir.weights import value_at
from prunec.token_axis.counted import follows

_WHOLE = 2**62  # ends of slices that mean "to the end" are larger
_ONLY_BROADCAST = {"expand", "unsqueeze", "view", "reshape", "squeeze", "alias", "to", "contiguous"}


@dataclass(frozen=True)
class Normalise(Pass[Program, Program]):
    """Inline regions, drop operators that do nothing and masks that hide nothing."""

    name: ClassVar[str] = "normalise"

    def run(self, program: Program) -> tuple[Program, Counts]:
        """The normalised program and what was removed."""
        module = graph.copy(program.module)
        counts = {
            "regions": inline_regions(module),
            "numbers": _fold_numbers(module),
            "copies": _open_copies(module),
            "masks": _drop_masks(module),
            "no-ops": _drop_no_ops(module),
            "views": _free_views(module),
            "conversions": _plain_conversions(module),
            "repeats": _share_repeats(module),
        }
        return program.replace(module=module), Counts(counts)

    def ensures(self, program: Program) -> None:
        """No in-place operator is left."""
        for node in program.graph.nodes:
            self.promise(not compat.mutates(node.target), "works in place still", node)


def inline_regions(module: fx.GraphModule) -> int:
    """Put the operators of regions in their place, and say how many regions there were."""
    regions = [node for node in module.graph.nodes if graph.op(node) in compat.INLINABLE_REGIONS]
    for node in regions:
        _inline(module, node)
    return len(regions)


def _inline(module: fx.GraphModule, node: fx.Node) -> None:
    """Replace one region call (flag, body, *operands) by the body's operators."""
    _, body, *operands = node.args
    assert isinstance(body, fx.Node)
    inner = module.get_submodule(str(body.target))
    assert isinstance(inner, fx.GraphModule)
    mapping: dict[fx.Node, fx.Node] = {}
    placeholders = (inner_node for inner_node in inner.graph.nodes if inner_node.op == "placeholder")
    mapping.update(zip(placeholders, operands, strict=True))  # type: ignore[arg-type]
    with module.graph.inserting_before(node):
        results = module.graph.graph_copy(inner.graph, mapping)
    assert isinstance(results, (tuple, list))
    for user in list(node.users):
        assert graph.is_getitem(user)
        user.replace_all_uses_with(results[user.args[1]])  # type: ignore[index]
        module.graph.erase_node(user)
    module.graph.erase_node(node)
    if not body.users:
        module.graph.erase_node(body)


def _drop_masks(module: fx.GraphModule) -> int:
    dropped = 0
    known: dict[fx.Node, bool] = {}
    for node in module.graph.nodes:
        if graph.op(node) != "scaled_dot_product_attention":
            continue
        mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
        if not isinstance(mask, fx.Node):
            continue
        if mask not in known:
            known[mask] = _hides_nothing(module, mask)
        if known[mask]:
            node.args = (*node.args[:3], None, *node.args[4:]) if len(node.args) > 3 else node.args
            node.kwargs = {key: value for key, value in node.kwargs.items() if key != "attn_mask"}
            dropped += 1
    return dropped


def _hides_nothing(module: fx.GraphModule, mask: fx.Node) -> bool:
    """Whether a mask is proved to be all true (boolean) or all zero (additive)."""
    kind = mask.meta["val"].dtype
    while graph.op(mask) in _ONLY_BROADCAST and isinstance(mask.args[0], fx.Node):
        mask = mask.args[0]
    value = _constant(module, mask)
    if value is None:
        return False
    return bool(value.to(kind).all()) if kind == torch.bool else bool((value.to(kind) == 0).all())


def _constant(module: fx.GraphModule, node: fx.Node) -> torch.Tensor | None:
    """The value of a node that depends on no input, size or parameter; None otherwise."""
    needed: list[fx.Node] = []
    queue = [node]
    while queue:
        current = queue.pop()
        if isinstance(current.meta.get("val"), torch.SymInt) or compat.is_random(current.target):
            return None
        if current.op != "call_function" and not compat.is_literal(current):
            return None
        if current not in needed:
            needed.append(current)
            queue.extend(current.all_input_nodes)
    values: dict[fx.Node, torch.Tensor] = {}
    for current in (candidate for candidate in module.graph.nodes if candidate in needed):
        if current.op == "get_attr":
            values[current] = value_at(module, str(current.target))
            continue
        args, kwargs = fx.map_arg((current.args, current.kwargs), lambda source: values[source])
        values[current] = current.target(*args, **kwargs)
    return values[node]


def _fold_numbers(module: fx.GraphModule) -> int:
    """Put numbers that are read off constants in their place: the sizes that they make are known then."""
    mode, folded = compat.fake_mode_of(module.graph), 0
    stale: set[fx.Node] = set()
    for node in list(module.graph.nodes):
        number = _number(module, node)
        if number is not None:
            stale.update(node.users)
            _write_down(node, number)
            folded += 1
        elif node in stale and node.op == "call_function":
            values = fx.map_arg((node.args, node.kwargs), lambda given: given.meta["val"])
            node.meta["val"], _ = compat.evaluate(mode, node.target, *values)
            stale.update(node.users)
    return folded


def _write_down(node: fx.Node, number: int) -> None:
    """Put a number where a node is used; there is no node for it."""
    for user in list(node.users):
        user.args, user.kwargs = fx.map_arg(
            (user.args, user.kwargs), lambda given: number if given is node else given
        )
    node.graph.erase_node(node)


def _number(module: fx.GraphModule, node: fx.Node) -> int | None:
    """The integer that a node reads off a constant, or computes from integers only."""
    if graph.op(node) in ("item", "_local_scalar_dense") and isinstance(node.args[0], fx.Node):
        value = _constant(module, node.args[0])
        return int(value) if value is not None and not value.is_floating_point() else None
    if node.op == "call_function" and graph.is_size(node) and not node.all_input_nodes:
        return int(node.target(*node.args))  # type: ignore[operator]
    return None


def _drop_no_ops(module: fx.GraphModule) -> int:
    dropped = 0
    for node in list(module.graph.nodes):
        if graph.op(node) == "_assert_tensor_metadata":
            module.graph.erase_node(node)
            dropped += 1
        elif (same := _operand_that_it_is(node)) is not None:
            node.replace_all_uses_with(same)
            module.graph.erase_node(node)
            dropped += 1
    return dropped


def _free_views(module: fx.GraphModule) -> int:
    """Let every view be a reshape: which strides attention leaves depends on the kernel chosen for it."""
    aten = torch.ops.aten
    targets = (aten.view.default, aten._unsafe_view.default)
    views = [node for node in module.graph.nodes if node.target in targets]
    for node in views:
        node.target = aten.reshape.default
    return len(views)


def _plain_conversions(module: fx.GraphModule) -> int:
    """Write the conversions that opening a region made as the model's own code would have."""
    aten, written = torch.ops.aten, 0
    for node in module.graph.nodes:
        if node.target is aten._to_copy.default and set(node.kwargs) == {"dtype"}:
            node.target, node.args, node.kwargs = aten.to.dtype, (*node.args, node.kwargs["dtype"]), {}
            written += 1
    return written


def _share_repeats(module: fx.GraphModule) -> int:
    """Compute once what every block computes anew: the halves of a rotary table, a bias from its index."""
    seen: dict[Any, fx.Node] = {}
    shared = 0
    for node in list(module.graph.nodes):
        if node.op not in ("call_function", "get_attr") or compat.is_random(node.target):
            continue
        key = _call_key(node)
        if key in seen:
            node.replace_all_uses_with(seen[key])
            module.graph.erase_node(node)
            shared += 1
        else:
            seen[key] = node
    return shared


def _call_key(node: fx.Node) -> Any:
    """Equal for two calls of the same operator on the same values, which follow the token count alike."""
    return (node.op, node.target, repr(node.args), repr(sorted(node.kwargs.items())), repr(follows(node)))


def _operand_that_it_is(node: fx.Node) -> fx.Node | None:
    """The operand that a node yields as it is, if it does nothing."""
    name = graph.op(node)
    idle = name == "alias" or (name == "dropout" and (node.args[1] == 0 or node.args[2] is False))
    if idle or (name == "slice" and _takes_all(list(node.args[2:]))):
        return node.args[0]  # type: ignore[return-value]
    if name == "slice_scatter" and _takes_all(list(node.args[3:])):
        return node.args[1]  # type: ignore[return-value]
    if name == "to" and _is_input_as_it_is(node):
        return node.args[0]  # type: ignore[return-value]
    return None


def _is_input_as_it_is(node: fx.Node) -> bool:
    """Whether a conversion gives an input the precision and the device that it has.

    Any other conversion stays, even to what its operand is: once the model is converted it says something.
    """
    source = node.args[0]
    if not isinstance(source, fx.Node) or source.op != "placeholder":
        return False
    before, after = source.meta["val"], node.meta["val"]
    return bool(before.dtype == after.dtype and before.device == after.device)


def _takes_all(given: list[Any]) -> bool:
    """Whether the start, end and step of a slice leave nothing out."""
    start, end, step = given + [0, _WHOLE, 1][len(given) :]
    return start in (0, None) and (end is None or (isinstance(end, int) and end >= _WHOLE)) and step == 1


def _open_copies(module: fx.GraphModule) -> int:
    """Write x[...] = y, of which functionalisation makes copy(x, y), by operators that have a gradient."""
    aten, opened = torch.ops.aten, 0
    for node in list(module.graph.nodes):
        if node.op != "call_function" or node.target is not aten.copy.default:
            continue
        like, value = node.args[:2]
        assert isinstance(like, fx.Node) and isinstance(value, fx.Node)
        with module.graph.inserting_before(node):
            if value.meta["val"].dtype != node.meta["val"].dtype:
                value = _typed(module, aten.to.dtype, (value, node.meta["val"].dtype))
            if sizes_of(value.meta["val"]) != sizes_of(node.meta["val"]):
                value = _typed(module, aten.expand_as.default, (value, like))
        node.replace_all_uses_with(value)
        module.graph.erase_node(node)
        opened += 1
    return opened


def _typed(module: fx.GraphModule, target: Any, args: tuple[Any, ...]) -> fx.Node:
    node = module.graph.call_function(target, args)
    values = fx.map_arg(args, lambda given: given.meta["val"])
    node.meta["val"], _ = compat.evaluate(compat.fake_mode_of(module.graph), target, values, {})
    return node
