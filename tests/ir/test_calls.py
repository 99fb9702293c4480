from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from prunec import compat
from prunec.ir.calls import CallTypes, signature
from prunec.ir.sizes import sizes_of
from tests.tiny import captured

aten = torch.ops.aten
TOKENS = 9


class Same(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


@pytest.fixture(scope="module")
def setting() -> tuple[CallTypes, fx.Node]:
    """Types of calls on a stream [B, n, 4] that was captured at 9 tokens."""
    shapes = ({0: torch.export.Dim("b", min=2), 1: torch.export.Dim("n", min=2)},)
    exported = torch.export.export(Same(), (torch.randn(3, TOKENS, 4),), dynamic_shapes=shapes)
    (stream,) = exported.graph.find_nodes(op="placeholder")
    types = CallTypes(compat.fake_mode_of(exported.graph), TOKENS)
    (symbol,) = compat.expression(stream.meta["val"].shape[1]).free_symbols
    types.symbols.add(symbol)
    return types, stream


def recorded(stream: fx.Node, *sizes: int) -> Tensor:
    """What a call yielded at capture: the batch is a symbol."""
    return stream.meta["val"].new_empty((stream.meta["val"].shape[0], *sizes))


def test_a_call_that_gives_what_was_recorded_at_the_full_length_has_a_type(
    setting: tuple[CallTypes, fx.Node],
) -> None:
    types, stream = setting
    found = types.type_of(aten.mul.Tensor, (stream, 2), {}, recorded(stream, TOKENS, 4))
    assert sizes_of(found) == sizes_of(stream.meta["val"])
    assert tuple(map(types.at_full_length, sizes_of(found)))[1:] == (TOKENS, 4)


@pytest.mark.parametrize(
    ("target", "args", "sizes"),
    [
        (aten.mul.Tensor, (2,), (TOKENS + 1, 4)),  # another length
        (aten.view.default, ([3, TOKENS, 4],), (TOKENS, 4)),  # forces the token count to be 9
        (aten.mm.default, (2,), (TOKENS, 4)),  # does not run at all
        (aten.split.Tensor, (2, 2), (TOKENS, 4)),  # yields two
    ],
)
def test_any_other_has_none(
    setting: tuple[CallTypes, fx.Node], target: Any, args: tuple[Any, ...], sizes: tuple[int, ...]
) -> None:
    types, stream = setting
    assert types.type_of(target, (stream, *args), {}, recorded(stream, *sizes)) is None


def test_equal_calls_are_typed_once(
    setting: tuple[CallTypes, fx.Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    types, stream = setting
    first = types.type_of(aten.exp.default, (stream,), {}, recorded(stream, TOKENS, 4))
    monkeypatch.setattr(compat, "evaluate", None)
    again = types.type_of(aten.exp.default, (stream,), {}, recorded(stream, TOKENS, 4))
    assert again is first


def test_a_signature_tells_types_apart_and_not_values() -> None:
    (one,) = captured(Same(), torch.randn(2, 5)).graph.find_nodes(op="placeholder")
    assert signature(one) == signature(one.meta["val"])
    assert signature(torch.zeros(2, 3)) == signature(torch.ones(2, 3))
    for other in (torch.zeros(3, 2), torch.zeros(2, 3).double(), torch.zeros(3, 2).T):
        assert signature(torch.zeros(2, 3)) != signature(other)
    nested = {"a": [1, (torch.zeros(2),)], "b": None}
    assert hash(signature(nested)) == hash(signature({"a": (1, [torch.ones(2)]), "b": None}))
