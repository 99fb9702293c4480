from __future__ import annotations

import json

import pytest
import torch

# Private: the numbers that the table must repeat.
from torch._export.serde import schema, serialize

from prunec import compat


@pytest.mark.parametrize(
    ("name", "functional", "core"),
    [
        ("torch.ops.aten.add.Tensor", True, True),
        ("torch.ops.aten.linear.default", True, False),
        ("torch.ops.aten.add_.Tensor", False, False),
        ("torch.ops.aten.add.nothing", False, False),
        ("torch.ops.aten.add", False, False),
        ("torch.ops.aten.add.__init__", False, False),
        ("torch.ops.prims.mul.default", False, False),
        ("torch.load", False, False),
    ],
)
def test_an_operator_is_known_by_its_name(name: str, functional: bool, core: bool) -> None:
    found = compat.functional_operator(name)
    assert (found is not None) is functional
    assert (found is not None and compat.is_of_core(found)) is core


def test_numbers_of_kinds_are_pytorchs_own() -> None:
    for ours, kinds, theirs in (
        (compat.SCALAR_TYPES, schema.ScalarType, serialize._SERIALIZE_TO_TORCH_DTYPE),
        (compat.LAYOUTS, schema.Layout, serialize._SERIALIZE_TO_TORCH_LAYOUT),
        (compat.MEMORY_FORMATS, schema.MemoryFormat, serialize._SERIALIZE_TO_TORCH_MEMORY_FORMAT),
    ):
        assert {number: theirs[kinds(number).value] for number in ours} == ours
    assert {torch.float32, torch.bfloat16, torch.bool} < set(compat.SCALAR_TYPES.values())


LEAF = {"type": None, "context": None, "children_spec": []}


def test_a_nesting_of_pythons_own_containers() -> None:
    nested = {"type": "builtins.dict", "context": json.dumps(["a", "b"]), "children_spec": [LEAF, LEAF]}
    spec = compat.plain_treespec(json.dumps([1, nested]))
    assert compat.tree_unflatten([1, 2], spec) == {"a": 1, "b": 2}


@pytest.mark.parametrize("kind", ["collections.OrderedDict", "a.B"])
def test_a_nesting_in_other_classes(kind: str) -> None:
    inner = {"type": kind, "context": "null", "children_spec": [LEAF]}
    outer = {"type": "builtins.tuple", "context": "null", "children_spec": [inner]}
    with pytest.raises(ValueError, match=f"nests its inputs or outputs in '{kind}'"):
        compat.plain_treespec(json.dumps([1, outer]))
    with pytest.raises(ValueError, match="nests"):
        compat.plain_treespec(json.dumps([2, LEAF]))
