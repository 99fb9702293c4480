"""Every error that prunec raises on purpose, and the exit code that each one becomes.

PruneError            1  it could not be done
|-- SourceError       1  a model, file or image could not be read
|-- CalibrationError  1  a policy's learned parts could not be fitted
|-- CaptureError      1  torch.export could not turn the model into one graph
|-- TargetError       1  the backend asked for cannot run here
|-- TableError        1  a latency table is damaged, or is of another device or model
|-- PlanError         1  no schedule of the policy reaches what was asked for
|-- InternalError     1  prunec itself did something wrong: please report it
|-- UsageError        2  an option or an argument is wrong
|   `-- PolicyError   2  a policy file or name is wrong, or does not fit the model
|-- RecognitionError  3  the model, or a part of it, was not recognised
|-- VerificationError 4  the rewritten model does not equal the original
`-- NoGainError       5  pruning does not pay here: no faster, or outputs worse than zeros

An error says what happened, where, and what to do about it. The command line prints
those three and exits with the code; Python users get the exception itself.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Sequence

#: What to do about what should never happen.
REPORT = "the model was not changed and nothing was returned; please report the model's name"


class PruneError(Exception):
    """Something prunec could not do: what, where, and the remedy."""

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, remedy: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.remedy = remedy

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.remedy:
            lines.append(f"  to do: {self.remedy}")
        return "\n".join(lines)


class SourceError(PruneError):
    """A model, weight file or image could not be found, read or trusted."""


class CalibrationError(PruneError):
    """A policy has learned parts or thresholds, and they could not be fitted, or were not."""


class CaptureError(PruneError):
    """torch.export could not turn the model into one graph."""


class TargetError(PruneError):
    """The backend asked for is unknown, not installed, or has no device here."""


class TableError(PruneError):
    """A latency table or a sweep cannot be read, or is of another device or model."""


class PlanError(PruneError):
    """No schedule of the policy reaches the goal on this device."""


class InternalError(PruneError):
    """prunec itself did something wrong: a pass did not do what it promises."""


class UsageError(PruneError):
    """An option or argument has a value that cannot be meant."""

    exit_code = 2


class PolicyError(UsageError):
    """A policy is unknown, malformed, or does not fit the model."""


class RecognitionError(PruneError):
    """The model, or a part that the policy needs, was not recognised."""

    exit_code = 3


class VerificationError(PruneError):
    """The rewritten model does not equal the original; it is never returned."""

    exit_code = 4


class NoGainError(PruneError):
    """Pruning does not pay: the model gets no faster on this device, or its outputs are of no use."""

    exit_code = 5


# Words for messages: whatever comes from a file may be of any length ----------------------------------------


def brief(text: str, most: int = 120) -> str:
    """Text on one line of at most so many characters: cut at the end, escaped where it cannot be printed."""
    cut = text[:most]
    printable = cut if cut.isprintable() else repr(cut)[1:-1]
    return printable if len(text) <= most else f"{printable[: most - 3]}..."


def shown(value: object) -> str:
    """A value as Python writes it, shortened where it is long."""
    try:
        return brief(_REPR.repr(value), 400)
    except ValueError:  # Python does not write out whole numbers of thousands of digits
        return "a number of thousands of digits"


def first_few(parts: Sequence[str], separator: str = ", ", most: int = 5) -> str:
    """`a, b and 3 more`: the first few of many, and how many more of what there are."""
    more = len(parts) - most
    return separator.join(parts) if more <= 0 else f"{separator.join(parts[:most])} and {more} more"


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 100
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = _REPR.maxset = 12


def nearest(name: str, names: Iterable[str]) -> tuple[str, ...]:
    """Up to three of `names` that someone who wrote `name` may have meant, best first."""
    if len(name) > 100:  # nobody meant a name by that
        return ()
    return tuple(difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5))


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """`; nearest: a, b`, ready to end a sentence, or nothing when no name is near."""
    near = nearest(name, names)
    return f"; nearest: {', '.join(near)}" if near else ""


def first_sentence(error: Exception) -> str:
    """Of what a library says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
