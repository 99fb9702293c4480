"""Which values of a padded program may be packed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests import moding, tiny
from tests.passes.packing import (
    Overwriting,
    Prepending,
    Softmaxed,
    Summing,
    assert_same,
    last_block,
    packed,
    packed_ops,
    padded,
)
from tests.passes.padding import Biased
from tests.tiny import Mlp, counts, pixels


@pytest.mark.parametrize(
    ("mlp", "operator"), [(Overwriting, "slice_scatter"), (Prepending, "cat"), (Summing, "cumsum")]
)
def test_what_depends_on_places_or_lets_rows_meet_is_not_packed(mlp: type[nn.Module], operator: str) -> None:
    model = last_block(mlp)
    program = padded(model)
    made = packed(program)
    assert operator in tiny.targets_of(made)
    assert operator not in packed_ops(made)
    assert "gelu" in packed_ops(packed(padded(last_block(Mlp))))
    kept, images = moding.kept_sets(program, 4), pixels(4)
    with torch.no_grad():
        one, other = (moding.run(each, [images], kept).result[0] for each in (program, made))
    assert moding.difference(one, other) < moding.TOLERANCE


@pytest.mark.parametrize("attention", [Softmaxed, Biased])
def test_attention_that_is_spelled_out_or_has_a_mask_of_its_own_stays_padded(
    attention: type[nn.Module],
) -> None:
    program = padded(last_block(Mlp, attention))
    made = packed(program)
    assert counts(made, "pack rows")["attention"] == 0
    assert {"softmax", "matmul"}.isdisjoint(packed_ops(made))
    assert {"gelu", "linear"} <= packed_ops(made)
    assert_same(program, made)
