from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prunec import ops

KEPT = torch.tensor([[True, True, False, True, True], [True, False, False, True, True]])
ENDS = (1, 1)


def double(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.double, requires_grad=True)


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_a_mask_is_hard_in_value_and_soft_in_its_gradient(temperature: float) -> None:
    score, bound = double(2, 5), torch.zeros(2, 1, dtype=torch.double)
    mask = ops.straight_through(KEPT, score, bound, *ENDS, None, temperature)
    assert torch.equal(mask, KEPT.double())
    (found,) = torch.autograd.grad(mask.sum(), score)
    share = torch.sigmoid(score.detach() / temperature)
    expected = share * (1 - share) / temperature
    expected[:, [0, -1]] = 0.0  # protected
    torch.testing.assert_close(found, expected)


def test_without_a_bound_it_is_the_lowest_score_that_was_kept() -> None:
    score = double(2, 5)
    lowest = torch.stack([row[kept].min() for row, kept in zip(score.detach(), KEPT, strict=True)])
    found, expected = (
        torch.autograd.grad(ops.straight_through(KEPT, score, bound, *ENDS).sum(), score)[0]
        for bound in (None, lowest[:, None])
    )
    assert torch.equal(found, expected)


def test_what_was_dropped_before_stays_dropped() -> None:
    before = torch.ones(2, 5, dtype=torch.double)
    before[:, 3] = 0.0
    score = double(2, 5)
    mask = ops.straight_through(KEPT, score, None, *ENDS, before)
    assert mask[:, 3].tolist() == [0.0, 0.0]
    assert not torch.autograd.grad(mask.sum(), score)[0][:, 3].any()


@pytest.mark.parametrize("dim", [0, 1])
def test_blend_takes_kept_rows_from_one_stream_and_the_others_from_the_other(dim: int) -> None:
    base, x = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    given = (base, x) if dim == 1 else (base.transpose(0, 1), x.transpose(0, 1))
    expected = torch.where(KEPT[:, :, None], x, base)
    for mask in (KEPT, KEPT.float()):
        found = ops.blend(*given, mask, dim)
        assert torch.equal(found if dim == 1 else found.transpose(0, 1), expected)
    half = ops.blend(*given, torch.full((2, 5), 0.5), dim)
    torch.testing.assert_close(half if dim == 1 else half.transpose(0, 1), (base + x) / 2)


def weighed(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, own: Tensor | None) -> Tensor:
    logits = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    if own is not None:
        logits = logits.masked_fill(~own, float("-inf")) if own.dtype == torch.bool else logits + own
    shares = logits.exp() * mask[:, None, None]
    return shares / shares.sum(dim=-1, keepdim=True) @ value


@pytest.mark.parametrize("kind", ["none", "boolean", "bias of each head"])
def test_each_key_weighs_what_the_mask_says(kind: str) -> None:
    query, key, value = (double(2, 3, 5, 4) for _ in range(3))
    bias = torch.randn(2, 3, 5, 5, dtype=torch.double)
    boolean = (torch.rand(2, 1, 5, 5) > 0.3) | torch.eye(5, dtype=torch.bool)
    boolean[..., 0] = True  # a key that both images keep
    own = {"none": None, "boolean": boolean, "bias of each head": bias}[kind]
    mask = KEPT.double().requires_grad_()
    parts = [query, key, value, mask]
    found, expected = ops.attend_kept(*parts, own), weighed(*parts, own)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(  # of the mask too, although the forward is fused
        torch.autograd.grad(found.square().sum(), parts), torch.autograd.grad(expected.square().sum(), parts)
    )


def test_a_mask_without_gradient_is_a_mask_of_the_fused_call() -> None:
    query, key, value = (double(2, 3, 5, 4) for _ in range(3))
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=KEPT[:, None, None])
    for mask in (KEPT, KEPT.double()):
        assert torch.equal(ops.attend_kept(query, key, value, mask), expected)


def test_a_softmax_over_the_keys_that_are_kept() -> None:
    logits = torch.randn(2, 3, 5, 5, dtype=torch.double)
    found = ops.softmax_kept(logits, KEPT)
    torch.testing.assert_close(found, logits.masked_fill(~KEPT[:, None, None], float("-inf")).softmax(dim=-1))
    assert ops.softmax_kept(logits.half(), KEPT, torch.float).dtype == torch.float
    assert not ops.softmax_kept(logits, torch.zeros(2, 5)).any()  # no key at all: zeros, not nan
