from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prunec import targets
from prunec.errors import TargetError
from prunec.policy.lowering import choose
from prunec.policy.policy import Policy
from prunec.targets import FileTarget
from prunec.targets.openvino import OpenVino
from tests.targets import cases
from tests.targets.cases import difference, images

pytestmark = pytest.mark.skipif(OpenVino().missing() is not None, reason="needs openvino")


@pytest.mark.parametrize("name", ["dense", "evit", "cropr", "tome"])
def test_the_files_run_any_batch(name: str, tmp_path: Path, exported_once: None) -> None:
    program, target = cases.case(name), targets.load("openvino")
    assert isinstance(target, FileTarget)
    target.write(program, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(target.files)
    run = target.read(tmp_path)
    with torch.no_grad():
        for batch in cases.batches(program):
            (found,) = run(images(batch))
            assert difference(found, program.module(images(batch))[0]) < cases.TOLERANCE


@pytest.mark.parametrize("name", ["cover", "dynamic static", "dynamic padded", "dynamic packed"])
def test_images_that_keep_different_numbers_are_refused(name: str) -> None:
    with pytest.raises(TargetError, match="images keep different numbers of tokens") as caught:
        OpenVino().lower(cases.case(name))
    assert str(caught.value.where).startswith(f"policy {name.split()[0]}, mode ")
    assert str(caught.value.remedy).startswith("choose target onnx, aoti or inductor")


def test_a_precision_that_the_cpu_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino

    monkeypatch.setattr(openvino.Core, "get_property", lambda *_: ["FP32", "INT8"])
    with pytest.raises(TargetError, match="OpenVINO has no bf16 on this CPU, which does FP32, INT8"):
        targets.load("openvino", "bf16")


def test_a_mode_that_it_does_not_run_is_refused_before_anything_is_built() -> None:
    with pytest.raises(TargetError, match="cannot run mode padded"):
        choose(Policy.load("dynamic"), can=OpenVino().modes)
