"""What the rewriting of a graph did; counts are results."""

from __future__ import annotations

from dataclasses import dataclass, field

from prunec.probing.rows import RowRead


@dataclass
class Repairs:
    """What was done, to which nodes."""

    literals: int = 0
    gathered: list[str] = field(default_factory=list)
    counted: list[str] = field(default_factory=list)  # calls with a number that follows the token count
    scatters: int = 0
    region_ends: list[str] = field(default_factory=list)
    reads: list[RowRead] = field(default_factory=list)
    axes: dict[str, tuple[int, ...]] = field(
        default_factory=dict
    )  # node -> its token axes (none: only its inputs)

    def counts(self) -> dict[str, int]:
        """The numbers that reports and tests read."""
        return {
            "literals": self.literals,
            "gathered": len(self.gathered),
            "scatters": self.scatters,
            "region_ends": len(self.region_ends),
            **({"counted": len(self.counted)} if self.counted else {}),
        }
