from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from prunec.cli import printing
from prunec.errors import NoGainError


def report(no_gain: str = "") -> Any:
    return SimpleNamespace(
        text=lambda: "a report of [red]tokens[/red]\n",
        as_dict=lambda: {"tokens": 3},
        no_gain=no_gain,
        source="shapes",
    )


def test_steps_and_warnings_go_to_stderr_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    with printing.progress() as step:
        step("measure [all]")
    printing.warn("images [few]")
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "prunec: measure [all]\nprunec: warning: images [few]\n"


def test_a_report_is_text_or_json_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    printing.show_report(report(), as_json=False, require_speedup=True)
    assert capsys.readouterr().out == "a report of [red]tokens[/red]\n"  # no markup of rich
    printing.show_report(report(), as_json=True, require_speedup=True)
    assert json.loads(capsys.readouterr().out) == {"tokens": 3}


def test_without_a_gain_the_report_is_shown_and_then_it_is_an_error_where_one_is_required(
    capsys: pytest.CaptureFixture[str],
) -> None:
    printing.show_report(report("as slow as before"), as_json=False, require_speedup=False)
    with pytest.raises(NoGainError, match="as slow as before") as caught:
        printing.show_report(report("as slow as before"), as_json=False, require_speedup=True)
    assert caught.value.where == "shapes"
    assert capsys.readouterr().out.count("a report") == 2
