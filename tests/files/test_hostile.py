"""Every hostile file through the command line: one message, exit code 1 or 2, and nothing happened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.files.test_hostile_documents import READ_LATE
from tests.hostile.runner import CASES as ALL

#: `make security` runs all; those left out are read by themselves in the other file.
CASES = tuple(case for case in ALL if case not in READ_LATE)
ROOT = Path(__file__).parent.parents[1]
SECONDS, MIB = 30, 1000


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("hostile")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    names = [case.name for case in CASES]
    command = [sys.executable, "-W", "ignore", "-m", "tests.hostile.runner", str(folder), *names]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_every_hostile_file_is_refused(results: list[dict[str, Any]]) -> None:
    assert len(results) == len(CASES) >= 120
    harmed = [result["name"] for result in results if result["ran"] or result["watched"]]
    assert harmed == []
    wrong = [
        (result["name"], problem)
        for case, result in zip(CASES, results, strict=True)
        if case.concerns() and (problem := _problem(case.refusal, result))
    ]
    assert wrong == []


def _problem(refusal: str, result: dict[str, Any]) -> str:
    """What is wrong with how a case ended."""
    message = "\n".join(result["message"])
    checks = {
        "its code ran": not result["ran"],
        f"it did {result['watched']}": not result["watched"],
        f"exit code {result['code']}": result["code"] in (1, 2),
        f"no one message: {message}": message.count("  to do: ") == 1,
        f"a fault of prunec: {message}": "fault of prunec" not in message and "Traceback" not in message,
        f"{refusal!r} is not in: {message}": refusal in message,
        f"{len(message)} characters": len(message) < 4000,
        f"{result['seconds']} s": result["seconds"] < SECONDS,
        f"{result['mib']} MiB": result["mib"] < MIB,
    }
    return "; ".join(problem for problem, well in checks.items() if not well)


def test_names_are_unique() -> None:
    names = [case.name for case in ALL]
    assert sorted(set(names)) == sorted(names)


def test_the_page_on_security_has_a_row_for_each() -> None:
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    assert [case.name for case in ALL if f"| {case.name} |" not in page] == []


def test_the_runner_would_see_harm(tmp_path: Path) -> None:
    """A near-miss: the same pickle, read with consent, leaves its mark, and the runner says so."""
    code = (
        "import json, sys; from pathlib import Path; from tests.hostile import Hostile, runner\n"
        "def write(folder):\n    runner.pickles.BY_NAME['alone'].write(folder)\n"
        "    return ['explain', 'x.pt', '--allow-pickle']\n"
        "case = Hostile('consent', 'read with consent', write, '')\n"
        f"print(json.dumps(runner.run(case, Path({str(tmp_path)!r}, 'x'))))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout)
    assert result["ran"]
    assert "os.system" in result["watched"]
