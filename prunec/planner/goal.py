"""What a plan is to reach."""

from __future__ import annotations

from dataclasses import dataclass

from prunec.errors import UsageError


@dataclass(frozen=True)
class Goal:
    """What a plan is to reach: a share of the dense model's time, or a loss that is not to be exceeded."""

    share: float | None = None
    loss: float | None = None

    @classmethod
    def of(cls, latency: float | None, speedup: float | None, max_drop: float | None) -> Goal:
        """The goal that was asked for; UsageError unless it is one."""
        given = {"latency": latency, "speedup": speedup, "max-drop": max_drop}
        named = [name for name, value in given.items() if value is not None]
        if len(named) != 1:
            raise UsageError(
                f"give one of --latency, --speedup and --max-drop, got {' and '.join(named) or 'none'}",
                where="the goal of a plan",
            )
        if latency is not None and not 0 < latency < 1:
            raise UsageError(f"latency is a share of the dense model's time, in (0, 1), got {latency:g}")
        if speedup is not None and not speedup > 1:
            raise UsageError(f"speedup must be above 1, got {speedup:g}")
        if max_drop is not None and not max_drop > 0:
            raise UsageError(f"max-drop is a divergence in nats, above 0, got {max_drop:g}")
        return cls(latency if speedup is None else 1 / speedup, max_drop)

    def __str__(self) -> str:
        if self.share is not None:
            return f"at most {self.share:.3g} of the dense time"
        return f"a loss of at most {self.loss:.3g}"
