from __future__ import annotations

import pytest
import torch

from prunec import ops


def test_filled_and_rescaled_a_mean_is_that_of_the_rows_that_count() -> None:
    x, valid = torch.randn(3, 6, 4), torch.rand(3, 6) > 0.4
    valid[:, 0] = True
    filled = ops.fill(x, valid, 0.0, 1, 0)
    found = ops.rescale(filled.mean(dim=1), filled, valid, 1, 0)
    expected = torch.stack([image[there].mean(dim=0) for image, there in zip(x, valid, strict=True)])
    torch.testing.assert_close(found, expected)
    largest = ops.fill(x.transpose(0, 1), valid, float("-inf"), 0, 1).amax(dim=0)  # tokens first
    assert torch.equal(
        largest, torch.stack([image[there].amax(dim=0) for image, there in zip(x, valid, strict=True)])
    )


VALID = torch.tensor([[True, False, True], [True, True, False]])


def test_rows_beside_the_stream_always_count() -> None:
    assert ops.valid_mask_among(VALID, 1, 2).tolist() == [
        [True, True, False, True, True, True],
        [True, True, True, False, True, True],
    ]
    assert ops.valid_mask_among(VALID, -1, 0).tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize("kind", ["none", "boolean", "additive"])
def test_keys_that_are_padding_are_hidden_on_top_of_any_mask(kind: str) -> None:
    query, key, value = (torch.randn(2, 2, 3, 4) for _ in range(3))
    boolean = torch.rand(2, 1, 3, 3) > 0.5
    boolean[..., 0] = True
    own = {"none": None, "boolean": boolean, "additive": torch.randn(2, 2, 3, 3)}[kind]
    found = torch.nn.functional.scaled_dot_product_attention(query, key, value, ops.key_mask(VALID, own))
    logits = query @ key.transpose(-2, -1) / 2
    if own is not None:
        logits = logits.masked_fill(~own, -torch.inf) if own.dtype == torch.bool else logits + own
    expected = ops.mask_keys(logits, VALID).softmax(dim=-1) @ value
    torch.testing.assert_close(found, expected)
    assert not ops.mask_keys(logits, VALID).softmax(dim=-1)[0, :, :, 1].any()


@pytest.mark.parametrize("kind", ["none", "boolean", "additive"])
def test_a_key_that_stands_for_two_counts_as_two(kind: str) -> None:
    query, key, value = (torch.randn(1, 2, 3, 4, dtype=torch.double) for _ in range(3))
    own = {"none": None, "boolean": torch.ones(1, 1, 3, 3, dtype=torch.bool).tril(), "additive": None}[kind]
    if kind == "additive":
        own = torch.randn(1, 2, 3, 3, dtype=torch.double)
    size = torch.tensor([[1.0, 2.0, 1.0]], dtype=torch.double)
    attend = torch.nn.functional.scaled_dot_product_attention
    found = attend(query, key, value, ops.key_bias(size, own))
    twice = [0, 1, 1, 2]
    expected = attend(query, key[:, :, twice], value[:, :, twice], None if own is None else own[..., twice])
    torch.testing.assert_close(found, expected)
    spelled = ops.bias_keys(query @ key.transpose(-2, -1) / 2, size).softmax(dim=-1) @ value
    if own is None:
        torch.testing.assert_close(spelled, expected)


def test_a_mask_of_numbers_weighs_what_is_summed_and_hides_what_is_compared() -> None:
    x, weight = torch.randn(2, 3, 4), torch.tensor([[1.0, 0.5, 0.0], [1.0, 1.0, 0.0]])
    torch.testing.assert_close(ops.fill(x, weight, 0.0, 1, 0), x * weight[:, :, None])
    assert torch.isinf(ops.fill(x, weight, float("-inf"), 1, 0)[:, 2]).all()


def test_entries_of_an_image_share_its_mask() -> None:
    x = torch.randn(4, 3, 5)  # two heads of each image
    filled = ops.fill(x, VALID, 7.0, 1, 0, each=2)
    assert torch.equal(filled, x.masked_fill(~VALID[[0, 0, 1, 1]][:, :, None], 7.0))
