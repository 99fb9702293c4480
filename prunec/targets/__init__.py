"""Where a program runs. One file per backend, loaded only when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import nn

from prunec.errors import TargetError, did_you_mean
from prunec.ir.program import Program, ProgramModule
from prunec.policy.modes import ModeName
from prunec.targets.precision import Precision

Flat = Callable[..., Any]

#: name -> "module:class"
TARGETS = {
    "eager": "prunec.targets.eager:Eager",
    "inductor": "prunec.targets.inductor:Inductor",
    "pt2": "prunec.targets.pt2:Pt2",
    "aoti": "prunec.targets.aoti:Aoti",
    "onnx": "prunec.targets.onnx:Onnx",
    "openvino": "prunec.targets.openvino:OpenVino",
    "executorch": "prunec.targets.executorch:ExecuTorch",
    "tensorrt": "prunec.targets.tensorrt:TensorRt",
}

#: In place of a name: the fastest target that runs here and agrees with the graph.
AUTO = "auto"


class Target(Protocol):
    """What every backend is."""

    @property
    def summary(self) -> str:
        """One line for `prunec targets`."""

    @property
    def needs(self) -> str:
        """What it needs beside PyTorch, and how that is installed; empty where nothing."""

    @property
    def modes(self) -> tuple[ModeName, ...]:
        """The modes that it can run."""

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """The precisions that it can run."""

    @property
    def precision(self) -> Precision:
        """The one that it runs: fp32 is that of the model, as it is."""

    def missing(self) -> str | None:
        """Why the backend cannot run here; None when it can."""

    def prepared(self, program: Program) -> Program:
        """The program in its precision, as far as that is done in the graph and not by the backend."""

    def lower(self, program: Program) -> Flat:
        """The program as a callable on flat inputs; a deep copy of it runs the deep copy of the program.

        TargetError, with the place and what to do, where the backend cannot run the program.
        """


@runtime_checkable
class FileTarget(Target, Protocol):
    """A backend that also runs from files, where neither prunec nor the model's own code is installed."""

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the files that `write` makes, the one to open first."""

    @property
    def only_data(self) -> bool:
        """Whether reading them runs nothing that is in them, so that anybody's may be read."""

    def unwritable(self) -> str | None:
        """Why they cannot be written here; None when they can, whether they can run here or not."""

    def write(self, program: Program, folder: Path) -> None:
        """Write the program into a folder that exists; TargetError as of `lower`."""

    def read(self, folder: Path) -> Flat:
        """What `write` has written, as a callable on flat inputs that gives flat outputs."""


@runtime_checkable
class FixedBatch(FileTarget, Protocol):
    """A backend whose files take a number of images that is in them."""

    def with_batch(self, batch: int) -> FixedBatch:
        """The same, for so many images."""


def load(name: str, precision: Precision = "fp32") -> Target:
    """The backend of that name; TargetError when it is unknown or cannot run here, or in that precision."""
    if name not in TARGETS:
        raise TargetError(
            f"unknown target {name!r}{did_you_mean(name, TARGETS)}", remedy=f"targets: {', '.join(TARGETS)}"
        )
    target = find(name, precision)
    if refused := unfit(target):
        others = [other for other in TARGETS if precision in find(other).precisions]
        raise TargetError(
            f"target {name!r}: {refused}",
            where="precision",
            remedy=f"choose one of these, or a target that has it: {', '.join(others)}",
        )
    if missing := target.missing():
        raise TargetError(
            f"target {name!r} cannot run here: {missing}", remedy="`prunec targets` lists what can"
        )
    return target


def unfit(target: Target) -> str:
    """Why a backend does not run its precision; empty where it does."""
    if target.precision in target.precisions:
        return ""
    return f"it runs in {', '.join(target.precisions)}, and not in {target.precision}"


def at_first(name: str, precision: Precision = "fp32") -> Target:
    """The backend of that name; of "auto", the one that is used until the fastest is known.

    It is the one of single precision; TargetError where it does not run in the other. One that can only be
    written here is one too: what it takes is asked of it.
    """
    if name == AUTO:
        return find(usual())
    if is_only_written(name, precision):
        return find(name)
    load(name, precision)
    return load(name)


def usual() -> str:
    """Where programs run if nothing else is said: inductor, where it can."""
    return "eager" if find("inductor").missing() else "inductor"


def is_only_written(name: str, precision: Precision = "fp32") -> bool:
    """Whether a backend's files can be written here and not run; false too where it is not known."""
    target = find(name, precision) if name in TARGETS else None
    if not isinstance(target, FileTarget) or unfit(target):
        return False
    return target.missing() is not None and target.unwritable() is None


def find(name: str, precision: Precision = "fp32") -> Target:
    """The backend of a known name, whether it can run here or not."""
    module, class_name = TARGETS[name].split(":")
    return cast("Target", getattr(importlib.import_module(module), class_name)(precision=precision))


class LoweredModule(ProgramModule):
    """A lowered program as a module: the original's signature, the backend's code."""

    def __init__(self, program: Program, lowered: Flat, original: nn.Module | None = None) -> None:
        super().__init__(program, original)
        self.__dict__["lowered"] = lowered

    def _runs(self) -> Flat:
        lowered: Flat = self.__dict__["lowered"]
        return lowered


def device_of(program: Program) -> torch.device:
    """Where the program's parameters are (the CPU when it has none)."""
    return next((parameter.device for parameter in program.module.parameters()), torch.device("cpu"))
