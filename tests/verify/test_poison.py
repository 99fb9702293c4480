"""Dead rows hold NaN, and what they reach is seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prunec.verify import poison

DEAD = [2, 3, 6]
ALIVE = [0, 1, 4, 5, 7]


def stream(seed: int = 0) -> Tensor:
    """One image, eight tokens, of which three are dead."""
    x = torch.randn(1, 8, 4, generator=torch.Generator().manual_seed(seed))
    x[:, DEAD] = float("nan")
    return x


def places(x: Tensor) -> dict[int, list[int]] | None:
    found = poison.alive(x)
    return None if found is None else {axis: index.tolist() for axis, index in found.items()}


def test_a_stream_has_one_dead_axis() -> None:
    assert places(stream()) == {1: ALIVE}
    assert places(stream().transpose(0, 1)) == {0: ALIVE}
    assert places(torch.randn(1, 8, 4)) == {}


def test_a_product_of_all_pairs_has_two() -> None:
    x = stream()
    assert places(x @ x.mT) == {1: ALIVE, 2: ALIVE}


def test_the_first_row_may_be_dead() -> None:
    x = stream().roll(-2, 1)
    assert places(x) == {1: [2, 3, 5, 6, 7]}


def test_rows_of_a_grid_are_no_slices() -> None:
    assert places(stream().view(1, 2, 4, 4)) is None


def test_what_is_all_dead_has_no_place_that_lives() -> None:
    assert places(stream().mean(dim=1)) is None


def test_memory_looks_at_each_tensor_once() -> None:
    memory, x = poison.Memory(), stream()
    assert memory(x) is memory(x)
    assert memory(torch.arange(3)) == {}
    assert memory(2) == {}


# what is called, and whether rows meet in it
CALLS: dict[str, tuple[Callable[[Tensor], Any], bool]] = {
    "a norm of each row": (lambda x: F.layer_norm(x, (4,)), False),
    "without its first row": (lambda x: x[:, 1:], False),
    "a row in front": (lambda x: torch.cat([torch.ones(1, 1, 4), x], dim=1), False),
    "turned round": (lambda x: x.flip(1), False),
    "a mean": (lambda x: x.mean(dim=1), True),
    "a running sum": (lambda x: x.cumsum(dim=1), True),
    "a maximum": (lambda x: x.amax(dim=1), True),
    "neighbours": (lambda x: x + x.roll(1, 1), True),
    "all pairs": (lambda x: x @ x.mT, True),
}


@pytest.mark.parametrize("name", CALLS)
def test_whether_rows_meet(name: str) -> None:
    call, expected = CALLS[name]
    assert poison.meet(call, (stream(),), {}) is expected


@pytest.mark.parametrize(
    ("call", "rows"),
    [
        (lambda x: x[:, 0], [[0]]),
        (lambda x: x[:, 5:], [[5, 6, 7]]),
        (lambda x: x.split([1, 7], dim=1), [[0], [1, 2, 3, 4, 5, 6, 7]]),
        (lambda x: x.flip(1), [[7, 6, 5, 4, 3, 2, 1, 0]]),
        (lambda x: x.amax(dim=1), None),  # a row, but not the same one for other numbers
        (lambda x: x.mean(dim=1), None),
        (lambda x: x * 2, None),
    ],
)
def test_rows_that_are_picked_by_position(call: Callable[[Tensor], Any], rows: Any) -> None:
    x = stream()
    assert poison.picked(call, (x,), {}, x, 1) == rows


def on_living(call: Callable[..., Any], *args: Tensor) -> Any:
    streams = [(x, found) for x in args if (found := poison.alive(x))]
    return poison.on_living(call, args, {}, call(*args), streams)


def test_a_mean_on_what_lives() -> None:
    x = stream()
    assert torch.equal(on_living(lambda x: x.mean(dim=1), x), x[:, ALIVE].mean(dim=1))


def test_a_softmax_on_what_lives_is_put_back() -> None:
    x = stream()
    found = on_living(lambda logits: logits.softmax(dim=-1), x @ x.mT)
    living = x[:, ALIVE]
    assert places(found) == {1: ALIVE, 2: ALIVE}
    torch.testing.assert_close(found[:, ALIVE][:, :, ALIVE], (living @ living.mT).softmax(dim=-1))


def test_a_table_by_token_follows() -> None:
    x, table = stream(), torch.randn(3, 8)
    torch.testing.assert_close(on_living(torch.matmul, table, x), table[:, ALIVE] @ x[:, ALIVE])


def test_a_size_that_was_burnt_in_has_no_answer() -> None:
    weight = torch.randn(5, 32)
    assert on_living(lambda x: F.linear(x.reshape(1, 32), weight), stream()) is None
