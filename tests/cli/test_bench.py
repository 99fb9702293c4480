"""Latency tables: measured, kept, and refused where they do not fit."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from prunec.api import verbs
from prunec.latency.table import LatencyTable
from tests.cli.running import PLANNED, Call, failure


def foreign(path: str) -> None:
    """The table of a device that is not here."""
    table = LatencyTable.read(Path(path))
    replace(table, place={**table.place, "device": "a far device"}).write(Path(path))


def test_a_table_is_measured_shown_exported_and_kept(
    call: Call, home: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LatencyTable, "noise", "")  # whatever else runs on this machine
    said = call("bench", *PLANNED, "--table", "deep/table.json")
    assert said.code == 0
    assert re.search(r"^65 +\d+\.\d{3} +\d+\.\d{3} +\d+\.\d{3}", said.out, flags=re.M)
    assert re.search(r"^dense +\d+\.\d{3}", said.out, flags=re.M)
    assert "batch 2" in said.out
    table = LatencyTable.read(home / "deep" / "table.json")
    assert list((cache / "latency").glob("*.json"))
    again = call("bench", *PLANNED, "--json")
    assert again.json["dense"] == table.dense
    assert "time " not in again.err  # it came from the cache


def test_a_foreign_table_predicts_and_is_refused_for_building(call: Call) -> None:
    assert call("bench", *PLANNED, "--table", "far.json").code == 0
    foreign("far.json")
    goal = ("--max-drop", "10", "--sites", "1", "--latency-table", "far.json")
    text = failure(call("optimize", *PLANNED, *goal, "-o", "out"), 1)
    assert re.search(r"the latency table does not fit: device is a far device in the table, .* here", text)
    assert not Path("out").exists()
    said = call("plan", *PLANNED, *goal, "--predict")
    assert said.code == 0
    about = yaml.safe_load(said.out)["about"]
    assert about["device"] == "a far device"
    assert "measured_share" not in about
    assert about["notes"] == ["predicted, not built: nothing was timed"]


def test_a_table_that_was_measured_in_noise_is_warned_of(call: Call, table: tuple[str, str]) -> None:
    goal = ("plan", *PLANNED, *table, "--max-drop", "10", "--sites", "1", "--predict")
    noisy, kept = "the latency table was measured in noise", LatencyTable.read(Path("table.json"))
    replace(kept, spread=0.15).write(Path("table.json"))
    assert noisy not in call(*goal).err
    replace(kept, spread=0.41).write(Path("table.json"))
    said = call(*goal)
    assert said.code == 0
    assert f"prunec: warning: {noisy}, its samples lie 41% apart" in said.err


def test_a_table_that_only_says_to_be_of_the_model_is_refused(call: Call, table: tuple[str, str]) -> None:
    goal = ("plan", *PLANNED, *table, "--max-drop", "10", "--sites", "1", "--predict")
    kept = LatencyTable.read(Path("table.json"))
    replace(kept, blocks=kept.blocks[:-1]).write(Path("table.json"))
    told = failure(call(*goal), 1)
    depth, tokens = len(kept.blocks), kept.counts[0]
    assert f"the latency table has {depth - 1} blocks from {tokens} tokens, and the model {depth}" in told
    assert "where: table.json" in told


def test_a_table_of_another_batch_does_not_even_predict(call: Call) -> None:
    assert call("bench", *PLANNED, "--table", "table.json").code == 0
    said = call(
        "plan", *PLANNED[:-1], "4", "--max-drop", "10", "--latency-table", "table.json", "--predict"
    )  # fmt: skip
    assert "batch is 2 in the table, 4 here" in failure(said, 1)


def test_a_file_that_cannot_be_written_is_known_before_the_work(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("file").write_text("")
    monkeypatch.setattr(verbs, "latency_table", None)
    monkeypatch.setattr(verbs, "sweep", None)
    assert "file/table.json cannot be written" in failure(
        call("bench", *PLANNED, "--table", "file/table.json"), 2
    )
    assert "where: -o" in failure(call("sweep", *PLANNED, "-o", "file/sweep.json"), 2)
    assert ". cannot be written: it is a folder" in failure(call("sweep", *PLANNED, "-o", "."), 2)


def test_a_device_is_named_for_an_estimate_alone(call: Call) -> None:
    said = call("bench", *PLANNED, "--device", "an H200")
    assert (said.code, said.out) == (2, "")
    assert "--device names the device of an --estimate" in said.err
