"""Modes as values: how a batch lies in memory whose images may keep different numbers of tokens.

    mode="padded"                     the mode, by its name
    mode=prunec.Padded(buckets=(64,)) the mode with its options

What each of them does to a batch is drawn in lowering.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from prunec.errors import UsageError, did_you_mean, shown

ModeName = Literal["static", "padded", "packed", "masked"]
NAMES: tuple[ModeName, ...] = get_args(ModeName)


@dataclass(frozen=True)
class Static:
    """As many tokens of every image; where images differ, one image at a time."""


@dataclass(frozen=True)
class Padded:
    """Every image is as long as the longest of its batch, and attention does not look at padding.

    `buckets` are stream lengths to round up to, protected tokens counted in, so that few lengths ever occur.
    """

    buckets: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        buckets = tuple(self.buckets)
        if not all(_is_count(length) for length in buckets):
            raise UsageError(
                f"buckets are numbers of tokens, 1 or more, got {shown(buckets)}",
                where="mode padded",
                remedy="give stream lengths, such as Padded(buckets=(64, 128))",
            )
        object.__setattr__(self, "buckets", tuple(sorted(buckets)))


@dataclass(frozen=True)
class Packed:
    """The kept tokens of all images are one long row; attention goes image by image.

    `max_tokens` is how many tokens a batch may have; a batch with more is an error.
    """

    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None and not _is_count(self.max_tokens):
            raise UsageError(
                f"max_tokens is a number of tokens, 1 or more, got {shown(self.max_tokens)}",
                where="mode packed",
                remedy="give how many tokens a batch may have, such as Packed(max_tokens=4096)",
            )


@dataclass(frozen=True)
class Masked:
    """All tokens are computed, and those that are not kept are hidden: for training."""


Mode = Static | Padded | Packed | Masked
#: What `mode=` takes: a mode, or its plain name.
ModeLike = Mode | str

_KINDS: dict[ModeName, type[Mode]] = {"static": Static, "padded": Padded, "packed": Packed, "masked": Masked}


def as_mode(mode: ModeLike) -> Mode:
    """The mode that was given; UsageError unless it is one, or the name of one."""
    if isinstance(mode, Mode):
        return mode
    for name, kind in _KINDS.items():
        if mode in (name, kind):  # Padded without the brackets is meant as Padded()
            return kind()
    hint = did_you_mean(mode, NAMES) if isinstance(mode, str) else ""
    raise UsageError(f"unknown mode {shown(mode)}{hint}", where="mode", remedy=f"modes: {', '.join(NAMES)}")


def name_of(mode: Mode) -> ModeName:
    """The plain name of a mode."""
    return next(name for name, kind in _KINDS.items() if isinstance(mode, kind))


def with_options(
    mode: ModeLike | None, buckets: Iterable[int] = (), max_tokens: int | None = None
) -> ModeLike | None:
    """A mode whose options were given beside its name; an option without a name says which mode it is of."""
    buckets = tuple(buckets)
    options: list[tuple[str, ModeName, Mode]] = []
    if buckets:
        options.append(("buckets", "padded", Padded(buckets)))
    if max_tokens is not None:
        options.append(("max_tokens", "packed", Packed(max_tokens)))
    if not options:
        return mode
    option, name, full = options[0]
    other = options[1][1] if len(options) > 1 else mode
    if other in (None, name):
        return full
    got = f"mode {other}" if isinstance(other, str) else repr(other)
    raise UsageError(
        f"{option} is an option of mode {name}, got {got}",
        where="mode",
        remedy=f"leave {option} out, or choose mode {name}",
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
