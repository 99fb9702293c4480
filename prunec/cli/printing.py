"""What all commands print with: results on stdout, chatter on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console

from prunec.errors import NoGainError, VerificationError

if TYPE_CHECKING:
    from prunec.api.results import Result
    from prunec.measure.figures import Progress

out = Console(highlight=False, soft_wrap=True)
chatter = Console(stderr=True, highlight=False)


@contextmanager
def progress() -> Iterator[Progress]:
    """A spinner on a terminal, plain lines on stderr otherwise."""
    if chatter.is_terminal:
        with chatter.status("start") as status:
            yield lambda step: status.update(step)
    else:
        yield lambda step: chatter.print(f"prunec: {step}", markup=False)


def print_json(data: Any) -> None:
    """Results as JSON, on stdout."""
    sys.stdout.write(json.dumps(data, indent=2) + "\n")


def warn(text: str) -> None:
    """What should be known and stops nothing, on stderr."""
    chatter.print(f"prunec: warning: {text}", markup=False, soft_wrap=True)


def hand_over(result: Result, folder: str, *, as_json: bool, require_speedup: bool, force: bool) -> None:
    """Write what `optimize` made, and its report on stdout.

    Raises:
        VerificationError: its target does not compute what the graph does, so that nothing was written.
        NoGainError: its outputs are of no use and were not asked for by force, so that nothing was written;
            or a gain is required and there is none.
    """
    report = result.report
    refused = (report.useless and not force) or report.disagrees
    if not refused:
        result.save(folder)
        report = report.at(folder)
    if as_json:
        print_json(report.as_dict())
    else:
        out.print(report.text(), end="", markup=False)
    if report.disagrees:
        raise VerificationError(
            f"{report.disagrees}; nothing was written",
            where=report.source,
            remedy="take another target, such as eager, or --target auto, the fastest one that agrees",
        )
    if refused:
        raise NoGainError(
            f"{report.useless}; nothing was written",
            where=report.source,
            remedy="keep more tokens, or take another policy; --force writes it as it is",
        )
    if require_speedup and report.no_gain:
        raise NoGainError(
            report.no_gain,
            where=report.source,
            remedy="use the model as it is, or try another batch, policy or target",
        )
