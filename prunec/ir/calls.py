"""Types of calls under symbolic token counts, each distinct call typed once.

A call has a type if PyTorch accepts it on fake tensors, no symbol (a token count, the batch) is forced to a
value, and putting the original length back for the token counts gives exactly what was recorded at capture.
"""

from __future__ import annotations

import logging
from typing import Any

import sympy
import torch
from torch import fx

from prunec import compat
from prunec.ir.sizes import sizes_of

log = logging.getLogger(__name__)

#: What an operator raises for operands that it does not take, and PyTorch's shape functions with it.
OPERATOR_ERRORS = (RuntimeError, TypeError, ValueError, IndexError, ArithmeticError, AssertionError)


class CallTypes:
    """Runs calls on fake tensors and remembers the results, so that equal blocks are typed once."""

    def __init__(self, mode: compat.FakeMode, tokens: int) -> None:
        self.mode = mode
        self.tokens = tokens  # the original length
        self.symbols: set[sympy.Symbol] = set()  # the token counts
        self.known: dict[Any, Any] = {}

    def type_of(self, target: Any, args: Any, kwargs: Any, recorded: Any) -> Any:
        """What the call yields; None if it has no type or does not give `recorded` at the original length."""
        key = (target, signature(args), signature(kwargs), signature(recorded))
        if key not in self.known:
            self.known[key] = self._type(target, args, kwargs, recorded)
        return self.known[key]

    def _type(self, target: Any, args: Any, kwargs: Any, recorded: Any) -> Any:
        values = fx.map_arg((args, kwargs), lambda source: source.meta["val"])
        try:
            result, forced = compat.evaluate(self.mode, target, values[0], values[1])
        except OPERATOR_ERRORS as error:
            log.debug("%s does not type: %s: %s", target, type(error).__name__, error)
            return None
        found, expected = compat.tree_leaves(result), compat.tree_leaves(recorded)
        fits = len(found) == len(expected) and all(map(self._same, found, expected))
        return result if fits and not forced else None

    def _same(self, found: Any, recorded: Any) -> bool:
        if isinstance(found, torch.Tensor) and isinstance(recorded, torch.Tensor):
            return tuple(map(self.at_full_length, sizes_of(found))) == sizes_of(recorded)
        if isinstance(found, int | torch.SymInt) and isinstance(recorded, int | torch.SymInt):
            return bool(self.at_full_length(compat.expression(found)) == compat.expression(recorded))
        return type(found) is type(recorded)

    def at_full_length(self, size: sympy.Expr) -> sympy.Expr:
        """A size with the original length in place of every token count."""
        counts = size.free_symbols & self.symbols
        return size.subs(dict.fromkeys(counts, self.tokens)) if counts else size


def signature(value: Any) -> Any:
    """A hashable description of arguments: tensors by type, sizes by expression, the rest by value."""
    if isinstance(value, fx.Node):
        return signature(value.meta.get("val"))
    if isinstance(value, torch.Tensor):
        strides = tuple(compat.expression(stride) for stride in value.stride())
        return (sizes_of(value), strides, value.dtype, value.device)
    if isinstance(value, torch.SymInt):
        return compat.expression(value)
    if isinstance(value, list | tuple):
        return tuple(signature(item) for item in value)
    if isinstance(value, dict):
        return tuple((key, signature(item)) for key, item in value.items())
    return value
