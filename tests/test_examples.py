"""Every example runs as its reader would run it, and prints what it promises."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
NUMBER = r"-?\d+\.\d+(e[+-]\d+)?"


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "the batch is fixed" not in done.stderr
    return done.stdout


def test_every_script_is_tested_and_listed() -> None:
    scripts = {path.name for path in EXAMPLES.glob("*.py")}
    assert scripts == {"quickstart.py", "own_model.py"}
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert [name for name in scripts if f"`{name}" not in listed] == []


def test_own_model() -> None:
    said = run("own_model.py")
    assert "found: 8 blocks, 145 tokens, 1 protected\nthe head reads: class token\n" in said
    assert "after attention of block 2: 145 -> 117 tokens" in said
    assert re.search(rf"the proof: identity at keep=1\.0: {NUMBER}, permutation: {NUMBER}", said)
    assert "keep=1.0 against the model: similarity 1.0000, agreement 1.0000, divergence 0.0000" in said
    assert re.search(r"keep=0\.5 against the model: similarity 0\.\d+", said)


@pytest.mark.slow
def test_quickstart() -> None:
    said = run("quickstart.py", "test_vit")
    assert "test_vit with fewer tokens:\n  after attention of block " in said
    assert re.search(rf"pruned against dense: similarity {NUMBER}, agreement {NUMBER}", said)
    assert re.search(rf" dense, compiled: {NUMBER} ms for 4 images\npruned, compiled: {NUMBER} ms", said)
    assert re.search(rf"speed-up: {NUMBER}\n", said)
