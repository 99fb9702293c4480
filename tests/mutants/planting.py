"""How a mistake gets into a program: another body for an operation of the dialect, or another edge."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from prunec.ir.program import Program

Wrong = Callable[..., Any]  # (the operation as it is, *its arguments)
Edit = Callable[[Program], None]


@dataclass(frozen=True)
class Mutant:
    """One mistake."""

    name: str
    subjects: tuple[str, ...]  # the programs that it is planted in, each by itself
    operation: FunctionType | None = None
    wrong: Wrong | None = None
    edit: Edit | None = None  # of the rewritten graph, before the certificate
    edit_mode: Edit | None = None  # of the lowered graph
    anatomy: Callable[[Program], Program] | None = None  # of the recognised program, before the plan
    scoring: bool = False  # the policy's own business: another choice, carried out faithfully
    cannot: str = ""  # why no certificate can see it


def mistakes_in(operation: Any, *subjects: str) -> Callable[..., Mutant]:
    """Makes mutants of one operation: (name, wrong), in these subjects or in those that are given then."""
    return lambda name, wrong, *others: Mutant(name, others or subjects, operation, wrong)


@contextlib.contextmanager
def planted(operation: Any, wrong: Wrong) -> Iterator[None]:
    """The operation does something else for a while, wherever it stands in a graph or was imported."""
    names = operation.__globals__
    was, defaults = operation.__code__, operation.__defaults__
    original = FunctionType(was, names, operation.__name__, defaults)
    names["_planted"] = lambda *args, **kwargs: wrong(original, *args, **kwargs)
    operation.__code__, operation.__defaults__ = _detour.__code__, None
    try:
        yield
    finally:
        operation.__code__, operation.__defaults__ = was, defaults
        del names["_planted"]


def _detour(*args: Any, **kwargs: Any) -> Any:
    return _planted(*args, **kwargs)  # type: ignore[name-defined]  # noqa: F821
