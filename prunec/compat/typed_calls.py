"""Calls on fake tensors, equal ones typed once.

    linear(x: [b, n1, 64], w: [64, 64])  was typed  ->  linear(x: [b, n2, 64], w) is known: [b, n2, 64]

PyTorch takes milliseconds to type a call on symbolic sizes, and the blocks of a model repeat the same few.
Two calls are equal if one is the other with other token counts (see `new_symbol`) in the same places. What
came of them is kept with the fake-tensor mode. A call that PyTorch refuses is refused again.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from prunec.compat import fake_tensors
from prunec.compat.fake_tensors import expression, symbols_of
from prunec.compat.trees import tree_leaves, tree_map

__all__ = ["evaluate"]

#: What an operator raises for operands that it does not take.
_REFUSALS = (RuntimeError, TypeError, ValueError, IndexError, ArithmeticError, AssertionError)
#: Values that are told apart by what they equal.
_PLAIN = (
    int, float, complex, bool, str, types.NoneType, types.EllipsisType, torch.dtype, torch.device,
    torch.layout, torch.memory_format,
)  # fmt: skip
#: What does the same whenever it is called with equal operands.
_FUNCTIONS = (OpOverload, types.FunctionType, types.BuiltinFunctionType)

_Symbols = tuple[sympy.Symbol, ...]


@dataclass(frozen=True)
class _Found:
    """What came of a call."""

    symbols: _Symbols  # its token counts, in order of appearance
    value: Any = None
    forced: frozenset[sympy.Symbol] = frozenset()
    refusal: Exception | None = None


def evaluate(
    mode: FakeTensorMode, target: Callable[..., Any], args: Any, kwargs: Any
) -> tuple[Any, set[sympy.Symbol]]:
    """Run a function on fake tensors; also the symbols that it forced to a value (undone afterwards)."""
    try:
        call = _Call(mode, target, args, kwargs)
    except _UnknownError:
        return fake_tensors.evaluate(mode, target, args, kwargs)
    known: dict[Any, _Found] = vars(mode).setdefault("_prunec_typed_calls", {})
    found = known.get(call.key)
    if found is None:
        found = _typed(mode, target, args, kwargs, call.symbols)
        if found.refusal is not None or call.explains(found.value):
            known[call.key] = found
    if found.refusal is not None:
        raise found.refusal.with_traceback(None)
    names = dict(zip(found.symbols, call.symbols, strict=True))
    if all(old is new for old, new in names.items()):
        return found.value, set(found.forced)
    forced = {names.get(symbol, symbol) for symbol in found.forced}
    return tree_map(lambda leaf: _renamed(mode, leaf, names), found.value), forced


def _typed(mode: FakeTensorMode, target: Any, args: Any, kwargs: Any, symbols: _Symbols) -> _Found:
    try:
        value, forced = fake_tensors.evaluate(mode, target, args, kwargs)
    except _REFUSALS as error:
        return _Found(symbols, refusal=error.with_traceback(None))
    return _Found(symbols, value, frozenset(forced))


class _UnknownError(Exception):
    """Not all that a call depends on can be told."""


class _Call:
    """What a call depends on: its key, the same for calls that are equal."""

    def __init__(self, mode: FakeTensorMode, target: Any, args: Any, kwargs: Any) -> None:
        if not isinstance(target, _FUNCTIONS):
            raise _UnknownError
        self.counts = symbols_of(mode)
        self.places: dict[sympy.Symbol, sympy.Symbol] = {}  # token count -> what stands for it in the key
        self.others: set[sympy.Basic] = set()
        state = (
            torch.get_default_dtype(),
            torch.is_autocast_enabled("cpu"),
            torch.is_autocast_enabled("cuda"),
        )
        self.key = (target, self._described(args), self._described(kwargs), state)
        self.symbols: _Symbols = tuple(self.places)

    def explains(self, value: Any) -> bool:
        """Whether a result is of these operands' sizes, and so the same for equal ones."""
        known = {*self.symbols, *self.others}
        return all(_is_a_type(leaf) and _symbols_in(leaf) <= known for leaf in tree_leaves(value))

    def _described(self, value: Any) -> Any:
        if isinstance(value, FakeTensor):
            if not _is_a_type(value):
                raise _UnknownError
            sizes = tuple(map(self._size, (*value.shape, *value.stride(), value.storage_offset())))
            return (sizes, value.dtype, value.device, value.requires_grad)
        if isinstance(value, torch.SymInt):
            return ("size", self._size(value))
        if isinstance(value, list | tuple):
            return (type(value), *map(self._described, value))
        if isinstance(value, dict):
            return tuple((name, self._described(item)) for name, item in value.items())
        if isinstance(value, _PLAIN):
            return (type(value), value)
        raise _UnknownError

    def _size(self, size: int | torch.SymInt) -> sympy.Expr | int:
        if not isinstance(size, torch.SymInt):
            return size
        if size.node.hint is None:  # it was read off a tensor, and each reading is another
            raise _UnknownError
        found = expression(size)
        for symbol in sorted(found.free_symbols, key=str):
            if symbol not in self.counts:
                self.others.add(symbol)
            elif symbol not in self.places:
                self.places[symbol] = sympy.Symbol(f"count{len(self.places)}", integer=True, positive=True)
        return found.xreplace(self.places)


def _is_a_type(leaf: Any) -> bool:
    """Whether a value is no more than its sizes, precision and device."""
    if isinstance(leaf, FakeTensor):
        return leaf.constant is None and leaf.layout is torch.strided
    return leaf is None or isinstance(leaf, int | float | torch.SymInt)


def _symbols_in(leaf: Any) -> set[sympy.Basic]:
    return {symbol for size in _sizes(leaf) for symbol in expression(size).free_symbols}


def _sizes(leaf: Any) -> Iterator[int | torch.SymInt]:
    if isinstance(leaf, torch.Tensor):
        yield from (*leaf.shape, *leaf.stride(), leaf.storage_offset())
    elif isinstance(leaf, torch.SymInt):
        yield leaf


def _renamed(mode: FakeTensorMode, leaf: Any, names: Mapping[sympy.Symbol, sympy.Symbol]) -> Any:
    """A type with other token counts."""
    if _symbols_in(leaf).isdisjoint(names):
        return leaf

    def renamed(size: int | torch.SymInt) -> Any:
        found = expression(size).xreplace(names)
        if found.is_Integer:
            return int(found)
        known = symbols_of(mode).get(found)
        assert mode.shape_env is not None
        return known if known is not None else mode.shape_env.create_symintnode(found, hint=None)

    if isinstance(leaf, torch.SymInt):
        return renamed(leaf)
    sizes, strides = tuple(map(renamed, leaf.shape)), tuple(map(renamed, leaf.stride()))
    with mode, fake_tensors.attempts():
        return torch.empty_strided(sizes, strides, dtype=leaf.dtype, device=leaf.device)
