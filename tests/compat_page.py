"""What `make compat` keeps: one row for each environment of noxfile.py, as JSON and as docs/compat.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from tests.versions import COMPAT, PACKAGES, ROOT, installed, recorded

PAGE = ROOT / "docs" / "compat.md"

ENVIRONMENTS = {
    "oldest": "the lower bounds of `pyproject.toml`",
    "current": "`constraints.txt`, as `make setup` installs",
    "newest": "whatever pip takes, as `make setup-newest` installs",
}
COLUMNS = ("environment", "python", *PACKAGES, "passed", "failed", "skipped", "date")

HEAD = """\
# Versions

The core of the tests (capture, recognition, the token axis, passes, certificate, policies, operators, FLOPs,
files: `tests/core.txt`), each row in an environment of its own. `make compat` runs them and writes this page;
`benchmarks/results/compat.json` names the tests that failed.
"""
TAIL = """
Every test run says at its start which versions it has, and whether a row here is of exactly these.
`prunec doctor` says which installed packages are too old or do not fit each other.
"""

Row = Mapping[str, Any]
Reports = Mapping[str, Sequence[Any]]  # of pytest, by outcome


def row(environment: str, reports: Reports) -> dict[str, Any]:
    """What a run gave, with the versions that are installed here."""
    failed = [*reports.get("failed", ()), *reports.get("error", ())]
    failures = list(dict.fromkeys(report.nodeid for report in failed))  # may fail, then fail to clean up
    return {
        "environment": environment,
        "versions": installed(),
        "passed": len(reports.get("passed", ())),
        "failed": len(failures),
        "skipped": len(reports.get("skipped", ())),
        "failures": failures,
        "date": date.today().isoformat(),
    }


def stored(row: Row, rows: Sequence[Row]) -> list[Row]:
    """`rows` with this one in its environment's place, oldest versions first."""
    others = [each for each in rows if each["environment"] != row["environment"]]
    return sorted([*others, row], key=lambda each: list(ENVIRONMENTS).index(each["environment"]))


def cells(row: Row) -> list[str]:
    """One line of the table."""
    return [str(row["versions"].get(column, row.get(column))) for column in COLUMNS]


def page(rows: Sequence[Row]) -> str:
    """docs/compat.md."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *map(cells, rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    meaning = "\n".join(f"- *{name}*: {what}" for name, what in ENVIRONMENTS.items())
    return f"{HEAD}\n{table}\n\n{meaning}\n{TAIL}"


def record(environment: str, reports: Reports, results: Path = COMPAT, to: Path = PAGE) -> list[Row]:
    """Store a run, write the page anew, and return all rows."""
    rows = stored(row(environment, reports), recorded(results))
    results.write_text(json.dumps({"rows": rows}, indent=2) + "\n", encoding="utf-8")
    to.write_text(page(rows), encoding="utf-8")
    return rows
