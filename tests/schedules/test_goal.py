from __future__ import annotations

from typing import Any

import pytest

from prunec.errors import UsageError
from prunec.schedules.goal import Goal


def test_a_goal_is_one_of_three() -> None:
    assert (Goal(latency=0.6).share, Goal(latency=0.6).loss) == (0.6, None)
    assert (Goal(speedup=2.0).share, Goal(speedup=2.0).loss) == (0.5, None)
    assert (Goal(max_drop=0.01).share, Goal(max_drop=0.01).loss) == (None, 0.01)
    assert str(Goal(None, 1.5, None)) == "at most 0.667 of the dense time"
    assert str(Goal(None, None, 0.01)) == "a loss of at most 0.01"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((None, None, None), "give one of latency, speedup and max_drop, got none"),
        ((0.5, 2.0, None), "got latency and speedup"),
        ((0.5, None, 0.1), "got latency and max_drop"),
        ((0.0, None, None), r"in \(0, 1\), got 0"),
        ((1.0, None, None), r"in \(0, 1\), got 1"),
        ((float("nan"), None, None), "got nan"),
        ((None, 1.0, None), "speedup must be above 1, got 1"),
        ((None, float("nan"), None), "got nan"),
        ((None, None, 0.0), "above 0, got 0"),
        ((None, None, -1.0), "above 0, got -1"),
    ],
)
def test_other_goals_are_refused(given: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Goal(*given)
