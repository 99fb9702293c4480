from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from prunec import compat
from prunec.compat import fake_tensors
from tests.tiny import ViT, captured

aten = torch.ops.aten


@pytest.fixture
def mode() -> compat.FakeMode:
    return compat.fake_mode_of(captured(ViT()).graph)


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The calls that PyTorch was asked about."""
    calls: list[Any] = []
    original = fake_tensors.evaluate

    def evaluate(mode: compat.FakeMode, target: Callable[..., Any], *given: Any) -> Any:
        calls.append(target)
        return original(mode, target, *given)

    monkeypatch.setattr(fake_tensors, "evaluate", evaluate)
    return calls


def stream(mode: compat.FakeMode, *sizes: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    return compat.fake_like(mode, sizes, dtype, torch.device("cpu"))


def plainly(value: Any) -> Any:
    """Sizes, steps and precision of what a call yields."""
    return [
        ([str(compat.expression(size)) for size in (*leaf.shape, *leaf.stride())], leaf.dtype)
        for leaf in compat.tree_leaves(value)
    ]


CALLS: dict[str, tuple[Callable[..., Any], Callable[[Tensor, Any], tuple[Any, ...]]]] = {
    "a product": (aten.matmul.default, lambda x, n: (x, x.transpose(1, 2))),
    "a shape": (aten.view.default, lambda x, n: (x, [2, n * 2, 2])),
    "several results": (aten.topk.default, lambda x, n: (x, 3)),
    "pieces": (aten.split.Tensor, lambda x, n: (x, 2, 2)),
    "a function": (torch.nn.functional.gelu, lambda x, n: (x,)),
    "a table": (aten.cat.default, lambda x, n: ([x, x.new_empty(2, 5, 4)], 1)),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_on_another_count_has_the_type_that_pytorch_gives_it(
    name: str, mode: compat.FakeMode, anew: list[Any]
) -> None:
    function, given = CALLS[name]
    sizes = [compat.new_symbol(mode, "one", 17), compat.new_symbol(mode, "other", 19)]
    with mode:
        (first, second) = (given(stream(mode, 2, size, 4), size) for size in sizes)
    compat.evaluate(mode, function, first, {})
    found, forced = compat.evaluate(mode, function, second, {})
    assert anew == [function]
    assert forced == set()
    expected, _ = fake_tensors.evaluate(mode, function, second, {})
    assert type(found) is type(expected)
    assert plainly(found) == plainly(expected)
    hints = [compat.hint(size) for leaf in compat.tree_leaves(found) for size in leaf.shape]
    assert hints == [compat.hint(size) for leaf in compat.tree_leaves(expected) for size in leaf.shape]


def test_two_counts_are_not_one(mode: compat.FakeMode, anew: list[Any]) -> None:
    one, other = compat.new_symbol(mode, "one", 17), compat.new_symbol(mode, "other", 19)
    x, y = stream(mode, one, 4), stream(mode, other, 4)
    assert compat.evaluate(mode, torch.add, (x, x), {})[1] == set()
    _, forced = compat.evaluate(mode, torch.add, (x, stream(mode, 17, 4)), {})
    assert forced == {compat.expression(one)}
    for _ in range(2):
        with pytest.raises((RuntimeError, ValueError)):
            compat.evaluate(mode, torch.add, (x, y), {})
    assert anew == [torch.add] * 3


def test_what_forces_a_count_forces_the_other_too(mode: compat.FakeMode, anew: list[Any]) -> None:
    for number in (17, 19):
        size = compat.new_symbol(mode, f"n{number}", 17)
        x = stream(mode, size, 4)
        _, forced = compat.evaluate(mode, torch.add, (x, stream(mode, 17, 4)), {})
        assert forced == {compat.expression(size)}
        assert compat.expression(size) not in mode.shape_env.replacements
    assert len(anew) == 1


@pytest.mark.parametrize(
    "other",
    [
        lambda mode, n: (stream(mode, 2, n, 4, dtype=torch.float64), 1),
        lambda mode, n: (stream(mode, 2, n, 8), 1),
        lambda mode, n: (stream(mode, 2, 4, n).transpose(1, 2), 1),
        lambda mode, n: (stream(mode, 2, n, 4), 1.0),
        lambda mode, n: (stream(mode, 2, n, 4), True),
        lambda mode, n: (stream(mode, 2, n, 4), n),
    ],
)
def test_calls_that_differ_are_each_typed(
    other: Callable[..., tuple[Any, ...]], mode: compat.FakeMode, anew: list[Any]
) -> None:
    size = compat.new_symbol(mode, "n", 17)
    compat.evaluate(mode, torch.mul, (stream(mode, 2, size, 4), 1), {})
    with mode:
        given = other(mode, size)
    found, _ = compat.evaluate(mode, torch.mul, given, {})
    assert len(anew) == 2
    assert plainly(found) == plainly(fake_tensors.evaluate(mode, torch.mul, given, {})[0])


def test_what_depends_on_more_than_types_is_typed_each_time(mode: compat.FakeMode, anew: list[Any]) -> None:
    numbers = [stream(mode, dtype=torch.int64) for _ in range(2)]
    read = [compat.evaluate(mode, aten.item.default, (number,), {})[0] for number in numbers]
    assert len({compat.expression(size) for size in read}) == 2  # each reading is another number
    for _ in range(2):
        compat.evaluate(mode, torch.neg, (stream(mode, read[0]),), {})
        compat.evaluate(mode, torch.nn.Identity(), (numbers[0],), {})
    assert len(anew) == 6


def test_another_default_precision_is_another_call(mode: compat.FakeMode, anew: list[Any]) -> None:
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            found, _ = compat.evaluate(mode, torch.mul, (stream(mode, 3, dtype=torch.int64), 0.5), {})
        finally:
            torch.set_default_dtype(torch.float32)
        assert found.dtype == dtype
    assert len(anew) == 2
