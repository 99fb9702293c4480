"""Every hostile file is refused in plain words: the kind of error, the file, what to do, in seconds."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from prunec import cli
from prunec.errors import TableError
from prunec.planner import sweep
from prunec.planner.table import LatencyTable
from tests.hostile_documents import HOSTILE, Hostile


def test_there_are_many_and_each_has_a_name_of_its_own() -> None:
    assert len({one.name for one in HOSTILE}) == len(HOSTILE) > 100
    assert all(one.what for one in HOSTILE)


@pytest.mark.parametrize("one", HOSTILE, ids=lambda one: one.name)
def test_a_hostile_file_is_refused(one: Hostile, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = one.make(tmp_path)
    start = time.perf_counter()
    if "--latency-table" in arguments or "sweep" in arguments:  # their commands capture a model first
        told = read_by_itself(arguments)
    else:
        assert cli.main(arguments) in (1, 2)
        told = capsys.readouterr().err
    assert time.perf_counter() - start < 30
    assert "fault of prunec" not in told
    assert str(tmp_path) in told
    assert "to do: " in told
    assert len(told) < 3000
    assert not (tmp_path / "out").exists()


def read_by_itself(arguments: list[str]) -> str:
    path = Path(arguments[-1])

    def read() -> object:
        if "sweep" in arguments:
            return sweep.read(path, {})
        return LatencyTable.read(path).check({}, {"tokens": 82}, file=path)

    with pytest.raises(TableError) as caught:
        read()
    return str(caught.value)
