"""Example inputs: given by the caller, or inferred from what a model says about itself.

    2x3x224x224                     one positional input, random numbers of that shape
    pixel_values=2x3x224x224,...    inputs by their names

They have a batch of two: torch.export treats a size of one as a constant.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from prunec import compat
from prunec.errors import UsageError, shown

#: The largest image that is made up as an example: 3 channels of 6,000 x 6,000 pixels.
MOST_NUMBERS = 3 * 6000 * 6000
#: Images in an example that is made up.
MOST_IMAGES = 64

Example = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]
Inputs = tuple[tuple[Any, ...], dict[str, Any]]

ADVICE = (
    "give --example 2x3x224x224 or --image-size 224 (in Python: example=, a tensor, a tuple of positional "
    "inputs, a dict of keyword inputs, or such a text)"
)
_SHAPE = re.compile(r"(?:([A-Za-z_]\w*)=)?(\d{1,6}(?:x\d{1,6})*)", re.ASCII)


def inputs(example: Example) -> Inputs:
    """An example as positional and keyword inputs, a batch of one repeated to two."""
    args, kwargs = call_inputs(example)
    leaves, spec = compat.tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if not tensors:
        raise UsageError(
            f"an example must hold a tensor, got a {type(example).__name__}",
            where="example=",
            remedy=unregistered(leaves)
            or "give a tensor, a tuple of positional inputs, or a dict of keyword inputs",
        )
    if tensors[0].shape[:1] != (1,):
        return args, kwargs
    args, kwargs = compat.tree_unflatten(list(map(two, leaves)), spec)
    return args, kwargs


def unregistered(leaves: Iterable[Any]) -> str | None:
    """What to do about a dataclass that PyTorch does not look into, if there is one."""
    kinds = (type(leaf).__name__ for leaf in leaves if dataclasses.is_dataclass(leaf))
    kind = next(kinds, None)
    return kind and f"register the dataclass first: torch.export.register_dataclass({kind})"


def call_inputs(example: Example) -> Inputs:
    """An example as positional and keyword inputs, as it is."""
    if isinstance(example, Mapping):
        return (), dict(example)
    return tuple(example) if isinstance(example, tuple | list) else (example,), {}


def two(value: Any) -> Any:
    """A tensor with a batch of one repeated to two, anything else as it is."""
    is_single = isinstance(value, Tensor) and value.shape[:1] == (1,)
    return torch.cat([value, value]) if is_single else value


def example_of(example: Example | str, module: nn.Module) -> Inputs:
    """`inputs` of an example, which may be shapes as text: random numbers as the module's parameters are."""
    return inputs(_of_shapes(example, module) if isinstance(example, str) else example)


def _of_shapes(text: str, module: nn.Module) -> Example:
    found = [_SHAPE.fullmatch(part.strip()) for part in text.split(",")]
    parts = [(match[1], tuple(map(int, match[2].split("x")))) for match in found if match]
    names = [name for name, _ in parts if name]
    if len(parts) < len(found) or len(names) not in (0, len(parts)) or len(set(names)) < len(names):
        raise UsageError(
            f"{shown(text)} are no shapes of inputs",
            where="example",
            remedy="write 2x3x224x224, or pixel_values=2x3x224x224,mask=2x14x14 for inputs by their names",
        )
    tensors = [_numbers(module, shape, "the example") for _, shape in parts]
    return dict(zip(names, tensors, strict=True)) if names else tuple(tensors)


