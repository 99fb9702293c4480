from __future__ import annotations

from pathlib import Path

import pytest

import prunec
import prunec.measure.image_sets
from prunec import targets
from prunec.targets.inductor import Inductor
from tests.cli.running import Call, message


def test_policies(call: Call) -> None:
    said = call("policies")
    assert (said.code, said.err) == (0, "")
    table = said.out.split("\n\n")[0]  # what they lose on real weights stands below
    rows = [line.split("  ") for line in table.splitlines() if not line.startswith(" ")]
    assert [row[0].strip() for row in rows] == ["policy", *prunec.presets()]
    assert said.out.split("\n", 1)[0].split() == ["policy", "summary", "rate", "needs", "fits"]
    assert all(len(line) <= 80 for line in said.out.splitlines())
    assert "…" not in said.out
    told = " ".join(said.out.split())
    assert "Merge uniform at 0.88, a known grid classification windows early adaptive detection and" in told
    data = call("policies", "--json").json
    assert list(data) == list(prunec.presets())
    assert data["evit"]["selector"]["keep_per_site"] == 0.7
    assert (data["evit"]["needs"], data["evit"]["fits"][0]) == (["class token"], "classification")


def test_one_policy_is_printed_to_copy_and_edit(call: Call, home: Path) -> None:
    said = call("policies", "algm")
    assert (said.code, said.err) == (0, "")
    assert said.out == prunec.Policy.load("algm").to_yaml()
    (home / "mine.yaml").write_text(said.out, encoding="utf-8")
    assert call("policies", "mine.yaml") == said
    listed = call("policies", "--json").json
    assert listed["tome"]["measured"]["flops"] < 1
    listed["algm"].pop("measured")  # of the preset, which a file is not
    assert call("policies", "mine.yaml", "--json").json == listed["algm"]
    assert "nearest: evit, svit" in message(call("policies", "evti"), 2).what


def test_the_schema_of_a_policy_file(call: Call) -> None:
    said = call("policies", "--schema")
    assert (said.code, said.err) == (0, "")
    assert said.json["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert set(said.json["properties"]) == set(prunec.Policy.model_fields)
    assert "--schema is of every policy file" in " ".join(call("policies", "evit", "--schema").err.split())


def test_targets(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Inductor, "missing", lambda self: "no compiler")
    said = call("targets")
    assert (said.code, said.err) == (0, "")
    lines = [" ".join(line.split()) for line in said.out.splitlines()]
    assert lines[0] == "target summary needs here"
    assert [line.split()[0] for line in lines if line.split()[0] in targets.TARGETS] == list(targets.TARGETS)
    (row,) = [line for line in lines if line.startswith("inductor ")]
    assert row.endswith("a C++ compiler no compiler")
    assert "[openvino]" in said.out


def test_targets_as_json(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Inductor, "missing", lambda self: "no compiler")
    data = call("targets", "--json").json
    assert data.keys() == targets.TARGETS.keys()
    assert data["eager"]["missing"] is None
    modes = ["static", "padded", "packed", "masked"]
    assert data["inductor"] == {
        "summary": Inductor.summary,
        "needs": "a C++ compiler",
        "missing": "no compiler",
        "modes": modes,
        "precisions": ["fp32", "bf16", "fp16"],
        "files": [],
    }
    assert data["pt2"]["files"] == ["model.pt2"]
