"""The difference between two runs, relative to the scale of their outputs, and how large it may be."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from prunec import compat
from prunec.ir.program import Program, with_tensors

#: Largest difference relative to the output's scale that still counts as equal, by precision.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}

HALVES = (torch.bfloat16, torch.float16)
HALF = min(TOLERANCE[kind] for kind in HALVES)

AnyStage = TypeVar("AnyStage", bound=Program)
Other = TypeVar("Other", bound=Program)
Narrow = TypeVar("Narrow", bound=Program)


def seeded(call: Callable[..., Any], flat: tuple[Any, ...]) -> Any:
    """The call's result, with the same random numbers each time."""
    compat.seed(0)
    return call(*flat)


def tolerance_of(program: Program) -> float:
    """The tolerance of the lowest precision in the graph."""
    values = (node.meta.get("val") for node in program.graph.nodes)
    kinds = {value.dtype for value in values if isinstance(value, Tensor) and value.is_floating_point()}
    return max((TOLERANCE.get(kind, 1e-5) for kind in kinds), default=1e-5)


def in_float32(
    first: AnyStage, second: Other, flat: tuple[Any, ...]
) -> tuple[AnyStage, Other, tuple[Any, ...]]:
    """The same programs and inputs with float32 in the place of every 16-bit precision."""
    wide: dict[int, Tensor] = {}  # tied weights stay tied, and both programs share theirs

    def widened(tensor: Tensor) -> Tensor:
        if tensor.dtype not in HALVES:
            return tensor
        return wide.setdefault(id(tensor), nn.Parameter(tensor.detach().float(), requires_grad=False))

    def program(narrow: Narrow) -> Narrow:
        module = with_tensors(narrow.module, widened)
        for node in module.graph.nodes:
            node.args = fx.node.map_aggregate(node.args, _wide_name)
            node.kwargs = fx.node.map_aggregate(node.kwargs, _wide_name)
        module.recompile()
        return narrow.replace(module=module)

    halves = [isinstance(leaf, Tensor) and leaf.dtype in HALVES for leaf in flat]
    inputs = tuple(leaf.float() if half else leaf for leaf, half in zip(flat, halves, strict=True))
    return program(first), program(second), inputs


def _wide_name(argument: Any) -> Any:
    return torch.float32 if argument in HALVES else argument


def worst(found: Any, expected: Any) -> float:
    """The largest difference over all outputs, each relative to its own scale."""
    most = 0.0
    for made, other in zip(found, expected, strict=True):
        if isinstance(other, Tensor):
            most = max(most, relative_difference(made, other))
    return most


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over the largest absolute value; infinite for another shape and for NaN."""
    if found.shape != expected.shape:
        return float("inf")
    if expected.numel() == 0:
        return 0.0
    found, expected = found.detach().double(), expected.detach().double()
    scale = expected.abs().max().clamp_min(1e-12)
    difference = float((found - expected).abs().max() / scale)
    return float("inf") if math.isnan(difference) else difference  # a comparison with NaN is always false


def one(leaf: Any, image: int, batch: int) -> Any:
    """The part of a flat input that belongs to one image."""
    is_batch = isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == batch
    return leaf[image : image + 1] if is_batch else leaf
