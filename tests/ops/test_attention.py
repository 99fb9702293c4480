from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prunec import ops
from prunec.ops.attention import attend_padded

HEADS, WIDTH = 2, 3


def made(valid: Tensor) -> list[Tensor]:
    """Packed queries, keys and values, as many as rows count: [1, h, S, d]."""
    return [torch.randn(1, HEADS, int(valid.sum()), WIDTH, dtype=torch.double) for _ in range(3)]


def softly(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    return (scale * query @ key.transpose(-2, -1)).softmax(dim=-1) @ value


VALID = torch.tensor([[True, True, False, True], [True, False, False, False], [True, True, True, True]])


@pytest.mark.parametrize("scale", [None, 0.3])
def test_each_image_attends_among_its_own_rows(scale: float | None) -> None:
    query, key, value = made(VALID)
    found = ops.attend(query, key, value, VALID, VALID, scale)
    for rows in (slice(0, 3), slice(3, 4), slice(4, 8)):
        one = [x[:, :, rows] for x in (query, key, value)]
        torch.testing.assert_close(found[:, :, rows], softly(*one, scale or WIDTH**-0.5))


def test_queries_may_be_fewer_than_the_keys_that_they_look_at() -> None:
    first = torch.tensor([[True]] * 3)
    query = made(first)[0]
    _, key, value = made(VALID)
    found = ops.attend(query, key, value, first, VALID)
    assert found.shape == (1, HEADS, 3, WIDTH)
    for image, rows in enumerate((slice(0, 3), slice(3, 4), slice(4, 8))):
        expected = softly(query[:, :, image : image + 1], key[:, :, rows], value[:, :, rows], WIDTH**-0.5)
        torch.testing.assert_close(found[:, :, image : image + 1], expected)


def test_gradients_stay_within_an_image() -> None:
    parts = [part.requires_grad_() for part in made(VALID)]
    assert torch.autograd.gradcheck(lambda q, k, v: ops.attend(q, k, v, VALID, VALID), parts)
    of_keys = torch.autograd.grad(ops.attend(*parts, VALID, VALID)[:, :, 3].sum(), parts)[2]
    assert of_keys[:, :, 3].abs().min() > 0
    assert not of_keys[:, :, [0, 1, 2, 4, 5, 6, 7]].any()


def test_its_shape_is_known_without_running_it() -> None:
    query, key, value = (part.to("meta") for part in made(VALID))
    wide = value.new_empty(*value.shape[:3], 5)
    assert ops.attend(query, key, wide, VALID.to("meta"), VALID.to("meta")).shape == (1, HEADS, 8, 5)


@pytest.mark.parametrize("with_sizes", [False, True])
def test_padded_it_is_the_same(with_sizes: bool) -> None:
    first = torch.tensor([[True, False, True, False]] * 3)
    query = made(first)[0]
    _, key, value = made(VALID)
    size = torch.rand(1, int(VALID.sum()), dtype=torch.double) + 0.5 if with_sizes else None
    given = (query, key, value, first, VALID, 0.3, size)
    torch.testing.assert_close(attend_padded(*given), ops.attend(*given))
