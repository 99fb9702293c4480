"""An artefact, and a function that makes a model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from prunec.api.verbs import Result
from tests.api.making import EVIT, optimize, vit

FACTORY = """\
from tests.api.making import vit


def make():
    return vit()
"""


@pytest.fixture(scope="module", autouse=True)
def _recognised_once(recognised_once: None) -> None:
    """What is called runs on few models."""


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """An artefact of a module given in Python."""
    said: list[str] = []
    result = optimize(vit(), progress=said.append, **EVIT)
    assert said == [
        "capture, recognise", "rewrite, certify",
        "compile dense", "compile pruned", "compile ideal", "measure", "compare on images",
    ]  # fmt: skip
    return result.save(tmp_path_factory.mktemp("artefacts") / "given"), result


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "factory_of_a_vit.py").write_text(FACTORY, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    yield "factory_of_a_vit:make"
    sys.modules.pop("factory_of_a_vit", None)
