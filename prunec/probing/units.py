"""An operator with one result, and how a part of this result comes about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx

from prunec.ir.graph import is_getitem, is_tensor
from prunec.ir.sizes import Position
from prunec.probing.boxes import Box, Rows


@dataclass(frozen=True)
class Unit:
    """An operator that yields one tensor; for an element of a tuple, the call that made the tuple."""

    node: fx.Node
    call: fx.Node
    element: int | None
    operands: tuple[fx.Node, ...]  # tensors

    @property
    def target(self) -> Callable[..., Any]:
        """The operator."""
        assert callable(self.call.target)
        return self.call.target

    @property
    def is_masked(self) -> bool:
        """Whether an operand is a mask (integers are not watched)."""
        return not all(node.meta["val"].is_floating_point() for node in self.operands)


def unit_of(node: fx.Node) -> Unit:
    """The unit that yields a node's value."""
    made = node.args[0] if is_getitem(node) else node
    assert isinstance(made, fx.Node)
    element = node.args[1] if is_getitem(node) else None
    assert element is None or isinstance(element, int)
    return Unit(node, made, element, tuple(filter(is_tensor, made.all_input_nodes)))


@dataclass(frozen=True)
class Reads:
    """How a part of a unit's result comes about."""

    boxes: tuple[Box | None, ...]  # what is read of each operand; None: nothing
    sizes: tuple[tuple[Position, Rows | int], ...] = ()  # arguments that change, and to what number
    piece: int | None = None  # the result is no more than this operand's box ..
    squeezed: tuple[int, ...] = ()  # .. without these axes
    whole_flops: int = 0  # floating-point operations of all of the result
    flops: int = 0  # and of this part
