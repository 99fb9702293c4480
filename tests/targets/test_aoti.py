from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch._inductor import config

from prunec import compat, targets
from prunec.errors import TargetError
from prunec.targets import FileTarget
from prunec.targets.aoti import Aoti
from tests.targets import cases
from tests.targets.cases import difference, images


@pytest.fixture(autouse=True)
def quickly_compiled() -> None:
    """What the C++ compiler makes of the code is as right without its optimisations."""
    config.aot_inductor.compile_wrapper_opt_level = "O0"


@pytest.mark.parametrize("name", ["evit", pytest.param("dynamic packed", marks=pytest.mark.slow)])
def test_a_file_runs_any_batch(name: str, tmp_path: Path, exported_once: None) -> None:
    program, target = cases.case(name), targets.load("aoti")
    assert isinstance(target, FileTarget)
    target.write(program, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == list(target.files)
    run = target.read(tmp_path)
    with torch.no_grad():
        for batch in cases.batches(program):
            (found,) = run(images(batch))
            assert difference(found, program.module(images(batch))[0]) < cases.TOLERANCE


def test_what_cannot_be_compiled_is_refused(monkeypatch: pytest.MonkeyPatch, exported_once: None) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no such operator. And more")

    monkeypatch.setattr(compat, "compile_ahead", fail)
    with pytest.raises(TargetError) as caught:
        Aoti().lower(cases.case("evit"))
    assert caught.value.what == "AOTInductor cannot compile this program: no such operator"
    assert caught.value.remedy
