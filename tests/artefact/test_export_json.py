"""What transformers reads; tests/api/test_alone.py lets it do so."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import torch.utils._pytree as pytree

from prunec.artefact import export_json
from prunec.artefact.spec import InputRecord, Spec

PIXELS = InputRecord(name="pixel_values", sizes=(None, 3, 8, 8), dtype="float32", by_name=True)
FLAG = InputRecord(name="flag", value=True, by_name=True)


def exported(given: Any) -> Any:
    spec = pytree.tree_structure(given)
    return SimpleNamespace(
        call_spec=SimpleNamespace(in_spec=spec, out_spec=pytree.tree_structure({"logits": 0}))
    )


def test_inputs_by_name_are_described() -> None:
    spec = Spec(inputs=(PIXELS, FLAG), outputs=())
    text = export_json.text(exported(((), {"pixel_values": 0, "flag": True})), spec)
    assert text is not None
    found = json.loads(text)
    assert (found["schema_version"], found["export_format"]) == (1, "dynamo")
    component = found["components"]["model"]
    assert component["file"] == "model.pt2"
    assert component["metadata"]["kwargs"] == {
        "pixel_values": {"rank": 4, "shape": [2, 3, 8, 8], "dtype": "float32"}
    }
    assert component["metadata"]["in_constants"] == {"flag": True}
    assert component["metadata"]["export_config"] == {"dynamic": True}
    assert pytree.treespec_loads(component["metadata"]["out_spec"]).context == ["logits"]


def test_positional_inputs_are_not() -> None:
    spec = Spec(inputs=(PIXELS.model_copy(update={"by_name": False}),), outputs=())
    assert export_json.text(exported(((0,), {})), spec) is None
