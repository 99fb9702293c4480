"""Measured time: interleaved rounds of several callables in one run, so that only their ratios are quoted.

Wall clocks drift and cores are shared; a ratio inside one interleaved run survives that, two separate runs
do not.
"""

from __future__ import annotations

import math
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

Call = Callable[[], object]

LEAST_SAMPLE = 10e-3  # seconds that a sample on a CUDA device takes at least, by repeating the call
MOST_REPEATS = 200


@dataclass(frozen=True)
class Timing:
    """One callable's samples, in seconds a call."""

    name: str
    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle sample."""
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, relative to the median."""
        if len(self.samples) < 4:
            return (max(self.samples) - min(self.samples)) / 2 / self.median
        quartiles = statistics.quantiles(self.samples, n=4)
        return (quartiles[2] - quartiles[0]) / 2 / self.median


def measure(
    calls: Mapping[str, Call],
    *,
    device: torch.device,
    rounds: int = 20,
    warmup: int = 3,
    seconds: float = 60.0,
) -> dict[str, Timing]:
    """Time several callables in interleaved rounds, each round in a random order.

    Stops after `rounds` rounds, or earlier (but not before five) when `seconds` are over.
    """
    order = random.Random(0)
    clock = _cuda_clock if device.type == "cuda" else _cpu_clock
    samples: dict[str, list[float]] = {name: [] for name in calls}
    with torch.no_grad():
        for _ in range(warmup):
            for call in calls.values():
                clock(call)
        if device.type == "cuda":
            calls = {name: _repeated(call, clock(call)) for name, call in calls.items()}
        deadline = time.perf_counter() + seconds
        for done in range(rounds):
            if done >= 5 and time.perf_counter() > deadline:
                break
            for name in order.sample(list(calls), len(calls)):
                call = calls[name]
                samples[name].append(clock(call) / (call.times if isinstance(call, _Repeated) else 1))
    return {name: Timing(name, tuple(values)) for name, values in samples.items()}


def ratio(timings: Mapping[str, Timing], numerator: str, denominator: str) -> float:
    """The median over rounds of the ratio inside each round: drift cancels."""
    pairs = zip(timings[numerator].samples, timings[denominator].samples, strict=True)
    return statistics.median(over / under for over, under in pairs)


def ratio_spread(timings: Mapping[str, Timing], numerator: str, denominator: str) -> float:
    """Half the distance between the quartiles of the ratio inside each round."""
    pairs = zip(timings[numerator].samples, timings[denominator].samples, strict=True)
    quartiles = statistics.quantiles((over / under for over, under in pairs), n=4)
    return (quartiles[2] - quartiles[0]) / 2


@dataclass(frozen=True)
class _Repeated:
    """A call made several times: events cannot tell a few microseconds from the gaps around them."""

    call: Call
    times: int

    def __call__(self) -> None:
        for _ in range(self.times):
            self.call()


def _repeated(call: Call, seconds: float) -> _Repeated:
    return _Repeated(call, max(1, min(MOST_REPEATS, math.ceil(LEAST_SAMPLE / max(seconds, 1e-7)))))


def _cpu_clock(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _cuda_clock(call: Call) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run with this many compute threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def device_facts(device: torch.device) -> dict[str, str | int]:
    """What a measurement must carry: device, threads, versions."""
    facts: dict[str, str | int] = {
        "device": _device_name(device),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if device.type == "cpu":
        facts["threads"] = torch.get_num_threads()
    elif torch.version.cuda:
        facts["cuda"] = torch.version.cuda
    return facts


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{_cpu_model()} ({capability}, {os.cpu_count()} cores)"


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123  a kernel file, not a path of ours
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
