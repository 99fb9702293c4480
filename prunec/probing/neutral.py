"""What rows that do not count may hold so that an operator does not see them.

sum(x, 1)      zeros
mean(x, 1)     zeros, and the result scaled by all rows over those that count
amax(x, 1)     minus infinity
cumsum(x, 1)   nothing helps
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from prunec.probing.lengths import Lengths
from prunec.probing.numbers import Noise, Sign, same
from prunec.probing.probe import Probe

_EXTRA = 5  # rows more in a trial of what makes no difference
#: One trial each: a maximum shows zeros among numbers below zero, a minimum among those above.
_SIGNS: tuple[Sign, ...] = ("both", "below zero", "above zero")


@dataclass(frozen=True)
class Neutral:
    """What rows of an operand may hold so that a call does not see them."""

    value: float
    mean: bool  # if the result is scaled as well: by all rows over those that count


def neutral(
    node: fx.Node, operand: fx.Node, axes: tuple[int, int | None], lengths: Lengths
) -> Neutral | None:
    """What extra rows of one operand must hold so that a call yields what it does without them, if anything.

    Zero for a sum, minus infinity for a maximum or a softmax, zero and a scale for a mean.

    Args:
        node: the call, with the types of its operands in their meta.
        operand: the one that is to be filled.
        axes: the rows' axis of the operand, and of the result (None: it has none).
        lengths: numbers for symbolic sizes; those of the operand's rows are made longer.
    """
    trials = [_Trial(node, operand, axes, lengths, number) for number in range(len(_SIGNS))]
    for value in (0.0, float("-inf"), float("inf")):
        for mean in (False, True) if value == 0.0 else (False,):
            found = Neutral(value, mean)
            if all(trial.shows_nothing_of(found) for trial in trials):
                return found
    return None


class _Trial:
    """A call on operands with some rows more, and without these."""

    def __init__(
        self, node: fx.Node, operand: fx.Node, axes: tuple[int, int | None], short: Lengths, number: int
    ) -> None:
        self.operand, self.axes = operand, axes
        rows = operand.meta["val"].shape[axes[0]]
        self.long = Probe(node, short.longer(rows, _EXTRA), number, _SIGNS[number])
        self.short = Probe(node, short, number)
        self.rows = self.long.lengths.size(rows)
        noise = Noise(number)
        self.extra = torch.zeros(self.rows, dtype=torch.bool)
        self.extra[noise.order(self.rows)[:_EXTRA]] = True
        counts = (~self.extra).nonzero()[:, 0]
        self.counts = counts[noise.order(len(counts))]  # in another order, which nothing may depend on either

    def shows_nothing_of(self, found: Neutral) -> bool:
        """Whether the call with extra rows, those of one operand filled, gives what it gives without them."""
        return bool(self.long.answer(lambda: self._is_hidden(found)))

    def _is_hidden(self, found: Neutral) -> bool:
        value = self.long.operand(self.operand)
        shape = [1] * value.dim()
        shape[self.axes[0]] = self.rows
        filled = value.masked_fill(self.extra.view(shape).to(value.device), found.value)
        with_extra = self.long.run({self.operand: filled})
        without = self.short.run({source: self._fewer(source) for source in self.long.operands})
        if not isinstance(with_extra, Tensor):
            return False  # several values: none of them is looked at
        if self.axes[1] is not None:
            with_extra = with_extra.index_select(self.axes[1], self.counts.to(with_extra.device))
        if found.mean and with_extra.is_floating_point():
            with_extra = with_extra * (self.rows / len(self.counts))
        return same(with_extra, without)

    def _fewer(self, source: fx.Node) -> Any:
        """An operand without the extra rows: on axes that would be shorter, the rows that count."""
        value, recorded = self.long.operand(source), source.meta["val"]
        if isinstance(recorded, torch.SymInt):
            return self.short.lengths.size(recorded)
        if not isinstance(value, Tensor):
            return value
        for axis, size in enumerate(self.short.lengths.shape(recorded)):
            if size != value.shape[axis]:
                value = value.index_select(axis, self.counts.to(value.device))
        return value
