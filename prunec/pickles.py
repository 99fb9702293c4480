"""Checkpoints that torch.save wrote: read without running anything that is in them.

    scan     the pickle's opcodes: the names it wants, how many objects it makes; nothing is unpickled
    read     torch.load(weights_only=True): tensors, and for each name beyond them an inert `Record`
    build    each record becomes an instance of what its name is trusted as, made empty and given its state

No constructor of the file's choosing runs. A state is a dict of names that shadow no method, modules carry no
hooks, and a name that is not trusted (see trust.py) is refused before anything is read.
"""

from __future__ import annotations

import inspect
import io
import math
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import torch
from torch import Tensor, nn
from torch.serialization import safe_globals

from prunec import compat, trust

#: Limits far above any model's: of the pickle itself, without the numbers.
MOST_BYTES = 16 << 20
MOST_OPCODES = 2_000_000
MOST_CALLS = 200_000
MOST_DEPTH = 120
#: The names of the dicts of hooks that every module has.
HOOKS = frozenset(name for name in vars(nn.Module()) if "hook" in name)
#: How a file of torch 1.6 or later begins.
ZIP = b"PK\x03\x04"
#: What module attributes may hold as it is.
PLAIN_VALUES = (bool, int, float, complex, str, bytes, type(None), torch.Size, torch.dtype, torch.device)


class NotTrusted(ValueError):  # noqa: N818 - the reader makes an error of it
    """A file wants what prunec does not trust; the message says what."""


def read(path: Path) -> Any:
    """What a .pt or .pth file holds: tensors, plain containers, and modules of trusted classes.

    Raises:
        NotTrusted: it wants other names, or gives an object a state that such an object never has.
        Exception: whatever torch and zipfile raise for a damaged file.
    """
    names = scan(path)
    refused = sorted(name for name in names - compat.TENSOR_NAMES if not is_trusted(name))
    if refused:
        more = f" and {len(refused) - 5} more" if len(refused) > 5 else ""
        raise NotTrusted(f"wants {', '.join(refused[:5])}{more}")
    records: list[Any] = [(_record(name), name) for name in sorted(names - compat.TENSOR_NAMES)]
    with safe_globals(records):
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    return _Builder(path.stat().st_size).build(loaded)


def is_trusted(name: str) -> bool:
    """Whether a pickle may hold the name."""
    return name == trust.PARTIAL or trust.find(name) is not None


# Scan -------------------------------------------------------------------------------------------------------


def scan(path: Path) -> set[str]:
    """The names that a file's pickles want.

    Raises:
        NotTrusted: the pickle is far larger than any model's, or in an archive that torch.save never writes.
    """
    with path.open("rb") as file:
        if file.read(len(ZIP)) == ZIP:
            with zipfile.ZipFile(file) as archive:
                return _names(io.BytesIO(archive.read(_pickle_of(archive, path))))
        file.seek(0)  # before torch 1.6: magic number, protocol, system, objects, keys of storages
        return set().union(*(_names(file) for _ in range(5)))


def _pickle_of(archive: zipfile.ZipFile, path: Path) -> zipfile.ZipInfo:
    entries = archive.infolist()
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise ValueError("it is TorchScript, which holds code")
    if len({entry.filename for entry in entries}) < len(entries):
        raise NotTrusted("holds two entries of one name")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise NotTrusted("is a compressed archive, which torch.save does not write")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise NotTrusted("is an archive whose entries overlap")
    pickles = [entry for entry in entries if entry.filename.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise NotTrusted(f"holds {len(pickles)} pickles where torch.save writes one")
    if pickles[0].file_size > MOST_BYTES:
        raise NotTrusted(f"holds a pickle of {pickles[0].file_size >> 20} MiB, without its numbers")
    return pickles[0]


def _names(file: BinaryIO) -> set[str]:
    """The names in one pickle, which ends where it says so."""
    names: set[str] = set()
    calls = 0
    strings: list[str] = []  # the last two, which STACK_GLOBAL takes
    start = file.tell()
    for count, (opcode, argument, place) in enumerate(pickletools.genops(file)):
        if count > MOST_OPCODES or (place or 0) - start > MOST_BYTES:
            raise NotTrusted("holds a pickle far larger than any model's")
        if opcode.name in ("GLOBAL", "INST"):
            names.add(".".join(str(argument).split(" ", 1)))
        elif opcode.name == "STACK_GLOBAL":
            names.add(".".join(strings[-2:]))
        elif isinstance(argument, str):
            strings = [*strings[-1:], argument]
        calls += opcode.name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX", "BUILD", "OBJ", "INST")
        if calls > MOST_CALLS:
            raise NotTrusted(f"makes more than {MOST_CALLS} objects")
    return names


# Read -------------------------------------------------------------------------------------------------------


class Record:
    """An object as a pickle describes it: a trusted name, arguments, a state. It does nothing."""

    name: ClassVar[str]
    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any) -> Record:
        """Keep the arguments of a call, whatever would be called."""
        record = super().__new__(cls)
        record.args, record.state = args, None
        return record

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _record(name: str) -> type[Record]:
    return type("Record", (Record,), {"name": name})


# Build ------------------------------------------------------------------------------------------------------


