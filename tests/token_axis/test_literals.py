from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.token_axis.repairing import Chain, check, heads

LITERALS: dict[str, tuple[Chain, int]] = {
    "N": (heads, 1),
    "N by view": (lambda x: x.view(x.shape[0], x.shape[1], 2, -1), 1),
    "-1 beside N": (lambda x: x.reshape(-1, x.shape[1], 2, 4), 1),
    "N - 1": (lambda x: x[:, 1:].reshape(x.shape[0], x.shape[1] - 1, 2, -1), 1),
    "N - 1 narrowed": (lambda x: x.narrow(1, 1, x.shape[1] - 1), 1),
    "N - 2 from both ends": (lambda x: x[:, 1:-1].reshape(x.shape[0], x.shape[1] - 2, -1, 2), 1),
    "2N by one axis": (lambda x: x.reshape(x.shape[0], 2 * x.shape[1], -1), 1),
    "2N by cat": (lambda x: torch.cat([x, x], 1).reshape(x.shape[0], 2 * x.shape[1], 2, -1), 1),
    "B * N": (lambda x: x.reshape(x.shape[0] * x.shape[1], x.shape[2]), 1),
    "B * N and back": (
        lambda x: (x.reshape(x.shape[0] * x.shape[1], x.shape[2]) * 2).reshape(x.shape[0], x.shape[1], -1),
        2,
    ),
    "N * heads": (lambda x: heads(x).reshape(x.shape[0], 2 * x.shape[1], -1), 2),
    "N * N": (lambda x: (x @ x.mT).reshape(x.shape[0], x.shape[1] * x.shape[1]), 1),
    "N twice": (lambda x: (x @ x.mT).reshape(x.shape[0], 1, x.shape[1], x.shape[1]), 2),
    "split into protected and patches": (lambda x: x.split([1, x.shape[1] - 1], dim=1)[1] + 1, 1),
    "the last axis": (lambda x: x.mT.reshape(x.shape[0], 2, -1, x.shape[1]), 1),
    "nothing burnt in": (lambda x: x.flatten(2).unflatten(2, (2, -1)).transpose(1, 2), 0),
}


