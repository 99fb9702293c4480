"""Model and weight files: .safetensors, .pt, .pth and .pt2.

A .pt file is a pickle, and a pickle may run any code. It is never unpickled blindly: pickles.py reads tensors
and modules of trusted classes, none of whose constructors runs, and refuses everything else by name. Of the
checkpoint of a training script only the model is read: what stands beside it may be anything.

A .pt2 file is read by torch.export.load, which unpickles and evaluates what the file holds: it is read only
with the same consent as a pickle.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.export import ExportedProgram

from prunec import compat
from prunec.errors import SourceError, first_sentence
from prunec.files import pickles

State = Mapping[str, Tensor]

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
    with _reading(path):
        if allow_pickle:
            return _model_in(torch.load(path, map_location="cpu", weights_only=False), path)
        try:
            return _model_in(pickles.read(path, CHECKPOINT_KEYS), path)
        except pickles.NotTrusted as error:
            raise SourceError(
                f"{path.name} {error}, which prunec does not trust",
                where=f"source {str(path)!r}",
                remedy="save a state dict, torch.save(model.state_dict(), ...) or torch.save({'state_dict': "
                "model.state_dict(), ...}, ...), and give --arch; if you trust whoever made the file, "
                "--allow-pickle reads it, and runs any code that is in it",
            ) from error


def read_safetensors(path: Path) -> State:
    """The tensors in a .safetensors file."""
    with _reading(path):
        return load_file(path)


def read_exported(path: Path, *, allow_pickle: bool = False) -> ExportedProgram:
    """The program in a .pt2 file that torch.export.save wrote.

    Args:
        path: the file.
        allow_pickle: read it at all: PyTorch unpickles parts of it and evaluates its expressions, which may
            run any code.

    Raises:
        SourceError: it may not be read, or cannot be.
    """
    if not allow_pickle:
        _check_file(path)
        raise SourceError(
            f"{path.name} is a .pt2 file, and reading one may run code that is in it",
            where=f"source {str(path)!r}",
            remedy="give weights as .safetensors with --arch; if you trust whoever made the file, "
            "--allow-pickle reads it (in Python: prunec.frontend.sources.load(path, allow_pickle=True))",
        )
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
    _check_file(path)
    try:
        yield
    except SourceError:
        raise
    except Exception as error:  # a damaged file makes torch and safetensors raise anything
        raise SourceError(
            f"{path.name} cannot be read: {first_sentence(error)}",
            where=f"source {str(path)!r}",
            remedy="write the file again: torch.save, torch.export.save or safetensors.torch.save_file",
        ) from error


def _check_file(path: Path) -> None:
    """A file, and nothing else that may be opened: reading a pipe would never end."""
    if not path.is_file():
        raise SourceError(
            "this is not a file" if path.exists() else "there is no such file",
            where=f"source {str(path)!r}",
            remedy="check the path; a file is never downloaded",
        )


def _no_fit(path: Path, wrong: str) -> SourceError:
    return SourceError(
        f"the weights do not fit the model: {wrong}",
        where=f"source {str(path)!r}",
        remedy="give the --arch that the weights were saved from, with its arguments, such as "
        "timm:ID?num_classes=10",
    )


def _some(names: Sequence[str], separator: str = ", ") -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return separator.join(names[:5]) + more
