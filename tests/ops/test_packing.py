from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prunec import ops
from tests.ops.cases import BATCH, ENDS, TOKENS, cheap, masks, rows


@cheap
@given(kept=masks(), swapped=st.booleans())
def test_picked_rows_can_be_spread_and_put_again(kept: Tensor, swapped: bool) -> None:
    axes = (2, 1) if swapped else (1, 0)  # of tokens, of images
    x = torch.randn(4, BATCH, TOKENS) if swapped else torch.randn(BATCH, TOKENS, 4)
    index = ops.pack(kept, *ENDS)
    valid = ops.valid_mask(kept, index)
    chosen, slots = ops.rows_of(valid), ops.slots(valid)
    places = ops.places(index, chosen, TOKENS)
    packed = ops.unpad(x, places, *axes)
    plain = x.permute(1, 2, 0) if swapped else x
    values = packed.permute(1, 2, 0)[0] if swapped else packed[0]
    assert torch.equal(values, plain[kept])  # in the order of images, and of rows
    assert ops.token_numbers(index, chosen)[0].tolist() == [place for row in rows(kept) for place in row]
    spread = ops.pad(packed, slots, *axes)
    again = spread.permute(1, 2, 0) if swapped else spread
    assert torch.equal(again[valid], plain[kept])
    zeros = ops.put(torch.zeros_like(x), packed, places, *axes)
    whole = zeros.permute(1, 2, 0) if swapped else zeros
    assert torch.equal(whole, torch.where(kept.unsqueeze(2), plain, 0.0))


@cheap
@given(outer=masks(), inner=masks())
def test_rows_among_packed_rows(outer: Tensor, inner: Tensor) -> None:
    x = torch.randn(BATCH, TOKENS, 4)
    index = ops.pack(outer, *ENDS)
    valid = ops.valid_mask(outer, index)
    packed = ops.unpad(x, ops.places(index, ops.rows_of(valid), TOKENS))
    kept = inner.gather(1, index) & valid
    second = ops.pack(kept, *ENDS)
    among = ops.places_among(ops.slots(valid), second, ops.rows_of(ops.valid_mask(kept, second)))
    fewer = ops.keep(packed, among)
    assert torch.equal(fewer[0], x[outer & inner])
    put = ops.put_among(torch.zeros_like(packed), fewer, among)
    assert torch.equal(put[0], torch.where(inner.unsqueeze(2), x, 0.0)[outer])


def test_a_fixed_total() -> None:
    valid = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
    assert torch.equal(ops.fixed_rows_of(valid, 2), ops.rows_of(valid))
