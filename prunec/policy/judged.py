"""What presets lose on real weights: the figures that `make real` measured last, as data of the package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "judged.json"


@dataclass(frozen=True)
class Figures:
    """How near the outputs of a pruned model come to the dense model's."""

    flops: float  # share of the dense model's
    error: float  # relative L2 of all tokens: 0 is the same, 1 is as far off as zeros
    class_token: float  # cosine
    heatmap: float  # correlation


@dataclass(frozen=True)
class Judged:
    """One model, one budget: each preset beside random tokens in its place, and a smaller picture."""

    model: str
    date: str
    pictures: str
    resize: Figures
    presets: Mapping[str, Figures]
    random: Mapping[str, Figures]

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Each preset's figures as plain data, beside its controls."""
        about = {"model": self.model, "date": self.date, "resize": asdict(self.resize)}
        return {
            name: {**asdict(own), "random": asdict(self.random[name]), **about}
            for name, own in self.presets.items()
        }


@lru_cache(maxsize=1)
def judged() -> Judged:
    """The last judgement."""
    data = json.loads(FILE.read_text(encoding="utf-8"))
    sets = {
        name: {preset: Figures(**figures) for preset, figures in data[name].items()}
        for name in ("presets", "random")
    }
    return Judged(data["model"], data["date"], data["pictures"], Figures(**data["resize"]), **sets)
