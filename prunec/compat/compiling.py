"""torch.compile: what it may assume of sizes."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from prunec.compat.trees import TreeSpec, treespec_of

__all__ = ["assume", "compile_ahead", "is_compiled", "load_ahead", "mark_dynamic", "scalar_outputs"]


def is_compiled(module: nn.Module) -> bool:
    """Whether a module is what torch.compile returned; TorchDynamo is not imported for that."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    return dynamo is not None and isinstance(module, dynamo.OptimizedModule)


def assume(condition: Any, otherwise: str | None = None) -> None:
    """Tell PyTorch what holds of a size that it does not know while it traces; checked when the code runs."""
    if otherwise is None or torch.compiler.is_dynamo_compiling():
        torch._check(condition)  # compiled code of PyTorch 2.11 takes no message from outside
    else:
        torch._check(condition, lambda: otherwise)


def scalar_outputs() -> contextlib.AbstractContextManager[None]:
    """Let torch.compile trace a length that is read off a tensor (of a padded selection)."""
    return torch._dynamo.config.patch(capture_scalar_outputs=True)  # type: ignore[no-any-return]


def mark_dynamic(tensor: torch.Tensor, axis: int = 0) -> None:
    """Let torch.compile treat a dimension of an input as a symbol from the first call on."""
    torch._dynamo.maybe_mark_dynamic(tensor, axis)


def compile_ahead(exported: ExportedProgram, path: Path, *, frozen: bool) -> None:
    """Compile by AOTInductor into a file, with weights packed where they are `frozen`."""
    from torch._inductor import aoti_compile_and_package

    with torch.no_grad():
        aoti_compile_and_package(
            exported, package_path=os.fspath(path), inductor_configs={"freezing": frozen}
        )


def load_ahead(path: Path) -> tuple[Callable[..., Any], TreeSpec]:
    """What such a file runs, and how its inputs nest."""
    from torch._inductor import aoti_load_package

    model = aoti_load_package(os.fspath(path))
    in_spec, _ = model.loader.get_call_spec()
    return model, treespec_of(in_spec)
