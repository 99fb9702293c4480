from __future__ import annotations

import operator

import pytest
import torch

from prunec import compat, ops

aten = torch.ops.aten


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (aten.reshape.default, "reshape"),
        (aten.add.Tensor, "add"),
        (torch.ops.higher_order.wrap_with_set_grad_enabled, "wrap_with_set_grad_enabled"),
        (operator.getitem, "getitem"),
        (ops.gather, "gather"),
        ("weight", "weight"),
    ],
)
def test_the_plain_name_of_an_operator(target: object, name: str) -> None:
    assert compat.op_name(target) == name
    assert compat.is_aten(target) is (name in ("reshape", "add"))


def test_what_changes_its_arguments() -> None:
    assert compat.mutates(aten.add_.Tensor)
    assert not compat.mutates(aten.add.Tensor)
    assert not compat.mutates(operator.add)


def test_what_differs_from_call_to_call() -> None:
    assert compat.is_random(aten.rand.default)
    assert compat.is_random(aten.dropout.default)
    assert not compat.is_random(aten.add.Tensor)
    assert not compat.is_random(operator.getitem)


@pytest.mark.parametrize(
    ("target", "args", "places"),
    [
        (aten.reshape.default, ("x", [2, 3, 4]), [(1, 0), (1, 1), (1, 2)]),
        (aten.expand.default, ("x", [-1, 3]), [(1, 0), (1, 1)]),
        (aten.narrow.default, ("x", 1, 0, 5), [(2,), (3,)]),
        (aten.slice.Tensor, ("x", 1, None, 5), [(3,)]),
        (aten.split_with_sizes.default, ("x", [1, 4], 1), [(1, 0), (1, 1)]),
        (aten.permute.default, ("x", [0, 2, 1]), []),
        (aten.transpose.int, ("x", 1, 2), []),
        (aten.linear.default, ("x", "w"), []),
        (operator.getitem, ("x", 3), []),
    ],
)
def test_where_an_operator_takes_sizes(
    target: object, args: tuple[object, ...], places: list[tuple[int, ...]]
) -> None:
    assert list(compat.symbolic_positions(target, args)) == places
