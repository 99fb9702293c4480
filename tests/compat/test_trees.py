from __future__ import annotations

from prunec import compat
from tests.tiny import ViT, captured


def test_the_spec_of_inputs_and_outputs_survives() -> None:
    leaves, spec = compat.tree_flatten((({"a": 1, "b": (2, 3)},), {}))
    assert leaves == [1, 2, 3]
    assert compat.tree_unflatten(leaves, spec) == (({"a": 1, "b": (2, 3)},), {})
    assert captured(ViT()).interface.in_spec.num_leaves == 1


def test_each_leaf_has_a_name_that_says_where_it_is() -> None:
    inputs = [("x", 1), ("batch", {"extra": [2, (3, 4)]})]
    assert list(compat.leaf_names(inputs)) == [
        "x",
        "batch['extra'][0]",
        "batch['extra'][1][0]",
        "batch['extra'][1][1]",
    ]
