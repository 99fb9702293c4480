"""Modes: how the tokens of a batch lie in memory where its images may keep different numbers of them.

    static   [B, n, C]  as many of every image, or one image at a time; nothing is padded, no mask
    padded   [B, n, C]  as many as the longest image needs (or the next bucket), the others' keys hidden
    packed   [1, S, C]  all images' kept tokens as rows, one after the other; attention goes image by image
    masked   [B, T, C]  all tokens stay and are computed, keys hidden: for training, and as the reference

One graph is inserted and repaired for all of them; what differs is done to it afterwards (passes/lower_*.py).
For the same kept sets all modes give the same outputs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from prunec.errors import TargetError, UsageError
from prunec.policy.modes import NAMES, ModeLike, ModeName, Packed, Padded, as_mode, name_of, with_options
from prunec.policy.rules import Rules

Attention = Literal["rows", "padded"]  # of packed rows: image by image, or padded to the longest
MODES = NAMES


@dataclass(frozen=True)
class Lowering:
    """A mode with its options."""

    mode: ModeName = "static"
    ragged: bool = False  # whether images may keep different numbers of tokens
    buckets: tuple[int, ...] = ()  # padded: stream lengths to round up to
    max_tokens: int | None = None  # packed: how many tokens a batch may have
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
        """Plain data; `from_dict` takes it back."""
        return {name: value for name, value in asdict(self).items() if name != "ragged"}

    def __str__(self) -> str:
        if self.single:
            return f"{self.mode}, one image at a time"
        if self.buckets:
            return f"{self.mode} to lengths of {', '.join(map(str, self.buckets))}"
        attention = {"rows": ", attention image by image", "padded": ", attention padded"}
        most = "" if self.max_tokens is None else f", at most {self.max_tokens} tokens"
        return f"{self.mode}{attention.get(self.attention or '', '')}{most}"


def choose(
    rules: Rules,
    mode: ModeLike | None = None,
    *,
    batch: int | None = None,
    attention: Attention | None = None,
    can: Collection[str] = MODES,
) -> Lowering:
    """The lowering of a policy: as asked for, else static where it can be, else padded.

    Args:
        rules: the policy.
        mode: a mode, or its name; None leaves it to prunec.
        batch: how many images there will be at a time, where that is known.
        attention: of mode packed; None leaves it to a measurement.
        can: the modes of the target.
    """
    fitting = [name for name in MODES if name in can and not (name == "static" and _differs(rules, batch))]
    if mode is None:
        mode = "static" if "static" in fitting and (not rules.ragged or batch == 1) else "padded"
    asked = as_mode(mode)
    name = name_of(asked)
    if name not in can:
        raise TargetError(
            f"this target cannot run mode {name}", where="mode", remedy=f"modes it can: {', '.join(fitting)}"
        )
    if name not in fitting:
        raise UsageError(
            f"mode static keeps as many tokens of every image, and with policy {rules.name!r} images differ: "
            f"it can run one image at a time, not {batch}",
            where="mode",
            remedy=f"modes that can: {', '.join(fitting)}",
        )
    if attention is not None and not isinstance(asked, Packed):
        raise UsageError(f"attention is an option of mode packed, got mode {name}", where="mode")
    buckets = asked.buckets if isinstance(asked, Padded) else ()
    max_tokens = asked.max_tokens if isinstance(asked, Packed) else None
    return Lowering(name, rules.ragged, buckets, max_tokens, attention)


def from_dict(rules: Rules, data: Mapping[str, Any], *, can: Collection[str] = MODES) -> Lowering:
    """The lowering of a policy that `Lowering.as_dict` wrote."""
    mode = with_options(data.get("mode"), data.get("buckets", ()), data.get("max_tokens"))
    return choose(rules, mode, attention=data.get("attention"), can=can)


def _differs(rules: Rules, batch: int | None) -> bool:
    """Whether there are images that keep different numbers of tokens side by side."""
    return rules.ragged and batch not in (None, 1)
