from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from prunec.cli import printing
from prunec.errors import NoGainError, VerificationError


def result(no_gain: str = "", useless: str = "", disagrees: str = "") -> Any:
    report = SimpleNamespace(
        text=lambda: "a report of [red]tokens[/red]\n",
        as_dict=lambda: {"tokens": 3},
        no_gain=no_gain,
        useless=useless,
        disagrees=disagrees,
        source="shapes",
    )
    report.at = lambda folder: report
    saved: list[str] = []
    return SimpleNamespace(report=report, save=saved.append, saved=saved)


def hand_over(given: Any, **how: bool) -> None:
    choices = {"as_json": False, "require_speedup": False, "force": False, **how}
    printing.hand_over(given, "out", **choices)


def test_steps_and_warnings_go_to_stderr_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    with printing.progress() as step:
        step("measure [all]")
    printing.warn("images [few]")
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "prunec: measure [all]\nprunec: warning: images [few]\n"


def test_a_report_is_text_or_json_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    hand_over(result(), require_speedup=True)
    assert capsys.readouterr().out == "a report of [red]tokens[/red]\n"  # no markup of rich
    hand_over(result(), as_json=True, require_speedup=True)
    assert json.loads(capsys.readouterr().out) == {"tokens": 3}


def test_without_a_gain_the_report_is_shown_and_then_it_is_an_error_where_one_is_required(
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = result("as slow as before")
    hand_over(given)
    with pytest.raises(NoGainError, match="as slow as before") as caught:
        hand_over(given, require_speedup=True)
    assert caught.value.where == "shapes"
    assert capsys.readouterr().out.count("a report") == 2
    assert given.saved == ["out", "out"]


def test_what_is_useless_is_shown_and_written_by_force_only(capsys: pytest.CaptureFixture[str]) -> None:
    given = result(useless="worse than zeros")
    with pytest.raises(NoGainError, match="worse than zeros; nothing was written") as caught:
        hand_over(given)
    assert "--force" in (caught.value.remedy or "")
    assert given.saved == []
    hand_over(given, force=True)
    assert given.saved == ["out"]
    assert capsys.readouterr().out.count("a report") == 2


def test_a_target_that_disagrees_is_shown_and_nothing_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    given = result(disagrees="target onnx differs from the graph by 0.3")
    with pytest.raises(VerificationError, match=r"target onnx differs .* by 0\.3; nothing was written"):
        hand_over(given, force=True)
    assert "a report" in capsys.readouterr().out
    assert given.saved == []
