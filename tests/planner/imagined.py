"""A model, tables and a workshop that do not exist: what is predicted and measured is what a test says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch

from prunec.latency.losses import Losses, Trial
from prunec.latency.table import LatencyTable
from prunec.planner.frontiers import Map
from prunec.planner.planned import Explored
from prunec.planner.workshop import Candidate, Name, Space, Workshop
from prunec.policy.lowering import Lowering
from prunec.policy.modes import ModeName
from prunec.policy.policy import Policy
from prunec.schedules.search import Choice, Limits
from prunec.structure import Anatomy, Block

DEPTH, COUNTS = 8, (17, 13, 9, 5)
POLICY = Policy.load("evit")
ANATOMY = Anatomy(
    blocks=tuple(Block(index, f"blocks.{index}", ()) for index in range(DEPTH)), tokens=17, prefix=1,
    suffix=0, token_dim=1, class_token=0, head=("class token",), taps=(), states=("s0",), pixels="x",
)  # fmt: skip
Figure = Callable[[Candidate], float]


def table(
    *,
    seconds: Callable[[int], float] = float,
    place: Mapping[str, str | int] | None = None,
    dense: float | None = None,
    mode: str = "static",
    site: float = 0.0,
) -> LatencyTable:
    """A block on n tokens takes seconds(n), the dense model as much as its blocks, a site always the same."""
    row = tuple(seconds(n) for n in COUNTS)
    return LatencyTable(
        place=place or {"device": "a device", "torch": "2.15.0"},
        work={"model": "imagined", "batch": 8, "mode": mode},
        counts=COUNTS,
        dense=DEPTH * row[0] if dense is None else dense,
        fixed=0.0,
        blocks=(row,) * DEPTH,
        sites=(site, 0.0, 0.0, 0.0),
        spread=0.01,
        seconds=1.0,
        date="2026-01-02",
        samples={},
    )


def alone_loses(block: int, length: int) -> float:
    """What a block loses on a stream of that length."""
    return (DEPTH - block) * COUNTS.index(length) ** 2 * 1e-3


def mapped(
    of: LatencyTable | None = None,
    *,
    mode: ModeName = "static",
    sites: int = 2,
    lost: float = 1.0,
    policy: Policy = POLICY,
) -> Map:
    """The frontier of schedules: later blocks lose less, and so do more tokens."""
    alone = [[lost * alone_loses(block, n) for n in COUNTS] for block in range(DEPTH)]
    behind = tuple(tuple(map(sum, zip(*alone[block:], strict=True))) for block in range(DEPTH))
    losses = Losses(COUNTS, behind, "divergence", 64, "imagined images", 2.0)
    return Map(
        policy, ANATOMY, Lowering(mode), of or table(mode=mode), losses, Limits(sites=sites, last=6), 64
    )


class Additive:
    """A trial that confirms that losses add up."""

    def behind(self, block: int, leaves: int, counts: Sequence[int], later: range) -> Any:
        rows = {
            other: [alone_loses(other, n) - alone_loses(other, leaves) for n in counts] for other in later
        }
        return tuple(tuple(rows.get(other, [0.0] * len(counts))) for other in range(block + 1, DEPTH))


ADDITIVE = Additive()


class Imagined(Workshop):
    """Builds nothing: a share and a loss are made up from each schedule's forecast."""

    def __init__(
        self,
        share: Figure = lambda found: found.predicted,
        loss: Figure = lambda found: found.expected,
        noise: float = 0.001,
        trial: object = ADDITIVE,
    ) -> None:
        self.share, self.loss, self.noise, self.trial = share, loss, noise, cast(Trial, trial)
        self.progress = lambda step: None
        self.rounds = 5
        self.built: list[Name] = []
        self.runs = 0
        self.cleared()

    def build(self, plan: Space, choice: Choice) -> None:
        name = Name.of(plan, choice)
        self.forecasts.setdefault(name, (plan.share(choice), choice.loss))
        if name not in self.calls:
            self.built.append(name)
            self.calls[name] = lambda: None

    def measured(self) -> tuple[Candidate, ...]:
        self.runs += 1
        forecasts = [
            Candidate(name.mode, dict(name.schedule), *figures, policy=name.policy, keep=name.keep)
            for name, figures in self.forecasts.items()
        ]
        return tuple(
            replace(one, share=self.share(one), loss=self.loss(one), noise=self.noise) for one in forecasts
        )


def explored(*maps: Map) -> Explored:
    """What is known of the imagined model."""
    nothing = cast(Any, None)
    return Explored(nothing, maps, nothing, (torch.zeros(1),), {"table": 1.0, "losses": 2.0})
