"""Artefacts of targets that run from files: what lies in them, what reads them, and what is never read."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

import prunec
from prunec import targets
from prunec.api.results import Result
from prunec.api.verifying import verify
from prunec.artefact import portable
from prunec.errors import SourceError
from prunec.targets.aoti import Aoti
from prunec.targets.onnx import Onnx
from prunec.targets.pt2 import Pt2
from tests.api.making import EVIT, images, vit

pytestmark = pytest.mark.skipif(Onnx().missing() is not None, reason="needs the packages of the extra onnx")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    how = prunec.Measure(target="onnx", batch=2, rounds=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = prunec.optimize(vit(), prunec.Policy.load("evit", **EVIT), measure=how)
    return result.save(tmp_path_factory.mktemp("artefacts") / "out"), result


def test_the_file_of_the_target_lies_beside_the_models_own(written: tuple[Path, Result]) -> None:
    import onnxruntime

    folder, result = written
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    (name,) = (one.name for one in session.get_inputs())
    for count in (1, 2, 5):
        x = images(count)
        (found,) = session.run(None, {name: x.numpy()})
        assert torch.allclose(torch.from_numpy(found), result.module(x), atol=1e-5)
    assert (folder / portable.FILE).exists()


def test_loading_reads_that_file_and_exports_nothing(
    written: tuple[Path, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, result = written

    def lower(*_: object) -> None:
        raise AssertionError("it was exported again")

    monkeypatch.setattr(Onnx, "lower", lower)
    model = prunec.load(folder)
    assert torch.allclose(model(images(3)), result.module(images(3)), atol=1e-5)


def test_verify_runs_it_and_a_flipped_bit_is_found(written: tuple[Path, Result], tmp_path: Path) -> None:
    from tests.api.making import copied

    folder = copied(written[0], tmp_path / "out")
    rows = {row.what: row for row in verify(folder, rebuild=False)}
    assert rows["outputs of model.onnx"].verdict == "ok"
    content = bytearray((folder / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.onnx").write_bytes(content)
    rows = {row.what: row for row in verify(folder, rebuild=False)}
    assert rows["model.onnx"].verdict == "failed"
    assert "outputs of model.onnx" not in rows
    with pytest.raises(SourceError, match=r"model\.onnx"):
        prunec.load(folder)


def test_triton_gets_it(written: tuple[Path, Result], tmp_path: Path) -> None:
    from prunec.serving.triton import Batching, write

    place = write(written[0], tmp_path / "models", "vit", Batching())
    text = (place / "config.pbtxt").read_text(encoding="utf-8")
    assert "dims: [ 3, 20, 20 ]" in text
    assert "dims: [ 7 ]" in text
    assert "max_batch_size: 32" in text
    assert (place / "1" / "model.onnx").exists()


@pytest.mark.parametrize("target", [Aoti(), Pt2()])
def test_files_that_may_run_code_are_never_read_out_of_an_artefact(target: Aoti | Pt2) -> None:
    assert not portable.has_files(target, target.files)
    assert portable.has_files(Onnx(), Onnx.files)
    assert not portable.has_files(Onnx(), ["model.pt2"])


def test_a_target_that_cannot_run_here_has_its_file_and_another_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "usual", lambda: "eager")
    how = prunec.Measure(target="tensorrt", batch=3, rounds=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = prunec.optimize(vit(), prunec.Policy.load("evit", **EVIT), measure=how)
    assert (result.report.target, result.report.written) == ("eager", ("tensorrt", "fp32"))
    (note,) = (note for note in result.report.notes if "was not run" in note)
    assert note.endswith("times and outputs are of eager")
    folder = result.save(tmp_path / "out")
    run, x = targets.find("tensorrt").read(folder), images(3)  # type: ignore[attr-defined]
    assert torch.allclose(run(x)[0], result.module(x), atol=1e-5)
    assert torch.equal(prunec.load(folder)(x), result.module(x))
