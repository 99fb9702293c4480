from __future__ import annotations

from pathlib import Path

import pytest

from prunec.errors import SourceError
from prunec.serving.signature import KINDS, Signature, Tensor, kind_of, of_onnx
from tests.serving.files import onnx_file


def test_names_sizes_and_precision_are_read_off_a_file(tmp_path: Path) -> None:
    found = of_onnx(onnx_file(tmp_path / "model.onnx", batch="images"))
    assert found.inputs == (Tensor("pixels", (None, 3, 4, 4), "FP32"),)
    assert found.outputs == (Tensor("logits", (None, 48), "FP32"),)
    assert found.batched


def test_a_fixed_batch_is_no_batch(tmp_path: Path) -> None:
    found = of_onnx(onnx_file(tmp_path / "model.onnx", batch=2))
    assert found.inputs[0].sizes == (2, 3, 4, 4)
    assert not found.batched


def test_an_output_without_images_is_no_batch() -> None:
    image, number = Tensor("x", (None, 3), "FP32"), Tensor("count", (), "INT64")
    assert Signature((image,), (image,)).batched
    assert not Signature((image,), (image, number)).batched


def test_what_is_no_onnx_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\xff" * 64)
    with pytest.raises(SourceError, match="no readable file of ONNX"):
        of_onnx(path)


@pytest.mark.parametrize(("precision", "kind"), [("float32", "FP32"), ("int64", "INT64"), ("bool", "BOOL")])
def test_precisions_in_tritons_words(precision: str, kind: str) -> None:
    assert kind_of(precision, Path("out")) == kind


def test_a_precision_without_a_word_is_refused() -> None:
    assert "complex64" not in KINDS
    with pytest.raises(SourceError, match="complex64, which Triton has no word for"):
        kind_of("complex64", Path("out"))
