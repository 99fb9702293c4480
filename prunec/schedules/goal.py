"""What a plan is to reach."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from prunec.errors import UsageError


@dataclass(frozen=True)
class Goal:
    """What a plan is to reach, by one of three numbers: `Goal(latency=0.6)`.

    latency: at most this share of the compiled dense model's time; of what does, the least loss.
    speedup: the same, said the other way round: 2 is a latency of 0.5.
    max_drop: outputs diverge no more than this from the dense model's; of what does, the fastest.
    """

    latency: float | None = None
    speedup: float | None = None
    max_drop: float | None = None

    def __post_init__(self) -> None:
        named = [name for name, value in asdict(self).items() if value is not None]
        if len(named) != 1:
            raise UsageError(
                f"give one of latency, speedup and max_drop, got {' and '.join(named) or 'none'}",
                where="the goal of a plan",
                remedy="for example Goal(latency=0.6); on the command line --latency 0.6",
            )
        if self.latency is not None and not 0 < self.latency < 1:
            raise UsageError(f"latency is a share of the dense model's time, in (0, 1), got {self.latency:g}")
        if self.speedup is not None and not self.speedup > 1:
            raise UsageError(f"speedup must be above 1, got {self.speedup:g}")
        if self.max_drop is not None and not self.max_drop > 0:
            raise UsageError(f"max_drop is a divergence in nats, above 0, got {self.max_drop:g}")

    @property
    def share(self) -> float | None:
        """The share of the dense model's time that is allowed, where the goal is about time."""
        return self.latency if self.speedup is None else 1 / self.speedup

    @property
    def loss(self) -> float | None:
        """The loss that is allowed, where the goal is about that."""
        return self.max_drop

    def __str__(self) -> str:
        if self.share is not None:
            return f"at most {self.share:.3g} of the dense time"
        return f"a loss of at most {self.loss:.3g}"
