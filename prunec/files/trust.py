"""What a file may name: the classes and functions that a pickle is allowed to hold, and no others.

A name is trusted for what it is, not for where it stands. A class must come from a known package *and* be a
subclass of a named base, because the rest of such a package (loaders, converters, lazy tables of names) does
things when it is used. The names that are trusted one by one are few and listed here.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any, Literal

from torch import nn

#: What an object of a trusted class is, which decides how it is built.
Kind = Literal["module", "config", "enum", "plain", "function"]

#: Packages whose classes may be modules, configurations and enumerations. Not all of torch: torch.fx and
#: torch.jit carry code in their instances. Not all of transformers: its other files convert and load.
FAMILIES = (
    "torch.nn.modules.",
    "timm.layers.",
    "timm.models.",
    "torchvision.models.",
    "torchvision.ops.",
    "transformers.activations.",
    "transformers.backbone_utils.",
    "transformers.models.",
    "prunec.data.",
)
#: The files of transformers.models that define modules and configurations.
TRANSFORMERS_FILES = ("modeling_", "configuration_")
#: The bases of configurations, by name: transformers need not be installed.
CONFIG_BASES = frozenset(
    f"transformers.configuration_utils.{name}" for name in ("PreTrainedConfig", "PretrainedConfig")
)
#: Classes of data without such a base, one by one.
PLAIN_CLASSES = frozenset(
    {
        "timm.models._features.FeatureInfo",
        "transformers.generation.configuration_utils.GenerationConfig",
        *(
            f"torchvision.models.detection._utils.{name}"
            for name in ("BalancedPositiveNegativeSampler", "BoxCoder", "Matcher")
        ),
    }
)
#: Functions that modules keep as attributes: pure functions of tensors.
FUNCTIONS = frozenset(
    {
        "torch._C._nn.gelu",
        "torch.relu",
        "torch.sigmoid",
        "torch.tanh",
        "torchvision.ops.boxes.box_iou",
        *(f"torch.nn.functional.{name}" for name in ("gelu", "relu", "relu6", "silu", "softmax", "tanh")),
    }
)
#: functools.partial may hold one of the functions, or a class of layers.
PARTIAL = "functools.partial"
#: Packages whose module classes may stand in a file as classes, to be called by a module that holds them:
#: their constructors make tensors, and load nothing.
LAYERS = ("torch.nn.modules.", "timm.layers.")


#: Attentions that PyTorch has itself. Others import a package, or fetch a kernel where that is not installed.
ATTENTIONS = (None, "eager", "sdpa", "flex_attention")
#: Attributes by which models of transformers fetch code, and the values with which they do not.
HARMLESS: dict[str, tuple[Any, ...]] = {
    "_attn_implementation": ATTENTIONS,
    "_attn_implementation_internal": ATTENTIONS,
    "_compiled_call_impl": (None,),
    "_use_kernels": (None, False),
}


def find(name: str) -> tuple[Kind, Any] | None:
    """What a name stands for and what it is; None where it is not trusted."""
    if name in FUNCTIONS:
        function = _look_up(name)
        return None if function is None else ("function", function)
    if name not in PLAIN_CLASSES and not _is_in_family(name):
        return None
    cls = _look_up(name)
    module = name.rpartition(".")[0]
    if not inspect.isclass(cls) or cls.__module__ != module:  # what a module imported is not its own
        return None
    kind = _kind(cls, name)
    return None if kind is None else (kind, cls)


def is_layer(name: str) -> bool:
    """Whether a class may be held as a class, and not only as an instance."""
    found = find(name)
    return found is not None and found[0] == "module" and name.startswith(LAYERS)


def _kind(cls: type, name: str) -> Kind | None:
    """What an instance is. A module with a __setstate__ of its own is not trusted, unless it is PyTorch's."""
    if name in PLAIN_CLASSES:
        return "plain"
    if issubclass(cls, nn.Module):
        owner = next(base for base in cls.__mro__ if "__setstate__" in vars(base))
        return "module" if owner.__module__.startswith("torch.nn.modules.") else None
    if issubclass(cls, Enum):
        return "enum"
    if any(f"{base.__module__}.{base.__qualname__}" in CONFIG_BASES for base in cls.__mro__):
        return "config"
    return None


def _is_in_family(name: str) -> bool:
    module = name.rpartition(".")[0]
    if module.startswith("transformers.models."):
        return module.rpartition(".")[2].startswith(TRANSFORMERS_FILES)
    return name.startswith(FAMILIES)


def _look_up(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    try:
        with _working_folder_not_importable():
            return inspect.getattr_static(importlib.import_module(module), attribute, None)
    except Exception:  # noqa: BLE001 - importing may raise anything, and then the name is not known here
        return None


@contextmanager
def _working_folder_not_importable() -> Iterator[None]:
    """A folder named timm or torchvision beside a hostile file must not be taken for the package."""
    here, before = Path.cwd(), list(sys.path)
    sys.path[:] = [entry for entry in before if entry and Path(entry).absolute() != here]
    try:
        yield
    finally:
        sys.path[:] = before
