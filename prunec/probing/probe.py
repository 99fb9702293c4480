"""What an operator does, found by running it on random numbers.

No operator has a rule in prunec. Where a rewrite needs to know how an operator treats the rows of a tensor,
it is run on random tensors of the recorded shapes, once as they are and once changed. A `Probe` is one call
at given lengths; the questions are functions over it (questions.py, neutral.py, rows.py, reads.py). An answer
may be that it is not known: a `NoMatch`, false as any, with the reason.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from torch import fx
from torch.fx.node import map_aggregate

from prunec.ir.calls import OPERATOR_ERRORS
from prunec.ir.graph import op, place
from prunec.ir.sizes import Position, with_sizes
from prunec.probing.lengths import Lengths
from prunec.probing.numbers import Noise, Sign, seeded, single_precision
from prunec.structure import NoMatch

log = logging.getLogger(__name__)

Answer = bool | NoMatch


class Probe:
    """One call, run at some lengths on seeded random numbers, or on others in their place."""

    def __init__(self, call: fx.Node, lengths: Lengths, seed: int = 0, sign: Sign = "above zero") -> None:
        self.call, self.lengths, self.sign = call, lengths, sign
        self.noise = Noise(seed)
        self.drawn: dict[fx.Node, Any] = {}

    @property
    def operands(self) -> dict[fx.Node, Any]:
        """Random numbers for every operand."""
        return {source: self.operand(source) for source in self.call.all_input_nodes}

    def operand(self, source: fx.Node) -> Any:
        """Random numbers for one operand, the same each time."""
        if source not in self.drawn:
            self.drawn[source] = self.like(source)
        return self.drawn[source]

    @cached_property
    def result(self) -> Any:
        """What the call makes of them."""
        return self.run({})

    def like(self, source: fx.Node) -> Any:
        """New random numbers of a node's type."""
        return self.noise.like(source.meta["val"], self.lengths, self.sign)

    def run(self, given: Mapping[fx.Node, Any], sizes: Mapping[Position, Any] | None = None) -> Any:
        """What the call yields for these operands; of the others, those that are drawn.

        The same random numbers are drawn in the call each time. `sizes` changes integers of the call.
        """
        with seeded():
            return self.evaluate(given, sizes)

    def evaluate(self, given: Mapping[fx.Node, Any], sizes: Mapping[Position, Any] | None = None) -> Any:
        """The same, with gradients if the operands want any, and with new random numbers."""
        assert callable(self.call.target)
        written = with_sizes(self.call.args, sizes) if sizes else self.call.args
        plain = map_aggregate((written, self.call.kwargs), single_precision)
        args, kwargs = fx.map_arg(
            plain, lambda source: given[source] if source in given else self.operand(source)
        )
        return self.call.target(*args, **kwargs)

    def answer(self, question: Callable[[], Any]) -> Any:
        """What a question yields; unknown where the call does not run on such operands."""
        try:
            return question()
        except OPERATOR_ERRORS as error:
            return self.unknown(f"it does not run on random numbers ({type(error).__name__}: {error})")

    def unknown(self, why: str) -> NoMatch:
        """The answer where there is none."""
        found = NoMatch(f"what {op(self.call)} does is not known: {why}", self.call.name, place(self.call))
        log.debug("%s", found)
        return found