def test_heads_that_are_as_wide_as_the_stream_is_long() -> None:
    def chain(x: Tensor) -> Tensor:  # [B, 2, N, C / 2] -> [B * 2, N, C / 2], where N is C / 2
        return heads(x).reshape(x.shape[0] * 2, -1, x.shape[2] // 2).softmax(dim=-1)

    assert check(chain, 7, 14).repairs.literals == 1


@pytest.mark.parametrize("name", LITERALS)
@pytest.mark.parametrize("tokens", [13, 20])
def test_a_literal_is_solved_for(name: str, tokens: int) -> None:
    chain, literals = LITERALS[name]
    repaired = check(chain, tokens, 8, prefix=1, suffix=1)
    assert repaired.repairs.literals == literals
    assert repaired.repairs.gathered == []


COLLISIONS: dict[str, tuple[Chain, int, int]] = {
    "N is the number of channels": (heads, 8, 8),
    "N is the channels of a head": (heads, 4, 8),
    "N is the number of heads": (lambda x: x.reshape(x.shape[0], x.shape[1], 6, 4).transpose(1, 2), 6, 24),
    "N - 1 is the number of heads": (lambda x: x[:, 1:].reshape(x.shape[0], x.shape[1] - 1, 6, 4), 7, 24),
    "N is twice the heads": (lambda x: x.reshape(x.shape[0], x.shape[1], 6, 2).transpose(1, 2), 12, 12),
    "N is the number of channels, transposed": (lambda x: x.mT.reshape(x.shape[0], 2, 4, x.shape[1]), 8, 8),
    "N is three times the channels": (lambda x: x.reshape(x.shape[0], x.shape[1], 3, -1), 24, 24),
}


@pytest.mark.parametrize("name", COLLISIONS)
def test_a_size_that_only_happens_to_equal_the_length_stays(name: str) -> None:
    chain, tokens, channels = COLLISIONS[name]
    assert check(chain, tokens, channels, prefix=1).repairs.literals == 1


@pytest.mark.parametrize(("tokens", "channels"), [(6, 12), (6, 6), (12, 6), (6, 18)])
def test_channels_that_are_a_multiple_of_the_length_stay_when_the_batch_is_folded_in(
    tokens: int, channels: int
) -> None:
    def folded(x: Tensor) -> Tensor:
        b, n, c = x.shape
        return (x.reshape(b * n, c) * 2).reshape(b, n, c)

    assert check(folded, tokens, channels).repairs.literals == 2


@dataclass(frozen=True)
class Step:
    """One operator, told by axes and factors, so that it applies at any length."""

    name: str
    numbers: tuple[int, ...]
    wildcard: bool


@st.composite
def chains(draw: st.DrawFn) -> tuple[list[Step], int, int]:
    # All other sizes are products of 2 and 3, which neither these lengths nor one less are: a length that
    # equals another size can be ambiguous, and has its own tests above.
    tokens = draw(st.sampled_from([11, 15, 20, 21, 22, 23, 26, 30]))
    channels = draw(st.sampled_from([4, 6, 8, 12]))
    names = st.sampled_from(
        ["split channels", "merge", "swap", "fold batch", "narrow", "drop", "twice", "scale", "stack", "back"]
    )
    steps = draw(
        st.lists(
            st.builds(Step, names, st.tuples(st.integers(0, 9), st.integers(2, 3)), st.booleans()),
            min_size=1,
            max_size=5,
        )
    )
    return steps, tokens, channels


def applied(steps: list[Step], x: Tensor) -> Tensor:
    """The chain on x. The axis of the tokens is tracked, so that each step means the same at any length."""
    axis = 1  # where the tokens are, alone
    batch = 0
    dropped = doubled = False
    for step in steps:
        first, factor = step.numbers
        sizes = list(x.shape)
        others = [dim for dim in range(x.dim()) if dim not in (axis, batch)]
        if step.name == "split channels" and others and x.dim() < 6:
            dim = others[first % len(others)]
            if sizes[dim] % factor == 0:
                rest = -1 if step.wildcard else sizes[dim] // factor
                x = x.reshape(*sizes[:dim], factor, rest, *sizes[dim + 1 :])
                axis, batch = axis + (dim < axis), batch + (dim < batch)
        elif step.name == "merge" and len(others) > 1:
            pairs = [dim for dim in others if dim + 1 in others]
            if pairs:
                dim = pairs[first % len(pairs)]
                merged = -1 if step.wildcard else sizes[dim] * sizes[dim + 1]
                x = x.reshape(*sizes[:dim], merged, *sizes[dim + 2 :])
                axis, batch = axis - (dim < axis), batch - (dim < batch)
        elif step.name == "swap":
            one, other = first % x.dim(), factor % x.dim()
            x = x.transpose(one, other)
            axis = {one: other, other: one}.get(axis, axis)
            batch = {one: other, other: one}.get(batch, batch)
        elif step.name == "fold batch":
            order = [batch, axis, *others]
            x = x.permute(order).reshape(sizes[batch] * sizes[axis], -1) * 2
            x = x.reshape(sizes[batch], sizes[axis], *(sizes[dim] for dim in others))
            batch, axis = 0, 1
        elif step.name == "drop" and not dropped:
            x, dropped = x.narrow(axis, 1, sizes[axis] - 1), True
        elif step.name == "twice" and not doubled:
            x, doubled = torch.cat([x, x + 1], dim=axis), True
        elif step.name == "narrow":
            x = x.narrow(axis, 0, sizes[axis]) * factor
        elif step.name == "stack" and x.dim() < 6:
            x = x.unsqueeze(0).expand(factor, *sizes) + 1.0
            axis, batch = axis + 1, batch + 1
        elif step.name == "back" and others:
            x = x.permute(batch, axis, *others).reshape(sizes[batch], sizes[axis], -1)
            batch, axis = 0, 1
        else:
            x = x * factor
    return x


@settings(deadline=None, max_examples=25)
@given(chains())
def test_any_chain_of_reshapes_is_repaired(drawn: tuple[list[Step], int, int]) -> None:
    steps, tokens, channels = drawn
    check(lambda x: applied(steps, x), tokens, channels, prefix=1)


@pytest.mark.parametrize("tokens", [4, 5, 6])
def test_a_very_short_stream_is_repaired_too(tokens: int) -> None:
    assert check(lambda x: x.narrow(1, 0, x.shape[1]) * 2, tokens, 8).repairs.literals == 1
