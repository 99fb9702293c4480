"""Tables and sweeps that are hostile, read by themselves: their commands capture a model first."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from prunec.errors import TableError
from prunec.latency.table import LatencyTable
from prunec.planner import sweep
from tests.hostile import Hostile
from tests.hostile.documents import HOSTILE

READ_LATE = tuple(one for one in HOSTILE if one.name.startswith(("table: ", "sweep: ")))


@pytest.mark.parametrize("one", READ_LATE, ids=lambda one: one.name)
def test_a_hostile_file_is_refused(one: Hostile, tmp_path: Path) -> None:
    arguments = one.write(tmp_path)
    start = time.perf_counter()
    said = read_by_itself(arguments)
    assert time.perf_counter() - start < 30
    assert str(tmp_path) in said
    assert "to do: " in said
    assert len(said) < 3000


def read_by_itself(arguments: list[str]) -> str:
    path = Path(arguments[-1])

    def read() -> object:
        if "sweep" in arguments:
            return sweep.read(path, {})
        return LatencyTable.read(path).check({}, {"tokens": 82}, file=path)

    with pytest.raises(TableError) as caught:
        read()
    return str(caught.value)
