"""The head of a test run, the rows of `make compat`, and the bounds that they are made from."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from packaging.requirements import Requirement
from packaging.version import Version

from prunec import doctor
from tests import compat_page as compat
from tests import versions

HERE = {
    "python": "3.11.7",
    "torch": "2.14.1",
    "torchvision": "0.29.1",
    "timm": "1.0.31",
    "transformers": "5.24.0",
}
PINNED = {**HERE, "numpy": "2.4.6"}
ROW = {
    "environment": "current", "versions": HERE, "passed": 7, "failed": 1, "skipped": 0, "date": "2026-01-31",
}  # fmt: skip


def verdict(here: dict[str, str], *rows: dict[str, object]) -> str:
    return versions.header(here, PINNED, rows)[1]


def test_the_versions_are_listed() -> None:
    assert versions.header(HERE, PINNED, [])[0] == (
        "versions: python 3.11.7, torch 2.14.1, torchvision 0.29.1, timm 1.0.31, transformers 5.24.0"
    )


def test_exactly_the_constraints() -> None:
    assert verdict(HERE) == "tested: exactly these packages, the versions of constraints.txt"
    assert verdict({**HERE, "torch": "2.14.1+cpu"}) == verdict(HERE)


def test_a_row_of_compat_says_when_and_what_came_out() -> None:
    assert verdict(HERE, ROW) == (
        "tested: exactly these, by `make compat` on 2026-01-31 (current: 7 passed, 1 failed)"
    )
    assert verdict({**HERE, "python": "3.11.9"}, ROW) == verdict(HERE, ROW)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"python": "3.12.1"}, "exactly these packages, the versions of constraints.txt"),
        ({"torch": "2.15.0"}, "not exactly these; constraints.txt has torch 2.14.1"),
        ({"timm": "1.0.32", "torchvision": "none"},
         "not exactly these; constraints.txt has torchvision 0.29.1, timm 1.0.31"),
    ],
    ids=["another python", "another torch", "two others"],
)  # fmt: skip
def test_near_misses_are_no_match(changed: dict[str, str], said: str) -> None:
    assert verdict({**HERE, **changed}, ROW) == f"tested: {said}"


def test_a_package_that_this_python_leaves_open_matches_no_version() -> None:
    pinned = {name: version for name, version in PINNED.items() if name != "transformers"}
    assert versions.header(HERE, pinned, [])[1].endswith("constraints.txt has transformers any")


def test_constraints_are_read_with_their_markers() -> None:
    text = (
        "# why\n\ntorch==2.14.1\nnumpy==2.4.6; python_version >= '3.10'\nscipy==1.0; python_version < '3'\n"
    )
    assert versions.constrained(text) == {"torch": "2.14.1", "numpy": "2.4.6"}


def test_a_run_says_its_versions_at_its_start(pytestconfig: pytest.Config) -> None:
    said = pytestconfig.hook.pytest_report_header(config=pytestconfig, start_path=pytestconfig.rootpath)
    assert versions.report() in said
    assert f"torch {torch.__version__.partition('+')[0]}" in versions.report()[0]


# --- rows of `make compat` -----------------------------------------------------------------


def reports(*names: str) -> list[SimpleNamespace]:
    return [SimpleNamespace(nodeid=name) for name in names]


def test_a_row_counts_each_failed_test_once() -> None:
    row = compat.row(
        "oldest", {"passed": reports("a", "b"), "failed": reports("c"), "error": reports("c", "d")}
    )
    assert (row["passed"], row["failed"], row["skipped"]) == (2, 2, 0)
    assert row["failures"] == ["c", "d"]
    assert row["versions"] == versions.installed()


def test_a_run_replaces_the_row_of_its_environment(tmp_path: Path) -> None:
    files = {"results": tmp_path / "compat.json", "to": tmp_path / "compat.md"}
    compat.record("newest", {"passed": reports("a")}, **files)
    compat.record("oldest", {"failed": reports("a")}, **files)
    rows = compat.record("newest", {"passed": reports("a", "b")}, **files)
    assert [(row["environment"], row["passed"], row["failed"]) for row in rows] == [
        ("oldest", 0, 1), ("newest", 2, 0),
    ]  # fmt: skip
    assert json.loads(files["results"].read_text()) == {"rows": rows}
    page = files["to"].read_text()
    assert "| environment | python | torch | torchvision | timm | transformers | passed |" in page
    assert f"| oldest | {versions.installed()['python']} |" in page
    assert versions.recorded(files["results"]) == rows


def test_the_page_is_of_the_stored_rows() -> None:
    assert compat.PAGE.read_text(encoding="utf-8") == compat.page(versions.recorded())


# --- what the repository says of versions --------------------------------------------------


def lower_bounds() -> dict[str, str]:
    text = (versions.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return dict(re.findall(r'"([A-Za-z][\w.-]*)>=([\d.]+)"', text))


def test_every_bounded_package_is_pinned_above_its_bound() -> None:
    lines = versions.CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    pinned = {
        each.name.lower(): next(iter(each.specifier)).version
        for each in (Requirement(line) for line in lines if line and not line.startswith("#"))
    }
    bounds = lower_bounds()
    assert {"torch", "timm", "transformers", "networkx", "pytest"} <= set(bounds)
    assert [name for name in bounds if name not in pinned] == []
    assert [name for name, bound in bounds.items() if Version(pinned[name]) < Version(bound)] == []


def test_the_doctor_knows_the_bounds() -> None:
    bounds = {name: Version(bound) for name, bound in lower_bounds().items()}
    known = {"torch": doctor.OLDEST_TORCH, **{name: oldest for name, (_, oldest) in doctor.OPTIONAL.items()}}
    assert {name: Version(".".join(map(str, oldest))) for name, oldest in known.items()} == {
        name: bounds[name] for name in known
    }


@pytest.mark.parametrize("name", ["core.txt", "fast.txt"])
def test_lists_of_tests_name_what_exists(name: str) -> None:
    lines = Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines()
    assert lines == sorted(set(lines))
    files = [line.partition("::")[0] for line in lines]
    assert [file for file in files if not (versions.ROOT / file).exists()] == []
