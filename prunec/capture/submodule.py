"""A part of a bigger model: watched while the model runs once, pruned by itself, and put in its place.

    model --one run on the example--> the inputs of backbone.body --> that part with fewer tokens
    model --copied, tensors shared--> the same model with the new part at backbone.body

For detectors and pipelines that torch.export cannot capture whole.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from prunec import compat
from prunec.capture.borrowing import unchanged
from prunec.capture.example_inputs import Example, Inputs, call_inputs, infer, two
from prunec.errors import UsageError, did_you_mean

Make = Callable[[nn.Module, Inputs], nn.Module]


def with_submodule(model: nn.Module, path: str, example: Example | None, make: Make) -> nn.Module:
    """A copy of the model, in eval mode and with shared tensors, in which `make` replaced one part.

    Args:
        model: the whole model, which is not changed.
        path: the part, as in model.named_modules().
        example: an input of the whole model; inferred when left out.
        make: called with the part and the inputs of its first call, whose batch is at least two.
    """
    whole = shared_copy(model).eval()
    part, seen = part_with_inputs(whole, path, infer(whole) if example is None else call_inputs(example))
    new = make(part, seen)
    for name, value in vars(part).items():  # what the rest of the model may read of it, such as its config
        if not name.startswith("_") and name != "forward":
            new.__dict__.setdefault(name, value)
    for module in list(whole.modules()):
        module._modules.update({name: new for name, child in module._modules.items() if child is part})
    return whole.eval()


def part_with_inputs(whole: nn.Module, path: str, inputs: Inputs) -> tuple[nn.Module, Inputs]:
    """A part of a model in eval mode, and the inputs of its first call when the model runs on its own."""
    part = _find(whole, path)
    return part, _seen(whole, part, path, *inputs)


def shared_copy(module: nn.Module) -> nn.Module:
    """A copy of all modules that shares their parameters and buffers."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    copied: nn.Module = copy.deepcopy(module, memo={id(tensor): tensor for tensor in tensors})
    return copied


def _find(model: nn.Module, path: str) -> nn.Module:
    parts: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    del parts[""]  # the model itself
    if path not in parts:
        raise UsageError(
            f"{type(model).__name__} has no part {path!r}{did_you_mean(path, parts)}",
            where="submodule=",
            remedy="give a path of model.named_modules()",
        )
    return parts[path]


def _seen(
    whole: nn.Module, part: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Inputs:
    """What the part was given first when the whole model ran."""
    calls: list[Inputs] = []
    handle = part.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    try:
        with torch.no_grad(), unchanged(whole):
            whole(*args, **kwargs)
    finally:
        handle.remove()
    _check(calls, path)
    return _batch_of_two(calls[0])


def _check(calls: list[Inputs], path: str) -> None:
    where = f"submodule={path!r}"
    if not calls:
        raise UsageError(
            "the part is not called when the model runs on the example",
            where=where,
            remedy="name a part that the model's forward calls, or give an example that leads there",
        )
    shapes = [tuple(tensor.shape for tensor in _tensors(call)) for call in calls]
    if not shapes[0]:
        raise UsageError(
            "the part is called without a tensor",
            where=where,
            remedy="name the part inside or around it that takes the image or the tokens",
        )
    if len(set(shapes)) > 1:
        warnings.warn(
            f"{path} is called {len(calls)} times with {len(set(shapes))} different shapes; it was captured "
            "with those of the first call and refuses the others",
            stacklevel=6,
        )


def _tensors(call: Inputs) -> list[Tensor]:
    return [leaf for leaf in compat.tree_flatten(call)[0] if isinstance(leaf, Tensor)]


def _batch_of_two(call: Inputs) -> Inputs:
    """torch.export takes a size of one for a constant of the model."""
    if _tensors(call)[0].shape[:1] != (1,):
        return call
    leaves, spec = compat.tree_flatten(call)
    args, kwargs = compat.tree_unflatten([two(leaf) for leaf in leaves], spec)
    return args, kwargs
