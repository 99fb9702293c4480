from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch

from prunec.measure import cost
from prunec.measure.cost import Timing, measure, ratio

CPU = torch.device("cpu")


class Clock:
    """Time that passes only when a call says so."""

    def __init__(self) -> None:
        self.now, self.calls = 0.0, []

    def call(self, name: str, *seconds: float) -> Callable[[], None]:
        left = list(seconds)

        def run() -> None:
            self.calls.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(cost.time, "perf_counter", lambda: fake.now)
    return fake


def test_samples_are_what_a_call_took(clock: Clock) -> None:
    timings = measure({"a": clock.call("a", 9.0, 1.0, 2.0, 4.0)}, device=CPU, rounds=3, warmup=1)
    assert timings["a"].name == "a"
    assert timings["a"].samples == (1.0, 2.0, 4.0)


def test_rounds_are_interleaved_and_each_has_its_own_order(clock: Clock) -> None:
    calls = {name: clock.call(name, 1.0) for name in "abc"}
    timings = measure(calls, device=CPU, rounds=20, warmup=2)
    assert clock.calls[:6] == ["a", "b", "c"] * 2
    rounds = [tuple(clock.calls[start : start + 3]) for start in range(6, 66, 3)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len(Counter(rounds)) > 3
    assert {len(timing.samples) for timing in timings.values()} == {20}


def test_the_time_is_up_after_five_rounds_at_the_earliest(clock: Clock) -> None:
    timings = measure({"a": clock.call("a", 100.0)}, device=CPU, rounds=20, warmup=0, seconds=60)
    assert len(timings["a"].samples) == 5


def test_the_time_is_up_after_a_whole_round(clock: Clock) -> None:
    calls = {"a": clock.call("a", 3.0), "b": clock.call("b", 5.0)}
    timings = measure(calls, device=CPU, rounds=20, warmup=0, seconds=60)
    assert {len(timing.samples) for timing in timings.values()} == {
        8
    }  # 8 s a round; after 7 of them 56 s are gone


def test_the_warmup_is_not_counted_in(clock: Clock) -> None:
    timings = measure({"a": clock.call("a", 1000.0, 1.0)}, device=CPU, rounds=8, warmup=1, seconds=60)
    assert timings["a"].samples == (1.0,) * 8


def test_the_ratio_cancels_what_drifts() -> None:
    drift = [1.0, 10.0, 3.0, 50.0, 2.0]
    timings = {
        "fast": Timing("fast", tuple(0.5 * slow for slow in drift)),
        "slow": Timing("slow", tuple(drift)),
    }
    assert ratio(timings, "fast", "slow") == 0.5
    assert ratio(timings, "slow", "fast") == 2.0


def test_the_ratio_is_the_median_of_ratios_not_the_ratio_of_medians() -> None:
    timings = {"a": Timing("a", (1.0, 2.0, 9.0)), "b": Timing("b", (1.0, 4.0, 3.0))}
    assert ratio(timings, "a", "b") == 1.0


def test_median_and_spread() -> None:
    assert Timing("a", (3.0, 1.0, 2.0)).median == 2.0
    assert Timing("a", (1.0, 2.0, 3.0)).spread == 0.5
    assert Timing("a", (4.0,)).spread == 0.0
    assert Timing("a", (1.0, 2.0, 3.0, 4.0, 5.0)).spread == pytest.approx((4.5 - 1.5) / 2 / 3)
    assert Timing("a", (1.0, 1.0, 1.0, 1.0, 1.0, 99.0, 1.0, 1.0, 1.0)).spread == 0.0


def test_no_gradients_are_recorded_while_measuring() -> None:
    seen = []
    measure({"a": lambda: seen.append(torch.is_grad_enabled())}, device=CPU, rounds=1, warmup=1)
    assert seen == [False, False]


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    with cost.threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with pytest.raises(ZeroDivisionError), cost.threads(before + 1):
        raise ZeroDivisionError
    assert torch.get_num_threads() == before


def test_the_facts_of_a_machine_carry_versions_and_threads() -> None:
    facts = cost.device_facts(CPU)
    assert facts["torch"] == torch.__version__
    assert facts["threads"] == torch.get_num_threads()
    assert set(facts) == {"device", "torch", "python", "threads"}
    assert str(facts["device"]).endswith("cores)")
