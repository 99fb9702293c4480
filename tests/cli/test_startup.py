"""What is imported, and what it costs, before there is any work to do."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from prunec.cli.commands import COMMANDS

ROOT = Path(__file__).parents[2]
#: pydantic is not among them: typer reads options with it.
HEAVY = {"torch", "sympy", "networkx", "numpy", "timm", "transformers", "torchvision"}
#: CPU seconds; each takes 0.03 to 0.3 on an idle core, and importing torch alone takes more than 2.
MOST = 1.5
STARTS = {
    "import prunec": ("-c", "import prunec"),
    "--version": ("-m", "prunec", "--version"),
    "--help": ("-m", "prunec", "--help"),
    **{f"{name} --help": ("-m", "prunec", name, "--help") for name in COMMANDS},
    "a wrong name": ("-m", "prunec", "optimise"),
}


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )


def imported(importtime: str) -> set[str]:
    """The packages in what `python -X importtime` printed."""
    lines = [line for line in importtime.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


@pytest.mark.parametrize("arguments", STARTS.values(), ids=STARTS)
def test_nothing_heavy_is_imported_before_there_is_work(arguments: tuple[str, ...]) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = start("-X", "importtime", *arguments)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    packages = imported(run.stderr)
    assert "prunec" in packages
    assert packages & HEAVY == set()
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < MOST


def test_presets_are_listed_without_torch() -> None:
    run = start("-X", "importtime", "-m", "prunec", "policies")
    assert run.returncode == 0
    assert "evit" in run.stdout
    assert "torch" not in imported(run.stderr)


def test_torch_is_imported_where_it_is_needed_and_logs_errors_only() -> None:
    code = """
import logging, sys
from prunec import cli
assert "torch" not in sys.modules
assert cli.main(["targets"]) == 0
print(sys.modules["torch"].__name__, logging.getLogger("torch._dynamo").getEffectiveLevel() == logging.ERROR)
"""
    run = start("-c", code)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.splitlines()[-1] == "torch True"
