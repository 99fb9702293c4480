"""What an operator does, found by running it on random numbers.

No operator has a rule in prunec. Where a rewrite needs to know how an operator treats the rows of a tensor,
it is run on random tensors of the recorded types, with whole numbers in place of symbolic sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy
import torch
from torch import fx

from prunec import compat

BATCH = 2  # stands for every symbolic size that has no number


def numbers(value: Any, seed: int, sizes: Mapping[sympy.Symbol, int] | None = None) -> Any:
    """Random numbers of a value's type; sizes, and what is no tensor, as they are."""
    if isinstance(value, torch.SymInt):
        return _known(compat.expression(value), sizes)
    if isinstance(value, list | tuple):
        return type(value)(numbers(item, seed + place, sizes) for place, item in enumerate(value))
    if not isinstance(value, torch.Tensor):
        return value
    shape = [_known(compat.expression(size), sizes) for size in value.shape]
    generator = torch.Generator().manual_seed(seed)
    if value.is_floating_point():
        return torch.rand(shape, generator=generator).to(value.dtype)
    return torch.randint(0, 2, shape, generator=generator).to(value.dtype)


def run(node: fx.Node, given: Mapping[fx.Node, Any]) -> Any:
    """What a call yields for given operands; the same random numbers are drawn each time."""
    assert callable(node.target)
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda operand: given[operand])
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        return node.target(*args, **kwargs)


def keeps_order(node: fx.Node) -> bool:
    """Whether a call only changes the shape: out come the numbers of its one tensor, in their order."""
    given = {source: numbers(source.meta["val"], 0) for source in node.all_input_nodes}
    tensors = [value for value in given.values() if isinstance(value, torch.Tensor)]
    if len(tensors) != 1:
        return False
    try:
        result = run(node, given)
    except Exception:  # noqa: BLE001  what does not run on random numbers is not known to
        return False
    return isinstance(result, torch.Tensor) and torch.equal(result.flatten(), tensors[0].flatten())


def is_row_local(
    node: fx.Node, operand: fx.Node, axes: tuple[int, int], sizes: Mapping[sympy.Symbol, int] | None = None
) -> bool:
    """Whether row i of the result depends on row i of this operand alone.

    Args:
        node: the call, with the types of its operands in their meta.
        operand: the one that is watched.
        axes: the rows' axis of the operand, and of (every tensor of) the result.
        sizes: numbers for symbolic sizes.
    """
    given = {
        source: numbers(source.meta["val"], seed, sizes) for seed, source in enumerate(node.all_input_nodes)
    }
    source_axis, result_axis = axes
    changed = given[operand].clone()
    row = changed.shape[source_axis] // 2
    changed.select(source_axis, row).add_(1)
    try:
        once, again = run(node, given), run(node, {**given, operand: changed})
    except Exception:  # noqa: BLE001  what does not run on random numbers is not known to be local
        return False
    return all(_differ_at_most_in(row, one, other, result_axis) for one, other in _pairs(once, again))


def _pairs(once: Any, again: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    pairs = zip(compat.tree_leaves(once), compat.tree_leaves(again), strict=True)
    return [(one, other) for one, other in pairs if isinstance(one, torch.Tensor)]


def _differ_at_most_in(row: int, one: torch.Tensor, other: torch.Tensor, axis: int) -> bool:
    differs = (one != other).movedim(axis, 0).flatten(1).any(dim=1)
    differs[row] = False
    return not bool(differs.any())


def _known(size: sympy.Expr, sizes: Mapping[sympy.Symbol, int] | None) -> int:
    if sizes:
        size = size.subs(dict(sizes))
    return int(size.subs(dict.fromkeys(size.free_symbols, BATCH)))