class _Builder:
    """Makes of records what they describe, each once, and a copy of every container on the way."""

    def __init__(self, file_size: int) -> None:
        self.most_bytes = max(file_size, 1 << 20)
        self.built: dict[int, Any] = {}
        self.kept: list[Any] = []  # or an id could be given to another object
        self.open: set[int] = set()  # the modules whose state is being built
        self.depth = 0

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
        if isinstance(value, Tensor):
            return self._keep(value, self._tensor(value))
        if isinstance(value, Record):
            return self._object(value)
        if isinstance(value, type) and issubclass(value, Record):
            return self._keep(value, _reference(value.name))
        if type(value) in (dict, OrderedDict):
            made = self._keep(value, type(value)())
            made.update({self.build(key): self.build(item) for key, item in type(value).items(value)})
            return made
        if type(value) is list:
            made = self._keep(value, [])
            made.extend(map(self.build, value))
            return made
        if type(value) in (tuple, set):
            return self._keep(value, type(value)(map(self.build, value)))
        raise NotTrusted(f"holds a {type(value).__name__}")

    def _keep(self, value: Any, made: Any) -> Any:
        self.built[id(value)] = made
        return made

    def _tensor(self, tensor: Tensor) -> Tensor:
        """The same numbers, which must be in the file, without gradients and hooks."""
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout is not torch.strided or tensor.is_meta:
            raise NotTrusted(f"holds a tensor that is not plain: {type(tensor).__name__}, {tensor.layout}")
        if math.prod(tensor.shape) * tensor.element_size() > self.most_bytes:
            raise NotTrusted(f"holds a tensor of shape {list(tensor.shape)}, more than the file's own size")
        made = tensor.detach()
        if isinstance(tensor, nn.Parameter):
            made = nn.Parameter(made, requires_grad=tensor.requires_grad)
        for name, value in vars(tensor).items():
            if type(value) not in PLAIN_VALUES or hasattr(Tensor, name):
                raise NotTrusted(f"gives a tensor the attribute {name!r}")
        vars(made).update(vars(tensor))
        return made

    def _object(self, record: Record) -> Any:
        if record.name == trust.PARTIAL:
            return self._keep(record, self._partial(record))
        kind, cls = _found(record.name)
        if kind == "enum":
            return self._keep(record, _member(cls, record))
        if kind == "function":
            raise NotTrusted(f"calls {record.name}")
        if record.args or type(record.state) is not dict:
            raise NotTrusted(f"does not give {record.name} a state")
        made = self._keep(record, cls.__new__(cls))
        self.open.add(id(record))
        state = self.build(record.state)
        self.open.remove(id(record))
        _check_state(cls, state, record.name)
        if kind == "module":
            _check_module(state, record.name)
            made.__setstate__(state)
        else:
            vars(made).update(state)
        return made

    def _partial(self, record: Record) -> Any:
        """functools.partial(function, *args, **kwargs), whose pickled state repeats the function."""
        if type(record.state) is not tuple or len(record.state) != 4 or record.state[3]:
            raise NotTrusted(f"gives {trust.PARTIAL} a state of its own")
        function, args, kwargs, _ = record.state
        if not (isinstance(function, type) and issubclass(function, Record)):
            raise NotTrusted(f"gives {trust.PARTIAL} something else than a function")
        if type(args) is not tuple or type(kwargs) is not dict or any(type(key) is not str for key in kwargs):
            raise NotTrusted(f"gives {trust.PARTIAL} arguments that are none")
        return partial(_reference(function.name), *self.build(args), **self.build(kwargs))


def _found(name: str) -> tuple[trust.Kind, Any]:
    found = trust.find(name)
    if found is None:  # the scan has refused it already
        raise NotTrusted(f"wants {name}")
    return found


def _reference(name: str) -> Any:
    """A function, or a class of layers, that is held and not called."""
    kind, found = _found(name)
    if kind != "function" and not trust.is_layer(name):
        raise NotTrusted(f"holds {name} itself, not an instance of it")
    return found


def _member(cls: Any, record: Record) -> Any:
    if len(record.args) != 1 or type(record.args[0]) not in (str, int) or record.state is not None:
        raise NotTrusted(f"does not give {record.name} one value")
    return cls(record.args[0])


def _check_state(cls: type, state: Mapping[Any, Any], name: str) -> None:
    """An attribute of an instance may not take the place of a method or a property of its class."""
    for key in state:
        if type(key) is not str or key.startswith("__"):
            raise NotTrusted(f"gives {name} the attribute {key!r}")
        if _is_behaviour(inspect.getattr_static(cls, key, None)):
            raise NotTrusted(f"gives {name} its own {key}")


def _is_behaviour(attribute: object) -> bool:
    return callable(attribute) or hasattr(type(attribute), "__get__")


def _check_module(state: Mapping[str, Any], name: str) -> None:
    """Modules hold modules, parameters and buffers where these belong, and no hooks."""
    for key in HOOKS & state.keys():
        if state[key]:
            raise NotTrusted(f"gives {name} hooks ({key})")
    if state.get("_compiled_call_impl") is not None:
        raise NotTrusted(f"gives {name} a compiled call")
    for key, kind in (("_modules", nn.Module), ("_parameters", nn.Parameter), ("_buffers", Tensor)):
        held = state.get(key)
        if not isinstance(held, dict) or not all(
            type(place) is str and (value is None or isinstance(value, kind)) for place, value in held.items()
        ):
            raise NotTrusted(f"gives {name} something else than {key}")
