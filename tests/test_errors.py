from __future__ import annotations

import inspect
import re

import pytest

from prunec import errors
from prunec.errors import PruneError


def drawn_tree() -> list[tuple[str, str | None, int]]:
    """(name, parent, exit code) of every line of the tree in the module's docstring."""
    rows: list[tuple[str, str | None, int]] = []
    above: list[tuple[int, str]] = []  # (column, name) of the line's ancestors
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^([|` -]*)([A-Z]\w+Error) +(\d)  \S", line)
        if not match:
            continue
        column = len(match[1])
        above = [entry for entry in above if entry[0] < column]
        rows.append((match[2], above[-1][1] if above else None, int(match[3])))
        above.append((column, match[2]))
    return rows


def real_classes() -> dict[str, type[PruneError]]:
    return {
        name: cls
        for name, cls in inspect.getmembers(errors, inspect.isclass)
        if issubclass(cls, PruneError) and cls.__module__ == errors.__name__
    }


def test_the_drawing_names_every_error_once() -> None:
    names = [name for name, _, _ in drawn_tree()]
    assert len(names) >= 9
    assert sorted(names) == sorted(real_classes())


@pytest.mark.parametrize(("name", "parent", "code"), drawn_tree())
def test_the_drawing_is_the_class_tree(name: str, parent: str | None, code: int) -> None:
    cls = getattr(errors, name)
    assert cls.__base__.__name__ == (parent or "Exception")
    assert cls.exit_code == code


@pytest.mark.parametrize("cls", real_classes().values())
def test_every_error_has_a_docstring_of_one_line(cls: type[PruneError]) -> None:
    assert "__doc__" in vars(cls)
    assert (cls.__doc__ or "").count("\n") == 0


def test_a_message_says_what_where_and_what_to_do() -> None:
    error = PruneError("it broke", where="block 3", remedy="mend it")
    assert str(error) == "it broke\n  where: block 3\n  to do: mend it"
    assert (error.what, error.where, error.remedy) == ("it broke", "block 3", "mend it")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (PruneError("it broke"), "it broke"),
        (PruneError("it broke", where="block 3"), "it broke\n  where: block 3"),
        (PruneError("it broke", remedy="mend it"), "it broke\n  to do: mend it"),
    ],
)
def test_parts_that_are_not_known_leave_no_empty_line(error: PruneError, text: str) -> None:
    assert str(error) == text
