"""Model and weight files: .safetensors, .pt, .pth and .pt2.

A .pt file is a pickle, and a pickle may run any code. It is never unpickled blindly: torch.load reads it with
weights_only=True, and beyond tensors it may name only the module classes of torch, torchvision, timm and
transformers and the plain types that they carry. Even these are not called: an instance is made empty and its
attributes are filled in, so no constructor runs. A file that names anything else is refused with the names.

A .pt2 file is read by torch.export.load, which has pickle machinery of its own: read those that you trust.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from prunec import compat
from prunec.errors import SourceError

State = Mapping[str, Tensor]
Allowed = Callable[..., Any] | tuple[Callable[..., Any], str]  # as torch.serialization.safe_globals has it

#: Where classes may come from. Not all of torch: torch.fx and torch.jit carry code in their instances.
FAMILIES = (
    "torch.nn.modules.",
    "timm.layers.",
    "timm.models.",
    "torchvision.models.",
    "torchvision.ops.",
    "transformers.activations.",
    "transformers.generation.configuration_utils.",
    "transformers.models.",
    "prunec.data.",
)
#: Functions and helpers that modules of those packages keep as attributes, harmless to call.
PLAIN = frozenset(
    {
        "functools.partial",
        "torch._C._nn.gelu",
        "torch.relu",
        "torch.sigmoid",
        "torch.tanh",
        "torchvision.ops.boxes.box_iou",
        *(
            f"torchvision.models.detection._utils.{name}"
            for name in ("BalancedPositiveNegativeSampler", "BoxCoder", "Matcher")
        ),
        *(f"torch.nn.functional.{name}" for name in ("gelu", "relu", "relu6", "silu", "softmax", "tanh")),
    }
)
#: Where checkpoints of training scripts keep the model, the best first.
CHECKPOINT_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model")


def read_pickled(path: Path, *, allow_pickle: bool = False) -> nn.Module | State:
    """The module or the state dict in a .pt or .pth file.

    Args:
        path: the file that torch.save wrote.
        allow_pickle: unpickle whatever the file holds, which may run any code.

    Raises:
        SourceError: the file cannot be read, wants names that are not trusted, or holds something else.
    """
    allowed: list[Allowed] = [] if allow_pickle else _allowed(path)
    with _reading(path), safe_globals(allowed):
        loaded = torch.load(path, map_location="cpu", weights_only=not allow_pickle)
    return _model_in(loaded, path)


def read_safetensors(path: Path) -> State:
    """The tensors in a .safetensors file."""
    with _reading(path):
        return load_file(path)


def read_exported(path: Path) -> ExportedProgram:
    """The program in a .pt2 file that torch.export.save wrote."""
    with _reading(path):
        return compat.load_exported(path)


def fill(module: nn.Module, state: State, path: Path) -> None:
    """Load all of `state` into all of `module`; SourceError with the names when they do not fit."""
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except RuntimeError as error:  # sizes differ: the first line is a title
        wrong = [line.strip() for line in str(error).splitlines()[1:]]
        raise _no_fit(path, _some(wrong, "; ")) from error
    if missing or unexpected:
        wrong = [f"{len(missing)} missing: {_some(missing)}"] if missing else []
        wrong += [f"{len(unexpected)} unexpected: {_some(unexpected)}"] if unexpected else []
        raise _no_fit(path, "; ".join(wrong))


# What a pickle may name -------------------------------------------------------------------------------------


def _allowed(path: Path) -> list[Allowed]:
    """What the file may name beyond tensors."""
    wanted = sorted(_wanted(path))
    found = {name: _trusted(name) for name in wanted}
    refused = [name for name in wanted if found[name] is None]
    if refused:
        raise SourceError(
            f"{path.name} wants {_some(refused)}, which prunec does not trust",
            where=f"source {str(path)!r}",
            remedy="save a state dict (torch.save(model.state_dict(), ...)) and give --arch; if you trust "
            "whoever made the file, --allow-pickle reads it, and runs any code that is in it",
        )
    return [entry for name in wanted for entry in _entries(name, found[name])]


def _wanted(path: Path) -> list[str]:
    """The names in the file that torch does not read by itself."""
    with _reading(path):
        try:
            return get_unsafe_globals_in_checkpoint(path)
        except ValueError:  # the format before torch 1.6, and TorchScript: torch.load says what it can do
            return []


def _trusted(name: str) -> object | None:
    """What a name stands for, None when it is not trusted."""
    module, _, attribute = name.rpartition(".")
    if name not in PLAIN and not name.startswith(FAMILIES):
        return None
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except Exception:  # noqa: BLE001 - importing may raise anything, and then the name is not known here
        return None
    return found if name in PLAIN or _is_data(found, module) else None


def _is_data(found: object, module: str) -> bool:
    """Whether it is a class of that very module whose instances are a model's parts."""
    if not isinstance(found, type) or found.__module__ != module:
        return False
    is_config = module.rpartition(".")[2].startswith("configuration_")
    return issubclass(found, nn.Module | Enum) or dataclasses.is_dataclass(found) or is_config


def _entries(name: str, found: Any) -> Iterator[tuple[Callable[..., Any], str]]:
    """A class goes by a stand-in; its own entry, which torch compares types with, has an unspeakable name."""
    if not isinstance(found, type) or issubclass(found, Enum) or name in PLAIN:
        yield found, name
        return
    yield _empty(found), name
    yield found, f"{name}\n"  # names in a pickle end with the line


def _empty(cls: Any) -> type:
    """A stand-in that makes empty instances of `cls` and never calls its constructor."""
    return type(cls.__name__, (), {"__new__": lambda _: cls.__new__(cls)})


# What was in it ---------------------------------------------------------------------------------------------


def _model_in(loaded: Any, path: Path) -> nn.Module | State:
    if isinstance(loaded, nn.Module):
        return loaded
    if isinstance(loaded, Mapping):
        inner = next((loaded[key] for key in CHECKPOINT_KEYS if key in loaded), loaded)
        if isinstance(inner, nn.Module):
            return inner
        if isinstance(inner, Mapping) and inner and all(isinstance(v, Tensor) for v in inner.values()):
            return _unwrapped(inner)
    raise SourceError(
        f"{path.name} holds a {type(loaded).__name__}, neither a module nor a state dict",
        where=f"source {str(path)!r}",
        remedy="torch.save(model.state_dict(), ...) or torch.save(model, ...)",
    )


def _unwrapped(state: State) -> State:
    """Without the prefix of DistributedDataParallel."""
    if not all(name.startswith("module.") for name in state):
        return state
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside becomes one error of ours."""
    if not path.is_file():
        raise SourceError(
            "there is no such file",
            where=f"source {str(path)!r}",
            remedy="check the path; a file is never downloaded",
        )
    try:
        yield
    except Exception as error:  # a damaged file makes torch and safetensors raise anything
        first = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
        raise SourceError(
            f"{path.name} cannot be read: {first}",
            where=f"source {str(path)!r}",
            remedy="write the file again: torch.save, torch.export.save or safetensors.torch.save_file",
        ) from error


def _no_fit(path: Path, wrong: str) -> SourceError:
    return SourceError(
        f"the weights do not fit the model: {wrong}",
        where=f"source {str(path)!r}",
        remedy="give the --arch that the weights were saved from",
    )


def _some(names: Sequence[str], separator: str = ", ") -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return separator.join(names[:5]) + more
