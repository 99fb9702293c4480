from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prunec import ops

BATCH, HEADS, ROWS, TOKENS, WIDTH, EACH = 2, 3, 2, 5, 7, 4


def given() -> dict[str, Tensor]:
    shapes = {
        "query": (BATCH, HEADS, ROWS, EACH),
        "states": (BATCH, TOKENS, WIDTH),
        "key_weight": (HEADS * EACH, WIDTH),
        "value_weight": (HEADS * EACH, WIDTH),
        "value_bias": (HEADS * EACH,),
        "key_bias": (HEADS * EACH,),
    }
    return {name: torch.randn(shape, dtype=torch.double) for name, shape in shapes.items()}


def unfolded(parts: dict[str, Tensor], scale: float, mask: Tensor | None = None) -> Tensor:
    """The same with keys and values that are made."""
    layers = [(parts["key_weight"], parts["key_bias"]), (parts["value_weight"], parts["value_bias"])]
    key, value = (
        F.linear(parts["states"], *layer).unflatten(2, (HEADS, EACH)).transpose(1, 2) for layer in layers
    )
    return F.scaled_dot_product_attention(parts["query"], key, value, attn_mask=mask, scale=scale)


def folded(parts: dict[str, Tensor], scale: float, mask: Tensor | None = None) -> Tensor:
    """The operation on what there is of these."""
    keys, values = ((parts[f"{kind}_weight"], parts.get(f"{kind}_bias")) for kind in ("key", "value"))
    return ops.attend_states(parts["query"], parts["states"], keys, values, scale, mask)


@pytest.mark.parametrize("kind", ["none", "boolean", "additive"])
def test_it_is_attention_to_the_keys_and_values_that_are_not_made(kind: str) -> None:
    parts = given()
    allowed = torch.rand(BATCH, HEADS, ROWS, TOKENS) > 0.4
    allowed[..., 0] = True
    bias = torch.randn(BATCH, HEADS, ROWS, TOKENS, dtype=torch.double).masked_fill(~allowed, float("-inf"))
    mask = {"none": None, "boolean": allowed, "additive": bias}[kind]
    without = {name: part for name, part in parts.items() if name != "key_bias"}
    found = folded(without, 0.3, mask)
    torch.testing.assert_close(found, unfolded(parts, 0.3, mask))  # which has the keys' bias: no difference


@pytest.mark.parametrize("boolean", [True, False])
def test_a_query_that_may_look_at_nothing_gets_zeros_not_the_bias(boolean: bool) -> None:
    parts = given()
    mask = torch.ones(1, 1, ROWS, TOKENS, dtype=torch.bool)
    mask[:, :, 1] = False
    hidden = mask if boolean else torch.zeros(mask.shape, dtype=torch.double).masked_fill(~mask, -torch.inf)
    found = folded(parts, 1.0, hidden)
    assert not found[:, :, 1].any()
    assert found[:, :, 0].abs().min() > 0


def test_without_a_bias_of_the_values() -> None:
    parts = given()
    zeros = {**parts, "value_bias": torch.zeros(HEADS * EACH, dtype=torch.double)}
    without = {name: part for name, part in parts.items() if name != "value_bias"}
    torch.testing.assert_close(folded(without, 1.0), unfolded(zeros, 1.0))


def test_the_keys_bias_has_its_gradient_of_zeros_in_training() -> None:
    parts = {name: part.requires_grad_() for name, part in given().items()}
    found = torch.autograd.grad(folded(parts, 0.3).square().sum(), list(parts.values()))
    expected = torch.autograd.grad(unfolded(parts, 0.3).square().sum(), list(parts.values()))
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-7)
    assert not found[-1].any()
