"""What every command does: usage errors, failures and warnings in one message, and as a process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import prunec
import prunec.measure.image_sets
from prunec.frontend import sources
from tests.cli.running import ROOT, Call, Said, message


def test_version_and_help(call: Call) -> None:
    assert call("--version") == Said(0, f"prunec {prunec.__version__}\n", "")
    said = call("--help")
    assert (said.code, said.err) == (0, "")
    for command in ("optimize", "graph", "explain", "policies", "targets"):
        assert f"  {command} " in said.out
        assert call(command, "--help").code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Usage:"),
        (("prune",), "'prune'"),
        (("optimize",), "SOURCE"),
        (("optimize", "shapes"), "'--policy'"),
        (("optimize", "shapes", "-p", "evit", "--keep", "half"), "'--keep'"),
        (("optimize", "shapes", "-p", "evit", "--rounds", "1"), "'--rounds'"),
        *(
            (("optimize", "shapes", "-p", "evit", *option), "are for a plan")
            for option in (("--sites", "2"), ("--first", "1"), ("--fast",), ("--latency-table", "t.json"))
        ),
        (
            ("optimize", "shapes", "-p", "dynamic", "--latency", "0.6", "--buckets", "64"),
            "mode without options",
        ),
        (("optimize", "shapes", "-p", "evit", "--blocks", "3;6"), "'3;6'"),
        (("graph", "shapes", "--diff"), "--policy"),
        (("graph", "shapes", "--format", "xml"), "'--format'"),
        (("explain", "shapes", "--jsn"), "--jsn"),
    ],
)
def test_usage(call: Call, arguments: tuple[str, ...], said: str) -> None:
    result = call(*arguments)
    assert (result.code, result.out) == (2, "")
    assert said in result.err.replace("`", "'")
    assert "Traceback" not in result.err


def test_an_unknown_source(call: Call) -> None:
    said = message(call("explain", "models_of_a_user:vti"), 1)
    assert "nearest: vit" in said.what
    assert "models_of_a_user" in said.where


def test_an_unexpected_exception_is_one_message(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("no [red]tokens[/red]")

    monkeypatch.setattr(sources, "read", stop)
    said = message(call("explain", "shapes"), 1)
    assert said.what == "ZeroDivisionError: no [red]tokens[/red]"
    assert "PRUNEC_TRACEBACK=1" in said.remedy
    monkeypatch.setenv("PRUNEC_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        call("explain", "shapes")


def test_an_interrupt_is_no_traceback(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sources, "read", stop)
    said = call("explain", "shapes")
    assert said.code not in (0, 2, 3, 4, 5)
    assert said.out == ""
    assert "Traceback" not in said.err


@pytest.mark.filterwarnings("default")
def test_a_warning_is_one_line_of_chatter(call: Call) -> None:
    said = call("explain", "models_of_a_user:fixed")
    assert said.code == 0
    assert said.out.startswith("2/2 blocks, ")
    (line,) = said.err.splitlines()
    assert line.startswith("prunec: warning: the batch is fixed at 2")
    assert "assert image.shape[0] == 2" in line


def process(home: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "prunec", *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=home
    )


def test_a_real_failure(home: Path) -> None:
    out, err = (running := process(home, "explain", "models_of_a_user:convolutions")).communicate()
    assert message(Said(running.returncode, out, err), 3).what.startswith("no residual stream")


def test_a_broken_pipe_is_quiet(home: Path) -> None:
    running = process(home, "policies", "--json")
    assert running.stdout is not None
    assert running.stderr is not None
    running.stdout.close()
    assert running.stderr.read() == ""
    running.stderr.close()
    assert running.wait() in (0, 1)


def test_verbose_shows_stages_and_what_was_decided(call: Call) -> None:
    graph = ("graph", "models_of_a_user:vit", "-p", "norm")
    assert call(*graph).err == ""
    said = call("-v", *graph)
    assert re.search(r"^prunec: insert sites +\d+\.\d\d s ", said.err, flags=re.M)
    assert "prunec: certify" in said.err
    assert call(*graph).err == ""  # not from now on
