"""A model that many tests compile is captured and recognised once, whatever each of them does with it then.

Two models are the same when their classes, settings, weights and examples are. A test gets a program of its
own that holds the weights of its own model, so what it does to them stays with it. What warns or fails is
never kept.

Test files ask for it: `pytestmark = pytest.mark.usefixtures("recognised_once")`. Those that change the first
stages of the compiler, or look at how they come about, must not. What `tests.tiny` captures and recognises is
shared in any case.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import pickle
import sys
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunec import compiler
from prunec.capture.capture import capture
from prunec.frontend.sources import Source
from prunec.ir.program import Program, with_tensors
from prunec.passes import FRONT, run_passes

#: A model with more numbers is not worth comparing.
MOST = 10_000_000
#: What nn.Module keeps of its tensors and parts, which are told apart by name.
TABLES = {"_parameters", "_buffers", "_modules"}


@dataclass
class Shared:
    """The programs that one stage made, by what they were made of."""

    kept: dict[Hashable, tuple[Any, set[str]]] = field(default_factory=dict)
    #: What keys name by identity must live as long as they do.
    alive: list[Any] = field(default_factory=list)

    def of(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], make: Callable[[], Any]
    ) -> Any:
        """The program that `make` makes of this model and example, made before or now."""
        if _numbers(module) > MOST:
            return make()
        key = _key(module, args, kwargs)
        if key in self.kept:
            program, names = self.kept[key]
            return _with_weights(program, {name: _tensors(module)[name] for name in names})
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = make()
        for warning in caught:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        if not caught:
            own = _tensors(module)
            names = {name for name, tensor in _tensors(found.module).items() if own.get(name) is tensor}
            self.kept[key] = copy.deepcopy(found), names
            self.alive.append((module, args, kwargs))
        return found


_CAPTURED, _PASSED, _RECOGNISED = Shared(), Shared(), Shared()


def captured_once(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """`capture`, where what it makes is only what a test starts from."""
    return _CAPTURED.of(module, args, kwargs, lambda: capture(module, args, kwargs))


def passed_once(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The same with the passes up to recognition behind it."""
    return _PASSED.of(module, args, kwargs, lambda: run_passes(FRONT, captured_once(module, args, kwargs)))


def recognised_once() -> Iterator[None]:
    """Everybody who calls the compiler's `recognise` gets what it found in an equal source before."""
    original = compiler.recognise

    def recognise(source: Source) -> Any:
        if source.exported is not None:
            return original(source)
        return _RECOGNISED.of(source.module, source.args, source.kwargs, lambda: original(source))

    with pytest.MonkeyPatch.context() as patch:
        for name, module in list(sys.modules.items()):
            if name.split(".")[0] in ("prunec", "tests") and vars(module).get("recognise") is original:
                patch.setattr(module, "recognise", recognise)
        yield


def _with_weights(program: Program, weights: dict[str, Tensor]) -> Program:
    """A program of its own that holds these tensors; of its constants it gets copies."""
    by_tensor = {id(tensor): weights.get(name) for name, tensor in _tensors(program.module).items()}

    def change(tensor: Tensor) -> Tensor:
        given = by_tensor.get(id(tensor))
        return copy.deepcopy(tensor) if given is None else given

    return program.replace(module=with_tensors(program.module, change))


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    parameters = module.named_parameters(remove_duplicate=False)
    return {**dict(parameters), **dict(module.named_buffers(remove_duplicate=False))}


def _numbers(module: nn.Module) -> int:
    return sum(tensor.numel() for tensor in _tensors(module).values())


def _key(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Hashable:
    parts = tuple(
        (name, _class(type(part)), _settings(part))
        for name, part in module.named_modules(remove_duplicate=False)
    )
    ties: dict[int, str] = {}
    tensors = tuple(
        (name, ties.setdefault(id(tensor), name), _content(tensor))
        for name, tensor in _tensors(module).items()
    )
    leaves, tree = pytree.tree_flatten((args, dict(kwargs)))
    mode = torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
    return parts, tensors, tuple(map(_value, leaves)), str(tree), mode


def _class(kind: type) -> Hashable:
    """A class by its code; one that a function made may close over anything."""
    if "<locals>" in kind.__qualname__:
        return id(kind)
    code = getattr(kind.forward, "__code__", None)
    try:
        text = Path(inspect.getfile(kind)).read_bytes()
    except (OSError, TypeError):
        return id(kind)
    return kind.__module__, kind.__qualname__, hashlib.sha1(text).digest(), code and code.co_code


def _settings(part: nn.Module) -> Hashable:
    return tuple((name, _value(value)) for name, value in sorted(vars(part).items()) if name not in TABLES)


def _value(value: Any) -> Hashable:
    """A value by what it is, or which it is where that cannot be told."""
    if isinstance(value, Tensor):
        return _content(value)
    if isinstance(value, str | int | float | bool | None):
        return type(value).__name__, repr(value)
    try:
        return pickle.dumps(value)
    except Exception:  # noqa: BLE001  whatever the value's own code raises
        return id(value)


def _content(tensor: Tensor) -> Hashable:
    plain = tensor.detach().cpu().contiguous()
    digest = hashlib.sha1(plain.reshape(-1).view(torch.uint8).numpy().tobytes()).digest()
    return (
        digest, tuple(tensor.shape), tensor.stride(), str(tensor.dtype), str(tensor.device),
        tensor.requires_grad, type(tensor).__name__,
    )  # fmt: skip
