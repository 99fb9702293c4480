"""Makes of inert values what they describe: tensors, plain containers, and instances of trusted classes.

No constructor of the file's choosing runs. A state is a dict of names that shadow no method, modules carry no
hooks, and tensors lie within the numbers that the file holds. Each value is made once, however often it is
referred to, and all copies together are bounded: a file cannot describe more than it holds.
"""

from __future__ import annotations

import inspect
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prunec import compat
from prunec.files import trust
from prunec.files.opcodes import MOST_OPCODES, Call, Named, NotTrusted, Pairs
from prunec.files.storages import DTYPES, STORAGES, Numbers, number_type

MOST_DEPTH = 120
#: What module attributes may hold as it is.
PLAIN_VALUES = (bool, int, float, str, bytes, type(None))
#: What the attributes of a tensor may hold.
_TENSOR_ATTRIBUTES = (*PLAIN_VALUES, torch.Size, torch.dtype, torch.device)
#: The names of the dicts of hooks that every module has.
HOOKS = frozenset(name for name in vars(nn.Module()) if "hook" in name)
_SETS = ("__builtin__.set", "builtins.set")


class Builder:
    """Makes of inert values what they describe."""

    def __init__(self, numbers: Numbers) -> None:
        self.numbers = numbers
        self.most_bytes = max(numbers.file_size, 1 << 20)
        self.built: dict[int, Any] = {}
        self.kept: list[Any] = []  # or an id could be given to another object
        self.open: set[int] = set()  # the modules whose state is being built
        self.depth = 0
        self.left = MOST_OPCODES  # elements that containers and states may hold altogether

    def build(self, value: Any) -> Any:
        """What a value of the file stands for."""
        if type(value) in PLAIN_VALUES:
            return value
        if id(value) in self.open:
            raise NotTrusted(f"holds a {value.name} that contains itself")
        if id(value) in self.built:
            return self.built[id(value)]
        self.kept.append(value)
        self.depth += 1
        if self.depth > MOST_DEPTH:
            raise NotTrusted(f"nests more than {MOST_DEPTH} deep")
        try:
            return self._made(value)
        finally:
            self.depth -= 1

    def _made(self, value: Any) -> Any:
        if isinstance(value, Call):
            return self._called(value)
        if isinstance(value, Pairs):
            return self._pairs(value, {})
        if isinstance(value, Named):
            return self._keep(value, DTYPES.get(value.name) or _reference(value.name))
        if type(value) is list:
            made = self._keep(value, [])
            made.extend(map(self.build, value))
            return made
        if type(value) is tuple:
            return self._keep(value, tuple(map(self.build, value)))
        raise NotTrusted("holds numbers that are no tensor's")

    def _keep(self, value: Any, made: Any) -> Any:
        self.built[id(value)] = made
        return made

    def _spend(self, elements: int) -> None:
        self.left -= elements
        if self.left < 0:
            raise NotTrusted("describes far more than it holds")

    def _pairs(self, value: Pairs, made: dict[Any, Any]) -> Any:
        self._keep(value, made)
        for key, item in value.pairs:
            made[_checked_key(key)] = self.build(item)
        return made

    def _called(self, call: Call) -> Any:
        if call.name in _CALLED:
            if type(call.args) is not tuple or call.elements or (call.name != _ORDERED and call.pairs):
                raise NotTrusted(f"calls {call.name} in a way that torch.save never does")
            return self._keep(call, _CALLED[call.name](self, call))
        if call.name in KNOWN or not call.name:
            raise NotTrusted(f"calls {call.name or 'what is no name'}")
        if call.pairs or call.elements:
            raise NotTrusted(f"puts elements into {call.name}")
        if call.name == trust.PARTIAL:
            return self._keep(call, self._partial(call))
        return self._object(call)

    # Objects ------------------------------------------------------------------------------------------------

    def _object(self, call: Call) -> Any:
        kind, cls = _found(call.name)
        if kind == "enum":
            return self._keep(call, _member(cls, call))
        if kind == "function":
            raise NotTrusted(f"calls {call.name}")
        if call.args != () or type(call.state) is not Pairs:
            raise NotTrusted(f"does not give {call.name} a state")
        made = self._keep(call, cls.__new__(cls))
        self.open.add(id(call))
        state = self.build(call.state)
        self.open.remove(id(call))
        self._spend(len(state))
        _check_state(cls, state, call.name)
        if kind == "module":
            _check_module(state, call.name)
            made.__setstate__(state)
        else:
            vars(made).update(state)
        return made

    def _partial(self, call: Call) -> Any:
        """functools.partial(function, *args, **kwargs), whose pickled state repeats the function."""
        if type(call.state) is not tuple or len(call.state) != 4:
            raise NotTrusted(f"gives {trust.PARTIAL} a state of its own")
        function, args, kwargs, attributes = call.state
        if attributes is not None and (type(attributes) is not Pairs or attributes.pairs):
            raise NotTrusted(f"gives {trust.PARTIAL} a state of its own")
        if not isinstance(function, Named):
            raise NotTrusted(f"gives {trust.PARTIAL} something else than a function")
        if type(args) is not tuple or type(kwargs) is not Pairs:
            raise NotTrusted(f"gives {trust.PARTIAL} arguments that are none")
        keywords = self.build(kwargs)
        if any(type(key) is not str for key in keywords):
            raise NotTrusted(f"gives {trust.PARTIAL} arguments that are none")
        self._spend(len(args) + len(keywords))
        return partial(_reference(function.name), *self.build(args), **keywords)

    # Tensors ------------------------------------------------------------------------------------------------

    def _tensor(self, call: Call) -> Tensor:
        stored, offset, size, stride = call.args[:4]
        key, dtype = number_type(stored)
        self._spend(1)
        if not all(
            type(sides) is tuple and all(type(n) is int and n >= 0 for n in sides) for sides in (size, stride)
        ):
            raise NotTrusted("holds a tensor whose shape is none")
        if type(offset) is not int or offset < 0 or len(size) != len(stride) or len(size) > 64:
            raise NotTrusted("holds a tensor whose shape is none")
        if math.prod(size) * dtype.itemsize > self.most_bytes:
            raise NotTrusted(f"holds a tensor of shape {list(size)}, more than the file's own size")
        held = self.numbers.of(key)
        last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
        if math.prod(size) and (last + 1) * dtype.itemsize > len(held):
            raise ValueError(f"it holds a tensor of shape {list(size)} without all its numbers")
        return torch.empty(0, dtype=dtype).set_(held.untyped_storage(), offset, size, stride)

    def _parameter(self, call: Call) -> Tensor:
        made = self.build(call.args[0])
        if type(made) is not Tensor or type(call.args[1]) is not bool:
            raise NotTrusted("holds a parameter that is no tensor")
        return nn.Parameter(made.detach(), requires_grad=call.args[1])

    def _parameter_with_state(self, call: Call) -> Tensor:
        return self._with_attributes(self._parameter(call), call.args[3])

    def _tensor_with_state(self, call: Call) -> Tensor:
        function, kind, args, state = call.args
        if not isinstance(function, Named) or not isinstance(kind, Named) or kind.name != "torch.Tensor":
            raise NotTrusted("holds a tensor that is not plain")
        if function.name != _TENSOR or type(args) is not tuple:
            raise NotTrusted(f"makes a tensor by {function.name}")
        return self._with_attributes(self._tensor(Call(function, args)), state)

    def _with_attributes(self, made: Tensor, state: Any) -> Tensor:
        if type(state) is not Pairs:
            raise NotTrusted("gives a tensor a state that is no dict")
        attributes = self.build(state)
        self._spend(len(attributes))
        for name, value in attributes.items():
            if type(value) not in _TENSOR_ATTRIBUTES or type(name) is not str or hasattr(Tensor, name):
                raise NotTrusted(f"gives a tensor the attribute {name!r}")
        vars(made).update(attributes)
        return made

    # Other values -------------------------------------------------------------------------------------------

    def _ordered(self, call: Call) -> Any:
        if call.args:
            raise NotTrusted(f"calls {_ORDERED} with arguments")
        return self._pairs(call, OrderedDict())  # without the attributes that it may have

    def _one(self, call: Call, kind: type[list[Any]] | type[tuple[Any, ...]]) -> Any:
        value = call.args[0] if len(call.args) == 1 and call.state is None else None
        if not isinstance(value, kind):
            raise NotTrusted(f"does not give {call.name} one value")
        self._spend(len(value))
        return value

    def _set(self, call: Call) -> set[Any]:
        return set(map(_checked_key, self._one(call, list)))

    def _size(self, call: Call) -> torch.Size:
        return torch.Size(self._one(call, tuple))

    def _device(self, call: Call) -> torch.device:
        if not call.args or type(call.args[0]) is not str or any(type(n) is not int for n in call.args[1:]):
            raise NotTrusted(f"does not give {call.name} a device")
        return torch.device(*call.args)

    def _bytes(self, call: Call) -> bytes:
        if len(call.args) != 2 or type(call.args[0]) is not str or call.args[1] != "latin1":
            raise NotTrusted(f"calls {call.name} for something else than bytes")
        self._spend(len(call.args[0]))
        return call.args[0].encode("latin1")


