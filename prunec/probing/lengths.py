"""Numbers for symbolic sizes: the lengths that an operator is run at while it is watched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy
import torch
from torch import fx

from prunec import compat, ops
from prunec.errors import PolicyError
from prunec.ir.arguments import bind, chosen_from, operand

IMAGES = 2  # stands for a symbolic number of images


class Lengths:
    """Numbers for symbolic sizes: what an operator is run at while it is watched."""

    def __init__(
        self, numbers: Mapping[sympy.Symbol, int], images: int = IMAGES, *, strict: bool = False
    ) -> None:
        self.numbers = dict(numbers)  # of tokens; any other symbol counts images
        self.images = images
        self.strict = strict  # refuse a size that so many images do not have; else the recorded one is taken
        self.known: dict[sympy.Expr, int] = {}

    def size(self, size: int | torch.SymInt) -> int:
        """The number for a size; any other number, such as what is computed of a size, as it is."""
        if not isinstance(size, torch.SymInt):
            return size
        expression = compat.expression(size)
        if expression not in self.known:
            unknown = expression.free_symbols - set(self.numbers)
            numbers = {**self.numbers, **dict.fromkeys(unknown, self.images)}
            try:
                self.known[expression] = int(expression.subs(numbers))
            except ZeroDivisionError as error:  # so few images are none of the model's groups: clips of 8
                if self.strict:
                    raise _no_group(size, self.images) from error
                self.known[expression] = compat.hint(size)
        return self.known[expression]

    def shape(self, value: torch.Tensor) -> tuple[int, ...]:
        """The numbers for a shape."""
        return tuple(map(self.size, value.shape))

    def counts_images(self, size: int | torch.SymInt) -> bool:
        """Whether a size has to do with the number of images."""
        return bool(compat.expression(size).free_symbols - set(self.numbers))

    def longer(self, size: int | torch.SymInt, extra: int) -> Lengths:
        """The same, but with more of the tokens that a size counts."""
        counted = compat.expression(size).free_symbols & set(self.numbers)
        more = {symbol: self.numbers[symbol] + extra for symbol in counted}
        return Lengths({**self.numbers, **more}, self.images, strict=self.strict)


def _no_group(size: torch.SymInt, images: int) -> PolicyError:
    return PolicyError(
        f"the model's own code makes groups of its images, and {images} of them are none",
        where=f"size {size}",
        remedy="use mode static, with a policy whose selector is top_k",
    )


def settings(target: fx.Graph, images: int) -> list[Lengths]:
    """The lengths that a program runs at: its own counts, and all tokens, as in the certificate."""
    kept: dict[Any, int] = {}
    full: dict[Any, int] = {}
    for node in target.nodes:
        if node.target not in ops.SELECTIONS:
            continue
        score = chosen_from(node)
        tokens, symbol = score.meta["val"].shape[1], compat.expression(node.meta["val"].shape[1])
        entering, full[symbol] = Lengths(kept, images).size(tokens), Lengths(full, images).size(tokens)
        if node.target in ops.FIXED:
            given = bind(node)
            fused = given.get("fused", False)
            kept[symbol] = min(entering, given["keep"] + given["prefix"] + given["suffix"] + int(fused))
        else:  # images differ; any length will do that has the protected rows
            protected = _protected(score)
            kept[symbol] = min(entering, protected + max(2, (entering - protected) // 2))
    return [Lengths(kept, images), Lengths(full, images)] if kept else [Lengths({}, images)]


def _protected(kept: fx.Node) -> int:
    """How many rows what passes a selection must have."""
    while kept.target not in ops.MASKS:
        kept = operand(kept, "kept")
    given = bind(kept)
    return int(given["prefix"]) + int(given["suffix"])
