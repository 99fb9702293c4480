"""Nested inputs and outputs as flat lists (`torch.utils._pytree`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch.utils._pytree as pytree

__all__ = [
    "TreeSpec",
    "leaf_names",
    "tree_flatten",
    "tree_leaves",
    "tree_map",
    "tree_unflatten",
    "treespec_of",
]

TreeSpec = pytree.TreeSpec
tree_leaves = pytree.tree_leaves
tree_map = pytree.tree_map
tree_flatten = pytree.tree_flatten
tree_unflatten = pytree.tree_unflatten
treespec_of = pytree.treespec_loads


def leaf_names(inputs: Iterable[tuple[str, Any]]) -> Iterator[str]:
    """For each leaf of named inputs where it is: `x`, `batch['extra'][0]`."""
    for name, value in inputs:
        paths, _ = pytree.tree_flatten_with_path(value)
        yield from (name + pytree.keystr(path) for path, _ in paths)
