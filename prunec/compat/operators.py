"""What a schema says of an ATen operator: its name, its arguments, whether it is random or in place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = [
    "DispatchMode",
    "argument_names_of",
    "is_aten",
    "is_random",
    "is_unset",
    "library_of",
    "mutates",
    "op_name",
    "overload_with_tensors",
    "positional",
    "qualified_name",
    "run_composed",
    "symbolic_positions",
    "whole_numbers",
]

DispatchMode = TorchDispatchMode


def is_aten(target: object) -> bool:
    """Whether an FX target is one overload of an ATen (or custom) operator."""
    return isinstance(target, torch._ops.OpOverload)


def op_name(target: object) -> str:
    """`reshape` for aten.reshape.default, `gather` for a Python function of that name."""
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.split("::")[-1]
    if isinstance(target, torch._ops.HigherOrderOperator):
        return str(target.name())
    return getattr(target, "__name__", str(target))


def qualified_name(target: object) -> str:
    """`aten::mm` for each overload of it; the name alone for operators that take functions."""
    return target._schema.name if isinstance(target, torch._ops.OpOverload) else op_name(target)


def library_of(target: object) -> str | None:
    """`aten` for aten.mm.default, the name of the library of any other operator; None for functions."""
    return target.namespace if isinstance(target, torch._ops.OpOverload) else None


def positional(target: object, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """The arguments in the order of the schema, up to the last one given; None for those left out."""
    names = argument_names_of(target)[len(args) :]
    last = max((place for place, name in enumerate(names, 1) if name in kwargs), default=0)
    return [*args, *(kwargs.get(name) for name in names[:last])]


def run_composed(target: Any, mode: TorchDispatchMode, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Call an operator inside `mode`, which sees the operators that it is composed of, if it is of others."""
    if isinstance(target, torch._ops.HigherOrderOperator):
        return NotImplemented  # PyTorch then says that the mode cannot handle it
    if target is not torch.ops.prim.device.default:
        with mode:
            result = target.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
    return target(*args, **kwargs)


def argument_names_of(target: object) -> list[str]:
    """The names of an ATen operator's arguments, in order."""
    return [argument.name for argument in target._schema.arguments] if is_aten(target) else []  # type: ignore[attr-defined]


def overload_with_tensors(target: object, places: Sequence[tuple[int | str, ...]]) -> object | None:
    """The overload of an operator that takes tensors at these arguments, and all others as `target` does."""
    if not isinstance(target, torch._ops.OpOverload):
        return None
    names = argument_names_of(target)
    wanted = {name if isinstance(name, str) else names[name] for name, *rest in places if not rest}
    overloads = [getattr(target.overloadpacket, name) for name in target.overloadpacket.overloads()]
    for overload in (target, *overloads):
        kinds = {
            argument.name: _without_option(argument.real_type) for argument in overload._schema.arguments
        }
        if list(kinds) == names and all(isinstance(kinds[name], torch.TensorType) for name in wanted):
            return overload if len(wanted) == len(places) else None
    return None


def mutates(target: object) -> bool:
    """Whether calling the operator changes one of its arguments."""
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


def is_random(target: object) -> bool:
    """Whether two calls with equal arguments may differ."""
    return is_aten(target) and torch.Tag.nondeterministic_seeded in target.tags  # type: ignore[attr-defined]


def is_unset(target: object) -> bool:
    """Whether an operator yields memory that was not written to."""
    return is_aten(target) and "empty" in op_name(target)


def symbolic_positions(target: object, args: Sequence[Any]) -> Iterator[tuple[int, ...]]:
    """Where `args` may hold a size: (argument,) or (argument, element), by the operator's schema."""
    return _positions(target, args, (torch.SymIntType,))


def whole_numbers(target: object, args: Sequence[Any]) -> Iterator[tuple[int, ...]]:
    """Where `args` hold sizes, numbers of dimensions and other integers that are no operand."""
    return _positions(target, args, (torch.SymIntType, torch.IntType))


def _positions(target: object, args: Sequence[Any], kinds: tuple[type, ...]) -> Iterator[tuple[int, ...]]:
    if not isinstance(target, torch._ops.OpOverload):
        return
    for place, (argument, value) in enumerate(zip(target._schema.arguments, args, strict=False)):
        kind = _without_option(argument.real_type)
        while isinstance(kind, torch.ListType):
            kind = _without_option(kind.getElementType())
        if not isinstance(kind, kinds) or value is None:
            continue
        if isinstance(value, (list, tuple)):
            yield from ((place, element) for element in range(len(value)))
        else:
            yield (place,)


def _without_option(kind: Any) -> Any:
    """The type that an argument has unless it is None."""
    return kind.getElementType() if isinstance(kind, torch.OptionalType) else kind
