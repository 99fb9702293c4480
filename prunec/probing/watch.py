"""What an operator does, found by running it on random numbers.

No operator has a rule in prunec. Where a rewrite needs to know how an operator treats the rows of a tensor,
it is run on random tensors of the recorded types, with whole numbers in place of symbolic sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx

from prunec import compat
from prunec.errors import PolicyError

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


def keeps_zero(
    node: fx.Node, operands: Sequence[fx.Node], sizes: Mapping[sympy.Symbol, int] | None = None
) -> bool:
    """Whether a call yields zeros where these operands are zeros, whatever the others are."""
    given = {
        source: numbers(source.meta["val"], seed, sizes) for seed, source in enumerate(node.all_input_nodes)
    }
    try:
        result = run(node, {**given, **{operand: torch.zeros_like(given[operand]) for operand in operands}})
    except Exception:  # noqa: BLE001  what does not run on random numbers is not known to
        return False
    return not any(bool(leaf.any()) for leaf in compat.tree_leaves(result) if isinstance(leaf, torch.Tensor))


def is_row_local(
    node: fx.Node, operand: fx.Node, axes: tuple[int, int], sizes: Mapping[sympy.Symbol, int] | None = None
) -> bool:
    """Whether a row of the result depends on one row of this operand alone: the one in its place.

    Where the result has another length (rows cut off at an end, or put before them), the place is shifted.
    """
    return rows_before(node, operand, axes, sizes) is not None


def rows_before(
    node: fx.Node, operand: fx.Node, axes: tuple[int, int], sizes: Mapping[sympy.Symbol, int] | None = None
) -> int | None:
    """How many rows of another origin a call puts before those of an operand; below zero: cuts off there.

    None where a row of the result depends on more than one of the operand.

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
    first, *_ = compat.tree_leaves(given[operand])  # of several, such as an unbind's: all are changed
    length, generator = first.shape[source_axis], torch.Generator().manual_seed(0)
    shape = [1] * first.dim()
    shape[source_axis] = length
    halves = [torch.rand(length, generator=generator) < 0.5 for _ in range(3)]
    parts = [part for half in halves for part in (half, ~half)]
    try:
        once = run(node, given)
        again = [run(node, {**given, operand: _plus(given[operand], part.view(shape))}) for part in parts]
        found = [_changed_rows(once, other, result_axis) for other in again]
    except Exception:  # noqa: BLE001  what does not run on random numbers is not known to be local
        return None
    before = [_before(parts, changed) for changed in zip(*found, strict=True)]
    return None if None in before else before[0]


def keeps_row_order(
    node: fx.Node, operand: fx.Node, axes: tuple[int, int], sizes: Mapping[sympy.Symbol, int] | None = None
) -> bool:
    """Whether the rows of the result stand as those of this operand do, though they may meet: a softmax."""
    given = {
        source: numbers(source.meta["val"], seed, sizes) for seed, source in enumerate(node.all_input_nodes)
    }
    if not isinstance(given[operand], torch.Tensor):
        return False
    order = torch.randperm(given[operand].shape[axes[0]], generator=torch.Generator().manual_seed(0))
    try:
        once, again = (
            run(node, {**given, operand: rows})
            for rows in (given[operand], given[operand].index_select(axes[0], order))
        )
        return torch.allclose(once.index_select(axes[1], order), again, 1e-4, 1e-5)
    except Exception:  # noqa: BLE001  what does not run on random numbers is not known to keep an order
        return False


def treats_rows_alike(
    node: fx.Node,
    axes: Mapping[fx.Node, int],
    result_axis: int,
    sizes: Mapping[sympy.Symbol, int] | None = None,
) -> bool:
    """Whether a call does the same to each row, wherever it stands, and lets none meet.

    Args:
        node: the call, with the types of its operands in their meta.
        axes: the rows' axis of every operand that has rows; one row of each makes one of the result.
        result_axis: the rows' axis of (every tensor of) the result.
        sizes: numbers for symbolic sizes.
    """
    if not all(is_row_local(node, operand, (axis, result_axis), sizes) for operand, axis in axes.items()):
        return False
    given = {
        source: numbers(source.meta["val"], seed, sizes) for seed, source in enumerate(node.all_input_nodes)
    }
    length = next(given[operand].shape[axis] for operand, axis in axes.items())
    order = torch.randperm(length, generator=torch.Generator().manual_seed(0))
    moved = {operand: given[operand].index_select(axis, order) for operand, axis in axes.items()}
    once, again = run(node, given), run(node, {**given, **moved})
    return all(
        torch.allclose(one.index_select(result_axis, order), other, 1e-4, 1e-5)
        for one, other in zip(compat.tree_leaves(once), compat.tree_leaves(again), strict=True)
    )


@dataclass(frozen=True)
class Neutral:
    """What rows of an operand may hold so that a call does not see them."""

    value: float
    mean: bool  # if the result is scaled as well: by all rows over those that count


