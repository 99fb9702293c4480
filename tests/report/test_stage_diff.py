from __future__ import annotations

import pytest

from prunec.errors import UsageError
from prunec.ir.program import Planned
from prunec.report.stage_diff import between
from tests.tiny import ViT, pruned, recognised


@pytest.fixture(scope="module")
def half() -> Planned:
    return pruned(recognised(ViT()), keep=0.5)


def test_what_a_pass_inserts_stands_in_the_lines_that_came(half: Planned) -> None:
    lines = between(half, "recognise", "insert sites").splitlines()
    assert lines[:2] == ["--- recognise", "+++ insert sites"]
    assert any(line.startswith("+select_0: int64[") for line in lines)
    assert all(line[0] in "+-" for line in lines)


def test_between_a_stage_and_itself_is_nothing(half: Planned) -> None:
    assert between(half, "recognise", "recognise") == ""


def test_a_stage_that_is_not_there_is_reported_with_those_that_are(half: Planned) -> None:
    with pytest.raises(UsageError, match="no stage 'recognize'; nearest: recognise") as error:
        between(half, "recognize", "insert sites")
    assert "normalise, flatten grid, recognise, insert sites" in str(error.value.remedy)
