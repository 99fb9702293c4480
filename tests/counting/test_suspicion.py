"""Numbers that could follow the token count, where the code cannot be run at another one."""

from __future__ import annotations

import pytest
from torch import Tensor

import prunec
from prunec.compiler import compile_source
from prunec.policy.policy import Policy
from tests.counting.models import (
    TOKENS,
    TOLERANCE,
    Counting,
    Early,
    check,
    early_of_one_size,
    exported,
    heads_model,
    pruned,
    ready,
)


@pytest.mark.parametrize("place", range(2), ids=["grid", "tokens"])
def test_a_model_of_one_image_size_is_cut_at_its_patches(place: int) -> None:
    check(early_of_one_size, place)


def test_a_number_of_the_image_is_refused_where_the_model_takes_no_other_size() -> None:
    with pytest.raises(prunec.RecognitionError, match="takes no other size") as refused:
        pruned(ready(Early(image=20)))
    assert "return self.divided(" in str(refused.value.where)


def test_a_model_that_runs_at_one_count_only_is_refused_for_a_number_that_equals_it() -> None:
    with pytest.raises(
        prunec.RecognitionError, match="cannot be run at another one: AssertionError"
    ) as refused:
        pruned(ready(Early(tokens=TOKENS)))
    assert "return self.divided(" in str(refused.value.where)


def test_a_model_that_runs_at_one_count_only_is_pruned_where_no_number_equals_it() -> None:
    class Insists(Counting):
        def behind(self, x: Tensor) -> Tensor:
            return super().behind(x) * 0.7

        def forward(self, pixels: Tensor) -> Tensor:
            x = self.embed(pixels)
            assert x.shape[1] == TOKENS
            return self.behind(self.blocks[0](x))

    check(lambda: ready(Insists()), 0)


def test_a_program_without_code_is_refused_for_a_number_that_equals_the_count() -> None:
    source = exported(heads_model("sum * (1 / n)"))
    with pytest.raises(prunec.RecognitionError, match=r"0\.0384615 may follow .* there is only its graph"):
        compile_source(source, Policy.load("norm").override(blocks=(1,)))


def test_a_program_without_code_is_pruned_where_no_number_equals_the_count() -> None:
    source = exported(ready(Counting([lambda x: x.mean(1) * 0.7])))
    result = compile_source(source, Policy.load("norm").override(blocks=(1,)))
    assert result.certificate.identity <= TOLERANCE
