"""What torch.export.save writes: kinds of numbers, operators and nestings, as they stand in its files."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
import torch.utils._pytree as pytree

__all__ = [
    "LAYOUTS",
    "MEMORY_FORMATS",
    "SCALAR_TYPES",
    "functional_operator",
    "is_of_core",
    "plain_treespec",
    "treespec_text",
]

SCALAR_TYPES: Mapping[int, torch.dtype] = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16,
    7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip
LAYOUTS: Mapping[int, torch.layout] = {7: torch.strided}
MEMORY_FORMATS: Mapping[int, torch.memory_format] = {
    1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d, 4: torch.preserve_format,
}  # fmt: skip
_PLAIN = (None, "builtins.tuple", "builtins.list", "builtins.dict")


def functional_operator(name: str) -> torch._ops.OpOverload | None:
    """`torch.ops.aten.NAME.OVERLOAD`, where it is an operator that changes none of its arguments."""
    parts = name.split(".")
    if parts[:3] != ["torch", "ops", "aten"] or len(parts) != 5:
        return None
    found = getattr(getattr(torch.ops.aten, parts[3], None), parts[4], None)
    return found if isinstance(found, torch._ops.OpOverload) and not found._schema.is_mutable else None


def is_of_core(found: torch._ops.OpOverload) -> bool:
    """Whether PyTorch counts an operator among ATen's core."""
    return torch.Tag.core in found.tags


def plain_treespec(text: str) -> pytree.TreeSpec:
    """How inputs or outputs nest; ValueError where that is in other containers than Python's own."""
    protocol, outermost = json.loads(text)
    left = [outermost]
    while left:
        part = left.pop()
        if protocol != 1 or part["type"] not in _PLAIN:
            raise ValueError(f"it nests its inputs or outputs in {part['type']!r:.80}")
        left.extend(part["children_spec"])
    return pytree.treespec_loads(text)


def treespec_text(spec: pytree.TreeSpec) -> str:
    """How inputs or outputs nest, as PyTorch writes it."""
    return pytree.treespec_dumps(spec)
