"""The command line in an empty folder, with models of a user in it."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from prunec import cli
from prunec.artefact import portable
from prunec.errors import TargetError
from prunec.latency.table import LatencyTable
from prunec.planner.workshop import Candidate, Workshop
from tests.cli.running import CODE, PLANNED, Call, Said


@pytest.fixture(scope="module", autouse=True)
def _recognised_once(recognised_once: None) -> None:
    """Commands run on few models."""


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables that one test measures serve the next; all are of this very machine."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def home(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that the command line runs in: it holds the models, and nothing else of the tests'."""
    for name, code in CODE.items():
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    monkeypatch.setenv("PRUNEC_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in CODE:
        sys.modules.pop(name, None)


@pytest.fixture(autouse=True)
def _own_file(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No artefact holds `model.pt2`, which takes seconds to make, where a test does not ask for it."""
    if "own_file" not in request.fixturenames:
        monkeypatch.setattr(portable, "made", _left_out)


def _left_out(_: object) -> NoReturn:
    raise TargetError("left out in this test")


@pytest.fixture
def own_file() -> None:
    """Artefacts are as they are for users."""


@pytest.fixture
def call(home: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Call]:
    level = logging.getLogger("torch").level

    def run(*arguments: str) -> Said:
        code = cli.main(list(arguments))
        return Said(code, *capsys.readouterr())

    yield run
    logging.getLogger("torch").setLevel(level)


@pytest.fixture
def table(call: Call, cache: Path) -> tuple[str, str]:
    """A table of this place by which shorter streams pay: a model for tests is too small for that."""
    paying, here = cache / "paying.json", Path("table.json")
    if not paying.exists():
        assert call("bench", *PLANNED, "--table", str(here)).code == 0
        measured = LatencyTable.read(here)
        row = tuple(map(float, measured.counts))
        blocks, dense = (row,) * len(measured.blocks), row[0] * len(measured.blocks)
        sites = (0.0, 0.0, 0.0, 0.0)
        replace(measured, blocks=blocks, dense=dense, fixed=0.0, sites=sites).write(paying)
    shutil.copy(paying, here)
    return "--latency-table", str(here)


@pytest.fixture
def shares(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Candidate], float]], None]:
    """Schedules are built and timed, but what they take is what the test says."""

    def told(share: Callable[[Candidate], float]) -> None:
        real = Workshop.measured

        def measured(self: Workshop) -> tuple[Candidate, ...]:
            return tuple(replace(one, share=share(one), noise=0.001) for one in real(self))

        monkeypatch.setattr(Workshop, "measured", measured)

    return told
