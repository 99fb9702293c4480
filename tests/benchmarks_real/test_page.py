from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import measures
import page
import plot

from prunec.policy import judged

RECORD = Path(__file__).parents[2] / "benchmarks" / "results" / "real.json"


def figures(value: float) -> dict[str, Any]:
    return {name: {"mean": value, "spread": 0.01, "seeds": [value]} for name in measures.MEASURES}


def record() -> dict[str, Any]:
    row = {"preset": "evit", "budget": 0.64, "flops": 0.65, "restore": "stale", "time": {"share": 0.7}}
    row |= {"figures": figures(0.5), "random": figures(0.25)}
    row["wins"] = {"random": {"l2": 5, "agreement": 4}, "resize": {"l2": 0, "agreement": 1}}
    resized = {"side": 182, "flops": 0.64, "time": {"share": 0.66}, "figures": figures(0.375)}
    small = {**resized, "side": 154, "flops": 0.45}
    return {
        "device": "a processor", "threads": 1, "torch": "2", "prunec": "1", "date": "today", "seeds": 5,
        "size": {"crops": 2, "train": 20, "cells": 10, "calibration": 16}, "photographs": [9, 8],
        "parity": {"timm": 1e-6, "heatmap": 2e-6}, "dense": figures(1.0), "budgets": [0.64, 0.45],
        "resize": {"0.64": resized, "0.45": small},
        "rows": [
            row,
            {"preset": "dtop", "refused": "no scores"},
            {"preset": "tome", "budget": 0.45, "refused": "far"},
        ],
    }  # fmt: skip


def test_a_row_stands_beside_random_tokens_and_under_the_smaller_picture() -> None:
    text = page.markdown(record())
    assert "10 crops of 8 photographs, 10 test cells" in " ".join(text.split())
    assert "to 2e-06" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| `evit`")]
    assert "| 65% | 0.70 | 0.500 ± 0.010 / 0.250 ± 0.010 |" in row
    assert row.endswith("| 50.0 ± 1.0% / 25.0 ± 1.0% | 5, 4 | 0, 1 |  |")
    assert "| **resize**, 182 px | 64% | 0.66 |" in text


def test_flops_that_differ_between_kinds_of_pictures_are_reported() -> None:
    made = record()
    made["rows"][0]["flops_by_kind"] = {"photographs": 0.75, "cells": 0.55}
    assert "| 65% (photographs 75%, cells 55%) | 0.70 |" in page.markdown(made)


def test_what_was_not_measured_is_said() -> None:
    text = page.markdown({**record(), "note": "ended after 3 minutes"})
    assert "## 45% of the FLOPs\n\nNot measured in this run." in text
    assert "- `dtop`: no scores\n- `tome` at 45%: far\n" in text
    assert "**A quick run, on few pictures**" in text
    assert "**This run ended after 3 minutes.**" in text


def test_a_row_has_a_cell_for_every_head() -> None:
    rows = [line for line in page.markdown(record()).splitlines() if line.startswith("| ")]
    assert len({line.count("|") for line in rows}) == 1


def test_the_drawing_has_a_line_for_every_preset_and_for_resize() -> None:
    drawn = plot.svg(record())
    assert drawn.count("<polyline") == 2
    assert ">evit</text>" in drawn
    assert 'stroke="black" stroke-width="3"' in drawn


def test_a_summary_holds_plain_presets_at_the_largest_budget_beside_their_controls() -> None:
    data = record()
    data["rows"].append({**data["rows"][0], "preset": "evit:copy"})
    data["rows"].append({**data["rows"][0], "preset": "late", "budget": 0.45})
    found = page.summary(data)
    assert list(found["presets"]) == list(found["random"]) == ["evit"]
    assert found["presets"]["evit"] == {"flops": 0.65, "error": 0.5, "class_token": 0.5, "heatmap": 0.5}
    assert (found["random"]["evit"]["error"], found["resize"]["error"]) == (0.25, 0.375)


def test_where_pictures_keep_different_numbers_the_flops_are_those_of_photographs() -> None:
    data = record()
    data["rows"][0]["flops_by_kind"] = {"photographs": 0.61, "cells": 0.69}
    assert page.summary(data)["presets"]["evit"]["flops"] == 0.61


def test_what_prunec_shows_is_the_record() -> None:
    data = json.loads(RECORD.read_text(encoding="utf-8"))
    assert json.loads(judged.FILE.read_text(encoding="utf-8")) == page.summary(data)
