"""A small file of ONNX, made by hand: pictures to 48 numbers."""

from __future__ import annotations

from pathlib import Path

import pytest


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
