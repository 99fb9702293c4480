r"""Exact search for schedules: at which block how many tokens go on, for every trade of time against loss.

What a schedule costs is a sum over its blocks and sites. So of two beginnings that leave the same choices
open, one that is slower and loses more can be forgotten; what is left behind the last block is the whole
frontier:

```
block         0       1       2         3             state   how long the stream is, how many sites it had
length       197 --- 197 --- 197 ----- 197            label   a beginning: its time, loss, sites and path
                        \'---- 112 -.-- 112            kept    the labels that none in their state beats
                         '---- 64   '-- 64
```
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Row = tuple[float, ...]
Site = tuple[int, int, int]  # block, entering, leaving
#: The sites so far, the newest outermost: (block, index of the leaving length, the path before), or ().
Path = tuple[Any, ...]
Label = tuple[float, float, int, Path]  # time, loss, sites, path: in this order they compare


@dataclass(frozen=True)
class Costs:
    """What each decision costs: additive over blocks and sites."""

    counts: tuple[int, ...]  # stream lengths, descending; the first is that of the dense model
    fixed: float  # seconds before the first block
    blocks: tuple[Row, ...]  # [blocks][counts] seconds of a block on that length; the last row has the head
    sites: tuple[Row, ...]  # [counts][counts] seconds of going from one length to another; may be negative
    losses: tuple[Row, ...]  # [blocks][counts] what a block on that length loses: dense 0, never negative

    def __post_init__(self) -> None:
        check_counts(self.counts)
        check_rows("blocks", self.blocks, len(self.blocks), len(self.counts))
        check_rows("sites", self.sites, len(self.counts), len(self.counts))
        check_rows("losses", self.losses, len(self.blocks), len(self.counts))
        if not math.isfinite(self.fixed):
            raise ValueError(f"fixed is {self.fixed}, not a number of seconds")
        for block, row in enumerate(self.losses):
            if row[0] != 0 or min(row) < 0:
                raise ValueError(f"losses[{block}] must be 0 at the dense length and nowhere negative")


@dataclass(frozen=True)
class Limits:
    """Which schedules are allowed."""

    first: int = 2  # the first block that may have a site
    last: int | None = None  # the last one; None: the last block
    least: int = 1  # the shortest stream
    sites: int | None = 3  # how many at most; None: as many as there are blocks
    only: tuple[int, ...] | None = None  # the blocks that may have a site, of those; None: all
    returns: bool = False  # tokens come back: from the first site on each block chooses among all anew

    def __post_init__(self) -> None:
        if self.first < 0 or (self.last is not None and self.last < 0):
            raise ValueError(f"first is {self.first}, last is {self.last}: blocks are counted from 0")
        if self.sites is not None and self.sites < 0:
            raise ValueError(f"sites is {self.sites}: give 0 or more, or None for any number")
        if self.only is not None and self.returns:
            raise ValueError(
                "only some blocks may have a site, and tokens come back in each: give one of them"
            )

    def allow(self, block: int) -> bool:
        """Whether the block may have a site."""
        within = self.first <= block and (self.last is None or block <= self.last)
        return within and (self.only is None or block in self.only)


@dataclass(frozen=True)
class Choice:
    """One schedule and what it costs."""

    time: float  # seconds
    loss: float
    counts: tuple[int, ...]  # the stream's length in each block
    sites: tuple[Site, ...] = ()  # by rising block; none in the dense schedule


def frontier(costs: Costs, limits: Limits) -> tuple[Choice, ...]:
    """Every schedule that no other one beats, by rising time: none is as fast and loses less, or the reverse.

    Of several with the same time and loss it has one with the fewest sites.
    """
    labels = _returning(costs, limits) if limits.returns else _falling(costs, limits)
    return tuple(_choice(label, costs, limits) for label in _unbeaten(labels))


def fastest(choices: Sequence[Choice], loss: float) -> Choice | None:
    """The fastest choice of a frontier that loses at most `loss`."""
    return next((choice for choice in choices if choice.loss <= loss), None)


def best(choices: Sequence[Choice], time: float) -> Choice | None:
    """The choice of a frontier that loses least in at most `time` seconds."""
    return next((choice for choice in reversed(choices) if choice.time <= time), None)


def check_counts(counts: Sequence[int]) -> None:
    """ValueError unless these are lengths of a stream, each once, the longest first."""
    falling = all(longer > shorter for longer, shorter in itertools.pairwise(counts))
    if not counts or not falling or counts[-1] < 1:
        raise ValueError(f"counts must fall and stay positive, not {tuple(counts)}")


def check_rows(name: str, rows: Sequence[Sequence[float]], height: int, width: int) -> None:
    """ValueError unless `rows` is a table of that shape, of finite numbers."""
    if not rows or len(rows) != height:
        raise ValueError(f"{name} has {len(rows)} rows, not {height or 'at least one'}")
    for index, row in enumerate(rows):
        if len(row) != width:
            raise ValueError(f"{name}[{index}] has {len(row)} numbers, not {width}, one for each count")
        if not all(map(math.isfinite, row)):
            raise ValueError(f"{name}[{index}] has a number that is not finite: {tuple(row)}")


# The two kinds of schedule ----------------------------------------------------------------------------------


def _falling(costs: Costs, limits: Limits) -> list[Label]:
    """The labels behind the last block when tokens that went stay away, so that lengths only fall."""
    lengths = range(len(costs.counts))
    most = _most_sites(costs, limits)
    labels: list[list[Label]] = [[] for _ in lengths]  # by the length of the stream
    labels[0].append((costs.fixed, 0.0, 0, ()))
    for block, (times, losses) in enumerate(zip(costs.blocks, costs.losses, strict=True)):
        before, labels = labels, []
        for length in lengths:
            here = _extended(before[length], times[length], losses[length])
            if limits.allow(block) and costs.counts[length] >= limits.least:
                for longer in range(length):
                    time = costs.sites[longer][length] + times[length]
                    here += _sited(before[longer], time, losses[length], (block, length), most)
            labels.append(_unbeaten(here, most))
    return [label for row in labels for label in row]


def _returning(costs: Costs, limits: Limits) -> list[Label]:
    """The labels behind the last block when every block from the first site on chooses among all tokens."""
    depth = len(costs.blocks)
    last = depth - 1 if limits.last is None else min(limits.last, depth - 1)
    first = limits.first if limits.sites is None else max(limits.first, last - limits.sites + 1)
    lengths = [i for i, count in enumerate(costs.counts) if i > 0 and count >= limits.least]
    dense: list[Label] = [(costs.fixed, 0.0, 0, ())]
    begun: list[Label] = []  # no lengths in this state: the next block does not ask what this one had
    for block in range(last + 1):
        # The blocks behind the last site keep its length.
        run = slice(block, block + 1 if block < last else depth)
        before = [*begun, *dense] if block >= first else begun
        here: list[Label] = []
        for length in lengths:
            time = costs.sites[0][length] + sum(row[length] for row in costs.blocks[run])
            loss = sum(row[length] for row in costs.losses[run])
            here += _sited(before, time, loss, (block, length))
        begun = _unbeaten(here)
        dense = _extended(dense, sum(row[0] for row in costs.blocks[run]), 0.0)
    return [*dense, *begun]


def _most_sites(costs: Costs, limits: Limits) -> int | None:
    """The limit on sites; None when it limits nothing: labels need not differ by them then."""
    possible = min(len(costs.counts) - 1, len(costs.blocks))
    return None if limits.sites is None or limits.sites >= possible else limits.sites


# Labels -----------------------------------------------------------------------------------------------------


def _extended(labels: list[Label], time: float, loss: float) -> list[Label]:
    """The labels behind one more block, without a site."""
    return [(t + time, lost + loss, sites, path) for t, lost, sites, path in labels]


def _sited(
    labels: list[Label], time: float, loss: float, site: tuple[int, int], most: int | None = None
) -> list[Label]:
    """The labels behind one more block that has a site, those with the most sites already left out."""
    return [
        (t + time, lost + loss, sites + 1, (*site, path))
        for t, lost, sites, path in labels
        if most is None or sites < most
    ]


def _unbeaten(labels: list[Label], most: int | None = None) -> list[Label]:
    """The labels that no other one beats, by rising time.

    Where sites are limited (`most`), a label beats only those with as many sites or more: what these can
    still become, it can too.
    """
    least = [math.inf] * (1 if most is None else most + 1)  # loss so far of labels with at most so many sites
    kept = []
    for label in sorted(labels):
        loss, sites = label[1], 0 if most is None else label[2]
        if loss < least[sites]:
            kept.append(label)
            least[sites:] = [min(loss, other) for other in least[sites:]]
    return kept


def _choice(label: Label, costs: Costs, limits: Limits) -> Choice:
    """A finished label's path written out."""
    time, loss, _, path = label
    leaving: dict[int, int] = {}  # by block
    while path:
        block, length, path = path
        leaving[block] = costs.counts[length]
    counts: list[int] = []
    sites: list[Site] = []
    now = costs.counts[0]
    for block in range(len(costs.blocks)):
        if block in leaving:
            entering = costs.counts[0] if limits.returns else now
            now = leaving[block]
            sites.append((block, entering, now))
        counts.append(now)
    return Choice(time, loss, tuple(counts), tuple(sites))
