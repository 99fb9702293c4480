"""Rows of tokens that have left hold NaN, so whatever reads them is seen.

    x [1, T, C], rows 3 and 5 NaN        one dead axis: alive(x) == {1: [0, 1, 2, 4, 6, ..]}
    q @ k.T      [h, T, T]               two dead axes
    x.mean(1)    [1, C], all NaN         rows met
    x as a grid  [1, H, W, C]            NaN, and no axis is dead: this is no stream of tokens any more

No operator has a rule. A call runs as it is on all rows; its result shows whether rows met in it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prunec import compat

Alive = Mapping[int, Tensor]  # dead axis -> places on it that are alive, ascending


def poisoned(value: Any) -> bool:
    """Whether a value holds NaN."""
    return isinstance(value, Tensor) and holds_nan(value) and bool(value.isnan().any())


def holds_nan(x: Tensor) -> bool:
    """Whether its dtype has a NaN."""
    return x.is_floating_point() or x.is_complex()


def alive(x: Tensor) -> Alive | None:
    """The axes on which some slices are all NaN, with the other slices' places; None if there is more NaN."""
    dead = x.isnan()
    lost = int(dead.count_nonzero())
    if not lost or lost == x.numel():
        return {} if not lost else None
    first = 0 if not bool(dead.flatten()[0]) else int(dead.flatten().to(torch.uint8).argmin())
    place = [int(each) for each in torch.unravel_index(torch.tensor(first), x.shape)]
    found: dict[int, Tensor] = {}
    for axis in range(x.dim()):  # along the lines through a living number
        line = dead[tuple(slice(None) if other == axis else at for other, at in enumerate(place))]
        if bool(line.any()):
            found[axis] = (~line).nonzero()[:, 0]
    rest = shortened(dead, found)
    return found if rest.numel() == x.numel() - lost and not bool(rest.any()) else None


class Memory:
    """`alive`, of each tensor once."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[weakref.ref[Tensor], Alive | None]] = {}

    def __call__(self, x: Any) -> Alive | None:
        """Integers and masks have no dead rows."""
        if not isinstance(x, Tensor) or not holds_nan(x):
            return {}
        known = self.seen.get(id(x))
        if known is None or known[0]() is not x:
            known = self.seen[id(x)] = weakref.ref(x), alive(x)
        return known[1]


def shortened(x: Tensor, places: Alive) -> Tensor:
    """The rows that are alive."""
    for axis, index in places.items():
        x = x.index_select(axis, index)
    return x


def put_back(short: Tensor, like: Tensor, places: Mapping[int, Tensor]) -> Tensor | None:
    """A result on living rows in the shape of `like`, with NaN elsewhere; `places` by the size of an axis."""
    if short.dim() != like.dim():
        return None
    for axis, (found, wanted) in enumerate(zip(short.shape, like.shape, strict=True)):
        if found == wanted:
            continue
        index = places.get(wanted)
        if index is None or len(index) != found:
            return None
        shape = [*short.shape[:axis], wanted, *short.shape[axis + 1 :]]
        short = short.new_full(shape, float("nan")).index_copy(axis, index, short)
    return short


def on_living(
    call: Callable[..., Any], args: Any, kwargs: Any, as_is: Any, streams: Sequence[tuple[Tensor, Alive]]
) -> Any:
    """A call on living rows alone, with its result put back in the shape of `as_is`; None if that fails."""
    places = _common(streams)
    if places is None:
        return None
    short = {id(x): shortened(x, {axis: places[x.shape[axis]] for axis in dead}) for x, dead in streams}

    def living(leaf: Tensor) -> Tensor:
        """The living rows of a table that is indexed by token on one axis."""
        axes = [axis for axis, size in enumerate(leaf.shape) if size in places]
        return shortened(leaf, {axes[0]: places[leaf.shape[axes[0]]]}) if len(axes) == 1 else leaf

    for tables in (False, True):

        def changed(leaf: Tensor, tables: bool = tables) -> Tensor:
            return short[id(leaf)] if id(leaf) in short else living(leaf) if tables else leaf

        given = _mapped((args, kwargs), changed)
        try:
            result = call(*given[0], **given[1])
        except (RuntimeError, IndexError):  # a size that does not fit
            continue
        found = _all_put_back(result, as_is, places)
        if found is not None:
            return found
    return None


def _common(streams: Sequence[tuple[Tensor, Alive]]) -> dict[int, Tensor] | None:
    """The living places on axes of each size: of two values, one from before a site, those after it."""
    places: dict[int, Tensor] = {}
    for x, dead in streams:
        for axis, index in dead.items():
            known = places.get(x.shape[axis], index)
            fewer, more = sorted((known, index), key=len)
            if not bool(torch.isin(fewer, more).all()):
                return None
            places[x.shape[axis]] = fewer
    return places


def _all_put_back(result: Any, as_is: Any, places: Mapping[int, Tensor]) -> Any:
    leaves, spec = compat.tree_flatten(result)
    found = [
        put_back(one, like, places) if isinstance(one, Tensor) and not poisoned(one) else None
        for one, like in zip(leaves, compat.tree_leaves(as_is), strict=True)
    ]
    return None if any(leaf is None for leaf in found) else compat.tree_unflatten(found, spec)


def meet(call: Callable[..., Any], args: Any, kwargs: Any) -> bool:
    """Whether any number of a call's result depends on dead rows and on living ones."""

    def spoilt(change: Callable[[Tensor], Tensor]) -> int:
        given = _mapped((args, kwargs), lambda x: change(x) if poisoned(x) else x)
        leaves = compat.tree_leaves(call(*given[0], **given[1]))
        return sum(int(leaf.isnan().sum()) for leaf in leaves if isinstance(leaf, Tensor))

    nan = float("nan")
    by_dead = spoilt(lambda x: x)
    by_living = spoilt(lambda x: torch.where(x.isnan(), 1.0, nan))
    by_any = spoilt(lambda x: torch.full_like(x, nan))
    return by_dead + by_living > by_any


def picked(call: Callable[..., Any], args: Any, kwargs: Any, x: Tensor, axis: int) -> list[list[int]] | None:
    """For each tensor of the result the rows of `x` that it consists of; None if the call does not only move.

    The call runs on numbered rows in three orders, in which no row has the same rank twice: with one order a
    maximum or a median would look like a row.
    """
    length = x.shape[axis]
    ranks = torch.randperm(length, generator=torch.Generator().manual_seed(0))
    orders = (ranks, length - 1 - ranks, (ranks + max(1, length // 3)) % length)
    found = [_moved(call, args, kwargs, x, axis, order) for order in orders]
    return found[0] if all(one == found[0] for one in found) else None


def _moved(
    call: Callable[..., Any], args: Any, kwargs: Any, x: Tensor, axis: int, ranks: Tensor
) -> list[list[int]] | None:
    numbers = (1 + ranks / (2 * len(ranks))).to(x.dtype)  # all different
    shape = [1] * x.dim()
    shape[axis] = -1
    numbered = numbers.to(x.device).view(shape).expand(x.shape).contiguous()
    row_of = {number: row for row, number in enumerate(numbers.tolist())}
    given = _mapped((args, kwargs), lambda leaf: numbered if leaf is x else leaf)
    rows = []
    for leaf in compat.tree_leaves(call(*given[0], **given[1])):
        if not isinstance(leaf, Tensor):
            return None
        values = dict.fromkeys(leaf.flatten().unique_consecutive().tolist())
        if any(value not in row_of for value in values):
            return None
        rows.append([row_of[value] for value in values])
    return rows


def _mapped(given: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return compat.tree_map(lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf, given)
