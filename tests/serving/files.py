"""A small file of ONNX, made by hand: pictures to 48 numbers; and an artefact that holds it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prunec.artefact.artefact import Content, save
from tests.artefact.saving import MANIFEST


def onnx_file(path: Path, batch: str | int) -> Path:
    """Write one that flattens pictures [batch, 3, 4, 4]."""
    onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
    make, number = onnx.helper, onnx.TensorProto.FLOAT
    pixels = make.make_tensor_value_info("pixels", number, [batch, 3, 4, 4])
    logits = make.make_tensor_value_info("logits", number, [batch, 48])
    node = make.make_node("Flatten", ["pixels"], ["logits"], axis=1)
    graph = make.make_graph([node], "flat", [pixels], [logits])
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 18)]), path)
    return path


def artefact(folder: Path, batch: str | int = "images", labels: int = 0, weights: bytes = b"") -> Path:
    """What the repository is made of: the model's file, and names of classes."""
    files: dict[str, Content] = {"model.onnx": lambda path: onnx_file(path, batch)}
    if weights:
        files["model.onnx.data"] = weights
    if labels:
        files["labels.json"] = json.dumps([f"class\n{number}" for number in range(labels)])
    return save(folder, MANIFEST, {}, files)
