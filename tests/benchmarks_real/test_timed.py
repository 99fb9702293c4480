"""The error of one preset at the time of another, read off the line through its own points."""

from __future__ import annotations

import pytest
import timed


def row(time: float, error: float) -> dict[str, object]:
    return {"time": time, "l2": {"mean": error}}


def test_the_error_at_a_time_lies_between_the_points_around_it() -> None:
    rows = [row(0.9, 0.1), row(0.5, 0.4), row(0.7, 0.2)]
    assert timed.at_time(rows, 0.6) == pytest.approx(0.3)
    assert timed.at_time(rows, 0.8) == pytest.approx(0.15)
    assert timed.at_time(rows, 0.5) == pytest.approx(0.4)


def test_outside_of_its_points_nothing_is_said() -> None:
    rows = [row(0.9, 0.1), row(0.5, 0.4)]
    assert timed.at_time(rows, 0.4) is None
    assert timed.at_time(rows, 0.95) is None
    assert timed.at_time([], 0.5) is None