def neutral(
    node: fx.Node, operand: fx.Node, axes: tuple[int, int | None], lengths: Mapping[sympy.Symbol, int]
) -> Neutral | None:
    """What extra rows of one operand must hold so that a call yields what it does without them, if anything.

    Zero for a sum, minus infinity for a maximum or a softmax, zero and a scale for a mean.

    Args:
        node: the call, with the types of its operands in their meta.
        operand: the one that is to be filled.
        axes: the rows' axis of the operand, and of the result (None: it has none).
        lengths: numbers for symbolic sizes; those of the operand's rows are made longer.
    """
    size = compat.expression(operand.meta["val"].shape[axes[0]])
    longer = {**lengths, **{symbol: lengths[symbol] + _EXTRA for symbol in size.free_symbols & set(lengths)}}
    for value in (0.0, float("-inf"), float("inf")):
        for mean in (False, True) if value == 0.0 else (False,):
            found = Neutral(value, mean)
            if all(_is_neutral(found, node, operand, axes, lengths, longer, seed) for seed in (0, 50)):
                return found
    return None


_EXTRA = 5  # rows more in a trial of what makes no difference


def _is_neutral(
    found: Neutral,
    node: fx.Node,
    operand: fx.Node,
    axes: tuple[int, int | None],
    short: Mapping[sympy.Symbol, int],
    long: Mapping[sympy.Symbol, int],
    seed: int,
) -> bool:
    """Whether a call on operands with extra rows, those of one filled, gives what it gives without them."""
    given = {
        source: _signed(numbers(source.meta["val"], seed + place, long), seed)
        for place, source in enumerate(node.all_input_nodes)
    }
    rows = given[operand].shape[axes[0]]
    extra = torch.zeros(rows, dtype=torch.bool)
    extra[torch.randperm(rows, generator=torch.Generator().manual_seed(seed))[:_EXTRA]] = True
    counts = (~extra).nonzero()[:, 0]  # in another order, which nothing may depend on either
    counts = counts[torch.randperm(len(counts), generator=torch.Generator().manual_seed(seed + 1))]
    fewer = {source: _at(value, source.meta["val"], short, counts) for source, value in given.items()}
    shape = [1] * given[operand].dim()
    shape[axes[0]] = rows
    given[operand] = given[operand].masked_fill(extra.view(shape), found.value)
    try:
        with_extra, without = run(node, given), run(node, fewer)
    except Exception:  # noqa: BLE001  what does not run on random numbers is not known to ignore anything
        return False
    if not isinstance(with_extra, torch.Tensor):
        return False  # several values: none of them is looked at
    if axes[1] is not None:
        with_extra = with_extra.index_select(axes[1], counts)
    scale = rows / len(counts) if found.mean else 1.0
    close = with_extra.shape == without.shape
    return close and torch.allclose(with_extra.double() * scale, without.double(), 1e-4, 1e-5)


def _signed(value: Any, seed: int) -> Any:
    """All below zero in one trial, of both signs in the other, or a maximum would take zero for nothing."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return value
    return -0.1 - value if seed else value - 0.5


def _at(value: Any, like: Any, sizes: Mapping[sympy.Symbol, int], rows: torch.Tensor) -> Any:
    """An operand without the extra rows: on axes that would be shorter, the rows that count."""
    if isinstance(like, torch.SymInt):
        return _known(compat.expression(like), sizes)
    if isinstance(value, torch.Tensor):
        for axis, size in enumerate(like.shape):
            if _known(compat.expression(size), sizes) != value.shape[axis]:
                value = value.index_select(axis, rows)
    return value


def _changed_rows(once: Any, again: Any, axis: int) -> list[torch.Tensor]:
    """For each tensor of two results, which rows differ."""
    pairs = zip(compat.tree_leaves(once), compat.tree_leaves(again), strict=True)
    return [
        (one != other).movedim(axis, 0).flatten(1).any(dim=1)
        for one, other in pairs
        if isinstance(one, torch.Tensor)
    ]


def _plus(value: Any, part: torch.Tensor) -> Any:
    return compat.tree_map(lambda each: each + part, value)


def _before(parts: Sequence[torch.Tensor], changed: tuple[torch.Tensor, ...]) -> int | None:
    """How many rows stand before those that changed with each part of the operand's; None: others changed."""
    length, rows = len(changed[0]), len(parts[0])
    front = max(0, length - rows)  # rows that something else has put there, before or behind
    padded = [torch.nn.functional.pad(part, (front, front)) for part in parts]
    for shift in range(abs(length - rows) + 1):
        if not any(
            (found & ~part[shift : shift + length]).any() for found, part in zip(changed, padded, strict=True)
        ):
            return front - shift
    return None


def _known(size: sympy.Expr, sizes: Mapping[sympy.Symbol, int] | None) -> int:
    if sizes:
        size = size.subs(dict(sizes))
    try:
        return int(size.subs(dict.fromkeys(size.free_symbols, BATCH)))
    except ZeroDivisionError as error:
        raise PolicyError(
            f"the model's own code makes groups of its images, and {BATCH} of them are none",
            where=f"size {size}",
            remedy="use mode static, with a policy whose selector is top_k",
        ) from error
