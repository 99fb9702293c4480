from __future__ import annotations

import json

import pytest

from prunec import cli, doctor
from prunec.doctor import Finding

WELL = Finding("torch", "well", "2.15.0", "")
ILL = Finding("timm", "ill", "1.0.2 is [too] old", "pip install --upgrade timm")


@pytest.mark.parametrize(("findings", "code"), [([WELL], 0), ([WELL, ILL], 1)])
def test_what_is_ill_decides_the_exit_code(
    findings: list[Finding], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: findings)
    assert cli.main(["doctor"]) == code
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if "to do:" not in line] == [one.health for one in findings]
    assert cli.main(["doctor", "--json"]) == code
    told = json.loads(capsys.readouterr().out)
    assert told["well"] is (code == 0)
    assert [one["subject"] for one in told["findings"]] == [one.subject for one in findings]


def test_a_remedy_stands_under_what_it_mends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: [WELL, ILL])
    cli.main(["doctor"])
    said = capsys.readouterr().out
    assert "1.0.2 is [too] old\n" in said  # no markup of rich
    assert said.splitlines()[2].strip() == "to do: pip install --upgrade timm"
    assert len(said.splitlines()) == 3
