"""`prunec triton`: its options reach the configuration, its errors the user."""

from __future__ import annotations

from pathlib import Path

from tests.cli.running import Call, message
from tests.serving.files import artefact


def test_a_repository_is_written(call: Call, home: Path) -> None:
    artefact(home / "out")
    said = call("triton", "out", "models", "--max-batch", "4", "--delay", "100")
    assert said.code == 0
    assert "models/out: start Triton with --model-repository=models" in said.out
    text = (home / "models" / "out" / "config.pbtxt").read_text(encoding="utf-8")
    assert 'name: "out"' in text
    assert "max_batch_size: 4" in text
    assert "max_queue_delay_microseconds: 100" in text
    assert "exists already" in str(message(call("triton", "out", "models"), 2))
    said = call("triton", "out", "models", "--name", "other", "--json").json
    assert said == {"place": "models/other", "name": "other"}


def test_an_artefact_of_another_target_says_which_one_it_takes(call: Call, home: Path) -> None:
    artefact(home / "out")
    assert "--target aoti" in str(message(call("triton", "out", "models", "--engine", "aoti"), 1))
    assert "not of 'engine'" in str(message(call("triton", "out", "models", "--engine", "engine"), 2))
