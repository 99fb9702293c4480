"""The command line. Results go to stdout, chatter to stderr; every failure is one message and an exit code.

Exit codes: 0 done, 1 could not, 2 usage, 3 not recognised, 4 verification failed,
5 no gain: outputs worse than zeros, or, where a speedup is required, no faster.
"""

from __future__ import annotations

import logging
import os
import warnings
from typing import Annotated

import typer

from prunec.cli.commands import LazyGroup
from prunec.cli.printing import chatter, out, warn
from prunec.errors import PruneError
from prunec.version import __version__

app = typer.Typer(
    cls=LazyGroup,
    help="Make Vision Transformers faster by letting them look at fewer tokens.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="show what is decided and why, and how long stages take")
    ] = False,
) -> None:
    """Make Vision Transformers faster by letting them look at fewer tokens."""
    logging.getLogger("prunec").setLevel(logging.INFO if verbose else logging.WARNING)
    if version:
        out.print(f"prunec {__version__}")
        raise typer.Exit


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    _quiet()
    try:
        app(arguments)
    except SystemExit as stop:  # typer's own way to end, also after a usage error
        return stop.code if isinstance(stop.code, int) else 1
    except PruneError as error:
        chatter.print(f"prunec: {error}", markup=False, soft_wrap=True)
        return error.exit_code
    except Exception as error:
        if os.environ.get("PRUNEC_TRACEBACK"):
            raise
        chatter.print(
            f"prunec: {type(error).__name__}: {error}\n"
            "  to do: this is a fault of prunec; PRUNEC_TRACEBACK=1 shows where, please report it",
            markup=False,
            soft_wrap=True,
        )
        return 1
    return 0


class _Chatter(logging.Handler):
    """Shows log records on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """One line for a record."""
        chatter.print(f"prunec: {record.getMessage()}", markup=False, soft_wrap=True)


def _quiet() -> None:
    """Keep other libraries' chatter away from people who only asked for a result."""
    os.environ.setdefault("TORCH_LOGS", "-all")  # torch, once it is imported, logs errors only
    log = logging.getLogger("prunec")
    if not any(isinstance(handler, _Chatter) for handler in log.handlers):
        log.addHandler(_Chatter())
    logging.getLogger("torch").setLevel(logging.ERROR)  # and where it is imported already
    warnings.filterwarnings("always", category=UserWarning)  # each is about a result of its own
    warnings.filterwarnings("always", category=DeprecationWarning, module=r"prunec\b")
    warnings.filterwarnings("ignore", module=r"(torch|timm|transformers)\b")
    warnings.showwarning = _warn


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    warn(str(message))
