"""What transformers reads beside an exported program, `export.json`, for models that are called by names.

    transformers.exporters.ExportedModel.from_pretrained("out/", trust_remote_code=True)(pixel_values=images)

It is transformers' own reader that unpickles `model.pt2` there, hence the consent that it asks for.
"""

from __future__ import annotations

import json
from typing import Any

from torch.export import ExportedProgram

from prunec import compat
from prunec.artefact.portable import FILE as PROGRAM
from prunec.artefact.spec import Spec

FILE = "export.json"
SCHEMA = 1  # of transformers 5.23


def text(exported: ExportedProgram, spec: Spec) -> str | None:
    """The content of the file; None for positional inputs, which it cannot describe."""
    if not all(one.by_name for one in spec.inputs):
        return None
    tensors = {one.name: one for one in spec.inputs if one.sizes is not None}
    metadata: dict[str, Any] = {
        "export_config": {"dynamic": spec.batch is None},
        "export_dtype": next((one.dtype for one in tensors.values()), "float32"),
        "export_device": "cpu",
        "kwargs": {
            name: {
                "rank": len(one.sizes or ()),
                "shape": [size or spec.batch or 2 for size in one.sizes or ()],
                "dtype": one.dtype,
            }
            for name, one in tensors.items()
        },
        "in_spec": compat.treespec_text(exported.call_spec.in_spec),
        "out_spec": compat.treespec_text(exported.call_spec.out_spec),
        "in_constants": {one.name: one.value for one in spec.inputs if one.sizes is None},
    }
    component = {"file": PROGRAM, "metadata": metadata}
    data = {"schema_version": SCHEMA, "export_format": "dynamo", "components": {"model": component}}
    return json.dumps(data, indent=2) + "\n"
