"""Manifests, plans and programs that name what would run code."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from prunec.artefact import artefact
from prunec.policy.policy import Policy
from tests.hostile import Hostile, configurations_choose_attention
from tests.hostile.pickles import Call

POLICY = Policy.load("norm").model_dump(mode="json", exclude_none=True)
MANIFEST: dict[str, Any] = {
    "source": "shapes",
    "weights": "shipped",
    "target": "eager",
    "policy": POLICY,
    "plan": {},
    "certificate": {},
}
PLAN: dict[str, Any] = {
    "version": 1,
    "source": "shapes",
    "policy": POLICY,
    "target": "eager",
    "mode": "static",
    "batch": 1,
    "schedule": {},
}


def planted(folder: Path) -> None:
    """A module that leaves a mark when it is imported, and has a function that does so when it is called."""
    text = "from pathlib import Path\nPath('ran').touch()\ndef main():\n    Path('ran').touch()\n"
    (folder / "planted.py").write_text(text)


def plan(**changes: Any) -> Callable[[Path], list[str]]:
    def write(folder: Path) -> list[str]:
        planted(folder)
        (folder / "plan.yaml").write_text(yaml.safe_dump({**PLAN, **changes}))
        return ["apply", "plan.yaml"]

    return write


def program(folder: Path) -> list[str]:
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.zeros(2, 2),)), folder / "x.pt2")
    return ["explain", "x.pt2"]


def hostile_program(folder: Path) -> list[str]:
    """Every pickle in it is a payload."""
    program(folder)
    payload = io.BytesIO()
    torch.save(Call(os.system, ("touch ran",)), payload)
    with zipfile.ZipFile(folder / "x.pt2") as before, zipfile.ZipFile(folder / "evil.pt2", "w") as after:
        for entry in before.infolist():
            is_pickle = entry.filename.endswith((".pt", ".pkl"))
            after.writestr(entry.filename, payload.getvalue() if is_pickle else before.read(entry))
    return ["explain", "evil.pt2"]


def manifest(**changes: Any) -> Callable[[Path], list[str]]:
    def write(folder: Path) -> list[str]:
        planted(folder)
        artefact.save(folder / "out", {**MANIFEST, **changes}, {"a": torch.zeros(1)}, {})
        return ["load", "out"]

    return write


def transformers_folder(weights: bytes = b"", **config: Any) -> Callable[[Path], list[str]]:
    """A folder as save_pretrained writes it."""

    def write(folder: Path) -> list[str]:
        planted(folder)
        out = folder / "model"
        out.mkdir()
        known = {
            "model_type": "vit",
            "architectures": ["ViTModel"],
            "hidden_size": 16,
            "num_hidden_layers": 1,
        }
        known |= {"num_attention_heads": 2, "intermediate_size": 32, "image_size": 32, "patch_size": 8}
        (out / "config.json").write_text(json.dumps({**known, **config}))
        if weights:
            (out / "pytorch_model.bin").write_bytes(weights)
        return ["optimize", "hf:./model", "-p", "norm", "--dry-run"]

    return write


def timm_folder(folder: Path) -> list[str]:
    """A folder as timm.models.save_for_hf writes it."""
    out = folder / "model"
    out.mkdir()
    (out / "config.json").write_text(
        json.dumps({"architecture": "test_vit", "num_classes": 10, "pretrained_cfg": {}})
    )
    (out / "pytorch_model.bin").write_bytes(payload())
    return ["optimize", "local-dir:model", "-p", "norm", "--dry-run"]


def payload() -> bytes:
    content = io.BytesIO()
    torch.save(Call(os.system, ("touch ran",)), content)
    return content.getvalue()


def _hostile() -> Iterator[Hostile]:
    refused = "reading that may run code"
    for named in ("planted:main", "os:abort", "x.pt2", "x.pt", "local-dir:x", "hf-hub:a/b", "./x.pth"):
        yield Hostile(
            f"manifest {named}", "an artefact whose source is code", manifest(source=named), refused
        )
        yield Hostile(f"plan {named}", "a plan whose source is code", plan(source=named), refused)
    yield Hostile(
        "manifest arch",
        "an artefact whose architecture is code",
        manifest(source="x.safetensors", arch="planted:main"),
        refused,
    )
    yield Hostile(
        "plan arch",
        "a plan whose architecture is code",
        plan(source="x.safetensors", arch="planted:main"),
        refused,
    )
    for named in ("~nobody-at-all/x.safetensors", "x" * 4000 + ".safetensors"):
        yield Hostile(
            f"manifest {named[:14]}",
            "an artefact whose source can be no path",
            manifest(source=named),
            "no path",
        )
    yield Hostile(
        "manifest org", "an artefact that does not say where its source is", manifest(source="a/b"), refused
    )
    for query in (
        "checkpoint_path=evil.pth",
        "pretrained_cfg={'file': 'evil.pth'}",
        "num_classes=__import__('os').abort()",
        f"num_classes={10**18}",
        f"img_size={10**7}",
        "global_pool=planted:main",
    ):
        yield Hostile(
            f"manifest ?{query[:24]}",
            "an artefact whose model has arguments that do harm",
            manifest(source=f"timm:test_vit?{query}"),
            "timm:test_vit?",
        )
    yield Hostile("program", "a program without consent", program, "may run code")
    yield Hostile("hostile program", "a program whose pickles are payloads", hostile_program, "may run code")
    yield Hostile(
        "transformers pickle",
        "a folder of transformers whose weights are a payload",
        transformers_folder(payload()),
        "is a pickle",
    )
    yield Hostile(
        "remote code",
        "a folder of transformers that brings its own code",
        transformers_folder(
            auto_map={"AutoConfig": "planted.Config", "AutoModel": "planted.Model"}, model_type="planted"
        ),
        "cannot be read",
    )
    yield Hostile(
        "architecture",
        "a folder of transformers whose model is a function of transformers",
        transformers_folder(architectures=["pipeline"]),
        "",
    )
    yield Hostile(
        "kernel",
        "a folder of transformers that wants an attention kernel from elsewhere",
        transformers_folder(attn_implementation="evil/kernel"),
        "kernel",
        configurations_choose_attention,
    )
    yield Hostile(
        "configuration",
        "a folder of transformers whose numbers are words",
        transformers_folder(hidden_size="many"),
        "cannot be read",
    )
    yield Hostile(
        "size of an image",
        "a folder of transformers for images of a million pixels' side",
        transformers_folder(image_size=10**6),
        "",
    )
    yield Hostile("timm pickle", "a folder of timm whose weights are a payload", timm_folder, "")


HOSTILE = tuple(_hostile())
