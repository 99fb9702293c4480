from __future__ import annotations

from typing import Any

import pytest
import torch

from prunec.errors import UsageError
from prunec.measure.measure import Measure


@pytest.mark.parametrize("name", ["batch", "rounds", "threads"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "2"])
def test_numbers_are_whole_and_at_least_one(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=name) as caught:
        Measure(**{name: value})
    assert repr(value) in caught.value.what
    assert caught.value.where == "Measure"


def test_threads_are_those_asked_for_and_put_back() -> None:
    before = torch.get_num_threads()
    with Measure(threads=before + 1).on_threads():
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with Measure().on_threads():
        assert torch.get_num_threads() == before


def test_what_would_have_no_effect_is_refused_by_name() -> None:
    Measure(batch=2).refuse("rounds", "calibrate", where="plan")  # both as they usually are
    with pytest.raises(UsageError, match="rounds") as caught:
        Measure(rounds=7).refuse("calibrate", "rounds", where="plan")
    assert caught.value.where == "plan"
    assert "rounds" in (caught.value.remedy or "")


def test_a_metric_is_a_function() -> None:
    assert Measure(metric=max).metric is max
    with pytest.raises(UsageError, match="metric must be a function") as caught:
        Measure(metric="sklearn.metrics:f1_score")  # type: ignore[arg-type]
    assert "--metric" in (caught.value.remedy or "")
