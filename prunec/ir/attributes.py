"""What a module says of itself beside its weights: attributes, properties, and how its forward is called.

    inspect.signature(model.forward)  that of the model's own
    model.config, model.num_classes   shared, as the weights are
    model.main_input_name             of the class
    model.device, model.dtype         properties, computed on the module that takes the model's place

Methods are not among them: a captured model has its forward only.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn


class Attributes:
    """What a model says of itself, for a module that takes its place."""

    def __init__(self, original: nn.Module) -> None:
        self.kind = type(original)
        self.values = {name: value for name, value in vars(original).items() if _is_passed_on(name, value)}

    def read(self, name: str, module: nn.Module) -> Any:
        """The attribute as `module` has it in the model's place; AttributeError where there is none."""
        if name in self.values:
            return self.values[name]
        found = inspect.getattr_static(self.kind, name, None)
        if isinstance(found, property) and found.fget is not None:
            found = found.fget(module)
        elif isinstance(found, functools.cached_property):
            found = found.func(module)
        if not hasattr(self.kind, name):
            raise AttributeError(f"{self.kind.__name__!r} object has no attribute {name!r}")
        if not _is_passed_on(name, found):
            raise AttributeError(f"only the forward of {self.kind.__name__} was captured, not its {name}")
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> Attributes:
        made = copy.copy(self)
        made.values = copy.deepcopy(self.values, memo)
        return made


def settings_of(module: nn.Module) -> dict[str, Any]:
    """The switches of a model's configuration: what an input of that name stands for when it is left out."""
    config = getattr(module, "config", None)
    found: dict[str, Any] = {}
    for name, value in getattr(config, "__dict__", {}).items():
        name = name.removeprefix("_")  # of an attribute behind a property
        if isinstance(value, bool) and getattr(config, name, None) is value:
            found[name] = value
    return found


class Forward:
    """A module's forward, with the signature of the model's own: inspect.signature(module.forward)."""

    def __get__(self, module: nn.Module | None, owner: type | None = None) -> Any:
        return self if module is None else partial(module.__dict__["_signed"], module)


def signed(signature: inspect.Signature | None) -> Callable[..., Any]:
    """What runs a module's `call`, as a function of this signature."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.call(args, kwargs)

    if signature is not None:
        this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        own = signature.replace(parameters=[this, *signature.parameters.values()])
        vars(forward)["__signature__"] = own
    return forward


def _is_passed_on(name: str, value: Any) -> bool:
    """Whether it is for others to read, and no code, part of the model or descriptor."""
    return not name.startswith("_") and not callable(value) and not hasattr(type(value), "__get__")
