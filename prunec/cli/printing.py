"""What all commands print with: results on stdout, chatter on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console

from prunec.errors import NoGainError

if TYPE_CHECKING:
    from prunec.measure.figures import Progress
    from prunec.report.report import Report

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


def show_report(report: Report, *, as_json: bool, require_speedup: bool) -> None:
    """A report on stdout; NoGainError when a gain is required and there is none."""
    if as_json:
        print_json(report.as_dict())
    else:
        out.print(report.text(), end="", markup=False)
    if require_speedup and report.no_gain:
        raise NoGainError(
            report.no_gain,
            where=report.source,
            remedy="use the model as it is, or try another batch, policy or target",
        )