_ORDERED = "collections.OrderedDict"
_TENSOR = compat.REBUILD_TENSOR
#: What may be called, by the names that torch.save writes, and what is done in its place.
_CALLED: dict[str, Callable[[Builder, Call], Any]] = {
    _TENSOR: Builder._tensor,
    "torch._utils._rebuild_tensor": Builder._tensor,
    "torch._utils._rebuild_parameter": Builder._parameter,
    "torch._utils._rebuild_parameter_with_state": Builder._parameter_with_state,
    "torch._tensor._rebuild_from_type_v2": Builder._tensor_with_state,
    _ORDERED: Builder._ordered,
    **dict.fromkeys(_SETS, Builder._set),
    "torch.Size": Builder._size,
    "torch.device": Builder._device,
    "_codecs.encode": Builder._bytes,
}
#: Names that are known here and need no trust: nothing is looked up for them.
KNOWN = frozenset({*_CALLED, *DTYPES, *STORAGES, "torch.Tensor"})


def _checked_key(key: Any) -> Any:
    """A key as it is: text or a number. Others could all have one hash, or take forever to be hashed."""
    if type(key) is str or (type(key) in (int, bool) and abs(key) < 2**60):
        return key
    raise NotTrusted(f"has a key, a {type(key).__name__}, that is neither text nor a number of usual size")


