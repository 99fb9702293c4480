"""How large files, functions and packages may be, and that every module has tests of its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "prunec"

FILES, LINES, FUNCTION, PARAMETERS, ASSERTS = 14, 350, 60, 7, 20

MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def is_command(path: Path) -> bool:
    """Typer reads the options of a command off its parameters: there are as many as options."""
    return path.parent.name == "cli"


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    names = [
        each.arg for each in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
    ]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def too_long() -> Iterator[str]:
    for path in MODULES:
        if len(path.read_text(encoding="utf-8").splitlines()) > LINES:
            yield name_of(path)


def too_wide() -> Iterator[str]:
    for path in MODULES:
        for function in functions(path):
            lines = (function.end_lineno or 0) - function.lineno + 1
            if not is_command(path) and (lines > FUNCTION or parameters(function) > PARAMETERS):
                yield f"{name_of(path)}:{function.name}"


def too_full() -> Iterator[str]:
    for folder in sorted({path.parent for path in MODULES}):
        if sum(each.is_file() for each in folder.iterdir()) > FILES:
            yield name_of(folder)


def untested() -> Iterator[str]:
    for path in MODULES:
        own = path.relative_to(PACKAGE)
        if not path.name.startswith("__") and not (ROOT / "tests" / own.parent / f"test_{own.name}").exists():
            yield name_of(path)


def test_every_module_has_a_test_file_of_its_name() -> None:
    assert list(untested()) == []


@pytest.mark.parametrize("found", [too_long, too_wide, too_full])
def test_nothing_is_larger_than_it_may_be(found: object) -> None:
    assert callable(found)
    assert list(found()) == []


def test_what_may_be_none_is_a_type_and_no_assert() -> None:
    found = [
        f"{name_of(path)}:{node.lineno}"
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assert) and "is not None" in ast.unparse(node.test)
    ]
    assert len(found) <= ASSERTS, found
