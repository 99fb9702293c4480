"""Modes: how the tokens of a batch lie in memory where its images may keep different numbers of them.

    static   [B, n, C]  as many of every image, or one image at a time; nothing is padded, no mask
    padded   [B, n, C]  as many as the longest image needs (or the next bucket), the others' keys hidden
    packed   [1, S, C]  all images' kept tokens as rows, one after the other; attention goes image by image
    masked   [B, T, C]  all tokens stay and are computed, keys hidden: for training, and as the reference

One graph is inserted and repaired for all of them; what differs is done to it afterwards (passes/lower_*.py).
For the same kept sets all modes give the same outputs.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from prunec.errors import TargetError, UsageError, did_you_mean
from prunec.rules import Rules

Mode = Literal["static", "padded", "packed", "masked"]
Attention = Literal["rows", "padded"]  # of packed rows: image by image, or padded to the longest
MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True)
class Lowering:
    """A mode with its options."""

    mode: Mode = "static"
    ragged: bool = False  # whether images may keep different numbers of tokens
    buckets: tuple[int, ...] = ()  # padded: stream lengths to round up to
    bound: int | None = None  # packed: how many rows a batch may have
    attention: Attention | None = None  # packed: None until it is measured

    @property
    def fixed(self) -> bool:
        """Whether every image keeps as many tokens, known beforehand."""
        return self.mode == "static" and not self.ragged

    @property
    def single(self) -> bool:
        """Whether it runs one image at a time."""
        return self.mode == "static" and self.ragged

    def as_dict(self) -> dict[str, Any]:
        """Plain data; `choose` takes it back."""
        return {name: value for name, value in asdict(self).items() if name != "ragged"}

    def __str__(self) -> str:
        if self.single:
            return f"{self.mode}, one image at a time"
        if self.buckets:
            return f"{self.mode} to lengths of {', '.join(map(str, self.buckets))}"
        attention = {"rows": ", attention image by image", "padded": ", attention padded"}
        bound = "" if self.bound is None else f", at most {self.bound} rows"
        return f"{self.mode}{attention.get(self.attention or '', '')}{bound}"


def choose(
    rules: Rules,
    mode: str | None = None,
    *,
    batch: int | None = None,
    buckets: tuple[int, ...] = (),
    bound: int | None = None,
    attention: Attention | None = None,
    can: Collection[str] = MODES,
) -> Lowering:
    """The lowering of a policy: as asked for, else static where it can be, else padded.

    Args:
        rules: the policy.
        mode: one of MODES; None leaves it to prunec.
        batch: how many images there will be at a time, where that is known.
        buckets: of mode padded.
        bound: of mode packed.
        attention: of mode packed; None leaves it to a measurement.
        can: the modes of the target.
    """
    fitting = [name for name in MODES if name in can and not (name == "static" and _differs(rules, batch))]
    if mode is None:
        mode = "static" if "static" in fitting and (not rules.ragged or batch == 1) else "padded"
    if mode not in MODES:
        raise UsageError(
            f"unknown mode {mode!r}{did_you_mean(mode, MODES)}", remedy=f"modes: {', '.join(MODES)}"
        )
    if mode not in can:
        raise TargetError(
            f"this target cannot run mode {mode}", where="mode", remedy=f"modes it can: {', '.join(fitting)}"
        )
    if mode not in fitting:
        raise UsageError(
            f"mode static keeps as many tokens of every image, and with policy {rules.name!r} images differ: "
            f"it can run one image at a time, not {batch}",
            where="mode",
            remedy=f"modes that can: {', '.join(fitting)}",
        )
    for option, value, owner in (
        ("buckets", buckets, "padded"), ("bound", bound, "packed"), ("attention", attention, "packed"),
    ):  # fmt: skip
        if value and mode != owner:
            raise UsageError(f"{option} is an option of mode {owner}, got mode {mode}", where=option)
    if any(length < 1 for length in buckets) or (bound is not None and bound < 1):
        raise UsageError("buckets and bound are numbers of tokens, 1 or more", where="mode")
    return Lowering(mode, rules.ragged, tuple(sorted(buckets)), bound, attention)


def _differs(rules: Rules, batch: int | None) -> bool:
    """Whether there are images that keep different numbers of tokens side by side."""
    return rules.ragged and batch not in (None, 1)