def _found(name: str) -> tuple[trust.Kind, Any]:
    found = trust.find(name)
    if found is None:  # it was refused already
        raise NotTrusted(f"wants {name}")
    return found


def _reference(name: str) -> Any:
    """A function, or a class of layers, that is held and not called."""
    if name in KNOWN or name == trust.PARTIAL:
        raise NotTrusted(f"holds {name} itself, not an instance of it")
    kind, found = _found(name)
    if kind != "function" and not trust.is_layer(name):
        raise NotTrusted(f"holds {name} itself, not an instance of it")
    return found


def _member(cls: Any, call: Call) -> Any:
    args = call.args
    is_value = type(args) is tuple and len(args) == 1 and type(args[0]) in (str, int)
    if not is_value or call.state is not None:
        raise NotTrusted(f"does not give {call.name} one value")
    return cls(args[0])


def _check_state(cls: type, state: Mapping[Any, Any], name: str) -> None:
    """No attribute takes the place of a method or a property of the class, or makes the class fetch code."""
    for key, value in state.items():
        if type(key) is not str or key.startswith("__"):
            raise NotTrusted(f"gives {name} the attribute {key!r}")
        if key in trust.HARMLESS and not any(value is well or value == well for well in trust.HARMLESS[key]):
            raise NotTrusted(f"gives {name} {key}, by which it fetches or runs other code")
        if _is_behaviour(inspect.getattr_static(cls, key, None)):
            raise NotTrusted(f"gives {name} its own {key}")


def _is_behaviour(attribute: object) -> bool:
    return callable(attribute) or hasattr(type(attribute), "__get__")


def _check_module(state: Mapping[str, Any], name: str) -> None:
    """Modules hold modules, parameters and buffers where these belong, and no hooks."""
    for key in HOOKS & state.keys():
        if state[key]:
            raise NotTrusted(f"gives {name} hooks ({key})")
    for key, kind in (("_modules", nn.Module), ("_parameters", nn.Parameter), ("_buffers", Tensor)):
        held = state.get(key)
        if not isinstance(held, dict) or not all(
            type(place) is str and (value is None or isinstance(value, kind)) for place, value in held.items()
        ):
            raise NotTrusted(f"gives {name} something else than {key}")
