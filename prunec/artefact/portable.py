"""The model as a file of its own, `model.pt2`: it runs without prunec, and without the library that it is of.

    torch.export.load("out/model.pt2").module()(images)

It is read here without running anything that may be in it (`prunec.files.programs`), and becomes a module
like the one that was saved: called as the original is, on any backend. Outputs nest in containers of Python;
those that have names are attributes too, as in the original's own.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.export import ExportedProgram

from prunec import compat, targets
from prunec.artefact.manifest import unreadable
from prunec.artefact.spec import Spec, dtype_of
from prunec.errors import TargetError, first_sentence
from prunec.files import programs
from prunec.files.opcodes import NotTrusted
from prunec.ir.interface import Interface
from prunec.ir.program import Program
from prunec.targets import FileTarget, LoweredModule, Target
from prunec.targets.exported import exported

FILE = "model.pt2"
#: Images in the inputs that stand for any number.
_ANY = 2


class Outputs(dict[str, Any]):
    """Outputs by name, and as attributes: `outputs["logits"]`, `outputs.logits`, `outputs[0]`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the model gives no {name!r}, but {', '.join(self)}") from None

    def __getitem__(self, name: str | int) -> Any:
        return list(self.values())[name] if isinstance(name, int) else super().__getitem__(name)


class PortableModule(LoweredModule):
    """The model of an artefact, from its own file."""

    def call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The original model's forward; outputs in containers of Python."""
        return _named(super().call(args, kwargs))

    def extra_repr(self) -> str:
        """Where it is from."""
        return f"from {FILE}"


def _named(value: Any) -> Any:
    if isinstance(value, dict):
        return Outputs({name: _named(one) for name, one in value.items()})
    return type(value)(map(_named, value)) if isinstance(value, list | tuple) else value


def made(program: Program) -> ExportedProgram:
    """A program as one that needs nothing else, on the CPU; TargetError, with the reason, if it cannot be."""
    if targets.device_of(program).type != "cpu":
        moved = LoweredModule(copy.deepcopy(program), program.module).to("cpu")
        program = moved.program
    constants = [leaf for leaf in program.interface.example if not isinstance(leaf, Tensor)]
    strange = [leaf for leaf in constants if not isinstance(leaf, bool | int | float | str | None)]
    if strange:
        raise TargetError(f"the model takes a {type(strange[0]).__name__}, which a file does not hold")
    found = exported(program)
    compat.forget_example(found)  # PyTorch would pickle it
    return found


def read(folder: Path, spec: Spec) -> Program:
    """The program in the file of an artefact.

    Raises:
        SourceError: it is damaged, or holds what may run code.
    """
    try:
        found = programs.read(folder / FILE)
        example = [_example(one.sizes, dtype_of(one), one.value) for one in spec.inputs]
        return Program(found.module, _interface(found, example, None if spec.batch else _ANY))
    except NotTrusted as error:
        raise unreadable(folder, f"{FILE} {error}, which prunec does not trust") from error
    except Exception as error:  # a damaged file makes zipfile, json and torch raise anything
        raise unreadable(folder, f"{FILE}: {first_sentence(error)}") from error


def _interface(found: programs.Read, example: list[Any], batch: int | None) -> Interface:
    """How the model is called: as it was exported."""
    args, kwargs = compat.tree_unflatten(example, found.in_spec)
    positional = found.names[: len(args)] or tuple(f"input_{place}" for place in range(len(args)))
    names = tuple(dict.fromkeys((*positional, *kwargs)))
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return Interface(
        parameters=names,
        defaults={},
        positional=positional,
        keyword=tuple(kwargs),
        in_spec=found.in_spec,
        out_spec=found.out_spec,
        example=tuple(example),
        batch=batch,
        signature=inspect.Signature([inspect.Parameter(name, kind) for name in names]),
    )


def _example(sizes: Sequence[int | None] | None, dtype: torch.dtype | None, value: Any) -> Any:
    """An input of those sizes that takes no memory: only what it looks like is ever asked."""
    if sizes is None:
        return value
    return torch.empty([_ANY if size is None else size for size in sizes], dtype=dtype, device="meta")


def module(folder: Path, spec: Spec, backend: Target, files: Sequence[str] = ()) -> PortableModule:
    """The model of an artefact on a backend.

    Args:
        folder: the artefact.
        spec: what its model takes.
        backend: where it runs: from the backend's own files, where the artefact has some that are only data.
        files: what the artefact holds, as it was written.
    """
    program = read(folder, spec)
    if has_files(backend, files):
        return PortableModule(program, backend.read(folder))
    return PortableModule(program, backend.lower(program))


def has_files(backend: Target, files: Sequence[str]) -> TypeGuard[FileTarget]:
    """Whether files of a backend, beside the model's own, are among these, and may be read."""
    return isinstance(backend, FileTarget) and backend.only_data and backend.files[0] in files
