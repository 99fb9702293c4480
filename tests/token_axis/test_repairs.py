from __future__ import annotations

from prunec.token_axis.repairs import Repairs


def test_repairs_are_counted_and_numbers_that_follow_are_named_only_where_there_are_any() -> None:
    repairs = Repairs(literals=2, gathered=["cos"], scatters=1)
    assert repairs.counts() == {"literals": 2, "gathered": 1, "scatters": 1, "region_ends": 0}
    repairs.counted.append("topk")
    assert repairs.counts()["counted"] == 1
