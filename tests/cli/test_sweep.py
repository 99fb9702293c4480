from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from prunec.api import verbs
from prunec.planner import planned
from prunec.planner.workshop import Workshop
from tests.cli.running import PLANNED, Call, failure


def test_a_sweep_shows_points_by_time_and_goes_on_where_it_stopped(
    call: Call, table: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("sweep", *PLANNED, *table, "--sites", "1", "-o", "deep/sweep.json")
    said = call(*arguments, "--points", "2")
    assert said.code == 0
    rows = re.findall(r"^(\*?) +(\d\.\d{3}) ±\d\.\d{3} +\d\.\d{3} .* static +(\S.*)$", said.out, flags=re.M)
    assert len(rows) == 3
    assert [share for _, share, _ in rows] == sorted(share for _, share, _ in rows)
    assert rows[0][0] == "*"
    assert sum(schedule.strip() == "no site" for *_, schedule in rows) == 1
    assert "written to deep/sweep.json" in said.out

    built = []
    real = Workshop.build

    def build(self: Workshop, *given: Any) -> None:
        built.append(given)
        real(self, *given)

    monkeypatch.setattr(Workshop, "build", build)
    again = call(*arguments, "--points", "2", "--json")
    assert again.json["points"] == json.loads(Path("deep/sweep.json").read_text())["points"]
    assert built == []
    more = call(*arguments, "--points", "3", "--json")
    assert 1 <= len(built) <= 2
    assert len(more.json["points"]) == 3 + len(built)
    assert [entry for entry in more.json["points"] if {**entry, "frontier": True} in again.json["points"]]


def test_a_sweep_of_another_model_is_refused_before_anything_is_measured(
    call: Call, table: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call("sweep", *PLANNED, *table, "--sites", "1", "--points", "1", "-o", "sweep.json").code == 0
    before = Path("sweep.json").read_text()
    monkeypatch.setattr(planned, "tables", None)
    other = ("sweep", "models_of_a_planner:other", *PLANNED[1:], "--sites", "2", "-o", "sweep.json")
    text = failure(call(*other), 1)
    assert "model source is models_of_a_planner:vit in the file, models_of_a_planner:other here" in text
    assert "model parameters is " in text
    assert "search sites is 1 in the file, 2 here" in text
    assert Path("sweep.json").read_text() == before


def test_drawing_without_the_extra_says_what_to_install(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "prunec.report.drawing", raising=False)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.setattr(verbs, "sweep", None)
    text = failure(call("sweep", *PLANNED, "--plot", "sweep.png"), 2)
    assert "jinja2 is not installed" in text
    assert "to do: pip install 'prunec[report]'" in text