def shapes_text(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """The shapes of inputs as text; empty where shapes do not describe them: integers, booleans."""
    if bool(args) == bool(kwargs):
        return ""
    leaves = [*args, *kwargs.values()]
    if not all(isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() for leaf in leaves):
        return ""
    names = [f"{name}=" for name in kwargs] or [""] * len(args)
    return ",".join(name + "x".join(map(str, leaf.shape)) for name, leaf in zip(names, leaves, strict=True))


def infer(module: nn.Module, image_size: tuple[int, int] | None = None) -> Inputs:
    """Example inputs from what timm, Hugging Face and torchvision models say about themselves.

    Args:
        module: the model.
        image_size: height and width, in place of what the model says.
    """
    if hasattr(module, "config") and hasattr(module, "main_input_name"):
        size = config_size(module.config, image_size)
        if size and module.main_input_name == "pixel_values":
            return (), {"pixel_values": _image(module, _sized(size, image_size))}
    elif size := _timm_size(module) or _image_size(getattr(module, "image_size", None) or image_size):
        return (_image(module, _sized(size, image_size)),), {}
    raise UsageError(
        "no example input can be inferred for this model",
        where=f"{type(module).__module__}.{type(module).__qualname__}",
        remedy=ADVICE,
    )


def _sized(size: tuple[int, int, int], image_size: tuple[int, int] | None) -> tuple[int, int, int]:
    return size if image_size is None else (size[0], *image_size)


def exported_inputs(exported: ExportedProgram) -> Inputs:
    """The inputs that a program was exported on."""
    if exported.example_inputs is not None:
        args, kwargs = exported.example_inputs
        return tuple(args), dict(kwargs)
    raise UsageError(
        "the exported program holds no example inputs",
        remedy="save it again with torch.export.save, which keeps those of torch.export.export",
    )


def _image(module: nn.Module, size: tuple[int, int, int]) -> Tensor:
    # size: C, H, W -> [2, C, H, W]
    if min(size) < 1 or math.prod(size) > MOST_NUMBERS:
        raise UsageError(
            f"the model says that its image has {' x '.join(map(str, size))} numbers",
            where=f"{type(module).__module__}.{type(module).__qualname__}",
            remedy=f"correct the image size in the model's configuration, or {ADVICE}",
        )
    return _numbers(module, (2, *size), "the model")


def _numbers(module: nn.Module, shape: tuple[int, ...], who: str) -> Tensor:
    """Random numbers, the same in every run, in the precision and at the place of the parameters."""
    if min(shape) < 1 or math.prod(shape[1:]) > MOST_NUMBERS or shape[0] > MOST_IMAGES:
        raise UsageError(
            f"{who} has {' x '.join(map(str, shape))} numbers",
            where="example",
            remedy=f"give at most {MOST_IMAGES} images of at most {MOST_NUMBERS} numbers each",
        )
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    parameters = (p for p in module.parameters() if p.is_floating_point())
    like = next(parameters, numbers)
    return numbers.to(device=like.device, dtype=like.dtype)


def _timm_size(module: nn.Module) -> tuple[int, int, int] | None:
    config = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None)
    if not isinstance(config, Mapping) or "input_size" not in config:
        return None
    size = config["input_size"]
    if not isinstance(size, tuple | list) or len(size) != 3 or not all(isinstance(n, int) for n in size):
        return None
    channels, height, width = config["input_size"]
    # The configuration speaks of the weights; a model built with another img_size or in_chans knows better.
    embed = getattr(module, "patch_embed", None)
    height, width = getattr(embed, "img_size", None) or (height, width)
    first = config.get("first_conv")  # by name: in a hybrid the patch embedding does not see the image
    stem = dict(module.named_modules()).get(first) if isinstance(first, str) else None
    return getattr(stem, "in_channels", channels), height, width


def config_size(config: Any, other: tuple[int, int] | None = None) -> tuple[int, int, int] | None:
    """The image size of a transformers configuration, or of the part of it that sees the image.

    Where it has none, it is the other, which is given, with as many channels as the configuration has.
    """
    parts = (config, getattr(config, "vision_config", None), getattr(config, "backbone_config", None))
    for part in parts:
        if size := _image_size(getattr(part, "image_size", None)):
            channels = getattr(part, "num_channels", 3)
            return channels, *size[1:]
    return None if other is None else (getattr(config, "num_channels", 3), *other)


def _image_size(size: Any) -> tuple[int, int, int] | None:
    """An image size as channels, height and width; it may be a number, a pair, or a mapping."""
    if isinstance(size, int):
        return 3, size, size
    if isinstance(size, Mapping):
        size = (size.get("height"), size.get("width"))
    if isinstance(size, tuple | list) and len(size) == 2 and all(isinstance(side, int) for side in size):
        return 3, size[0], size[1]
    return None
