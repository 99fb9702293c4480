"""Repositories of Triton: what lies where, and what its configuration says."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunec.artefact.artefact import save
from prunec.errors import SourceError, UsageError
from prunec.serving.signature import Signature, Tensor
from prunec.serving.triton import FORMATS, Batching, config, write
from tests.artefact.saving import MANIFEST
from tests.serving.files import artefact

BATCHED = """\
name: "vit"
platform: "onnxruntime_onnx"
backend: "onnxruntime"
max_batch_size: 16
input [
  {
    name: "pixels"
    data_type: TYPE_FP32
    dims: [ 3, 4, 4 ]
  }
]
output [
  {
    name: "logits"
    data_type: TYPE_FP32
    dims: [ 48 ]
    label_filename: "labels.txt"
  }
]
dynamic_batching {
  max_queue_delay_microseconds: 500
}
"""


def test_a_model_of_any_number_of_images_is_batched(tmp_path: Path) -> None:
    out = artefact(tmp_path / "out", labels=48, weights=b"weights")
    place = write(out, tmp_path / "repository", "vit", Batching(16, 500))
    assert (place / "config.pbtxt").read_text(encoding="utf-8") == BATCHED
    assert (place / "1" / "model.onnx").read_bytes() == (out / "model.onnx").read_bytes()
    assert (place / "1" / "model.onnx.data").read_bytes() == b"weights"
    labels = (place / "labels.txt").read_text(encoding="utf-8").splitlines()
    assert labels == [f"class {number}" for number in range(48)]
    files = sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())
    assert files == ["1/model.onnx", "1/model.onnx.data", "config.pbtxt", "labels.txt"]


def test_a_fixed_number_of_images_is_no_batch_of_triton(tmp_path: Path) -> None:
    place = write(artefact(tmp_path / "out", batch=2), tmp_path / "repository", "vit", Batching())
    text = (place / "config.pbtxt").read_text(encoding="utf-8")
    assert "max_batch_size: 0\n" in text
    assert "dims: [ 2, 3, 4, 4 ]" in text
    assert "dynamic_batching" not in text
    assert "label_filename" not in text


def test_aotinductor_runs_in_the_backend_of_pytorch() -> None:
    signature = Signature(
        (Tensor("INPUT__0", (None, 3, None, 4), "FP16"),), (Tensor("OUTPUT__0", (None, 7), "FP16"),)
    )
    text = config("vit", FORMATS["aoti"], signature, Batching())
    assert 'platform: "torch_aoti"\nbackend: "pytorch"\n' in text
    assert "dims: [ 3, -1, 4 ]" in text
    assert FORMATS["aoti"].called == "model.pt2"


def test_labels_are_of_the_output_that_has_as_many_scores() -> None:
    outputs = (Tensor("logits", (None, 2), "FP32"), Tensor("boxes", (None, 9, 2), "FP32"))
    signature = Signature((Tensor("x", (None, 3, 4, 4), "FP32"),), outputs)
    text = config("m", FORMATS["onnx"], signature, Batching(), ("cat", "dog"))
    assert text.count("label_filename") == 1
    assert text.index("label_filename") < text.index("boxes")


def test_a_model_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    out = artefact(tmp_path / "out")
    write(out, tmp_path / "repository", "vit", Batching())
    with pytest.raises(UsageError, match="exists already"):
        write(out, tmp_path / "repository", "vit", Batching())


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "labels.json"])
def test_what_is_not_as_it_was_written_goes_to_no_server(tmp_path: Path, name: str) -> None:
    out = artefact(tmp_path / "out", labels=48, weights=b"weights")
    data = bytearray((out / name).read_bytes())
    data[-1] ^= 1
    (out / name).write_bytes(data)
    with pytest.raises(SourceError, match=f"{name} is not what was written: its checksum differs"):
        write(out, tmp_path / "repository", "vit", Batching())
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "../out"])
def test_names_that_are_no_folder_of_the_repository_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="no name for a model"):
        write(artefact(tmp_path / "out"), tmp_path / "repository", name, Batching())
    assert not (tmp_path / "repository").exists()


def test_an_artefact_without_a_file_for_triton_says_how_to_get_one(tmp_path: Path) -> None:
    empty = save(tmp_path / "out", MANIFEST, {}, {})
    with pytest.raises(SourceError, match=r"has no model\.onnx or model\.aoti\.pt2") as caught:
        write(empty, tmp_path / "repository", "vit", Batching())
    assert "--target onnx" in str(caught.value.remedy)
    out = artefact(tmp_path / "other")
    with pytest.raises(SourceError, match=r"has no model\.aoti\.pt2"):
        write(out, tmp_path / "repository", "vit", Batching(), "aoti")
    with pytest.raises(UsageError, match="not of 'tensorrt'"):
        write(out, tmp_path / "repository", "vit", Batching(), "tensorrt")
