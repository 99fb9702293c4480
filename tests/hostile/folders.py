"""Folders as transformers and timm write them, whose configuration or weights nobody should trust."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
from safetensors.torch import save_file
from transformers import ViTConfig, ViTModel

from tests.hostile import Hostile, configurations_choose_attention
from tests.hostile.opcodes import DOUBLED, HEAD
from tests.hostile.pickles import raw
from tests.hostile.sources import payload

VIT = {
    "model_type": "vit",
    "architectures": ["ViTModel"],
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
WRAPPER = {
    "model_type": "timm_wrapper",
    "architectures": ["TimmWrapperModel"],
    "architecture": "test_vit",
    "num_classes": 10,
}


def folder(config: dict[str, Any], **files: Callable[[Path], object]) -> Callable[[Path], list[str]]:
    """A folder with a configuration and other files; a payload lies beside it."""

    def write(here: Path) -> list[str]:
        (here / "evil.pth").write_bytes(payload())
        out = here / "model"
        out.mkdir()
        (out / "config.json").write_text(json.dumps(config))
        for name, write_file in files.items():
            write_file(out / name.replace("__", "."))
        source = "hf:./model" if "model_type" in config else "local-dir:model"
        return ["optimize", source, "-p", "norm", "--dry-run"]

    return write


def of_timm(**arguments: Any) -> dict[str, Any]:
    return {"architecture": "test_vit", "num_classes": 1000, "pretrained_cfg": {}, "model_args": arguments}


def weights(path: Path) -> None:
    save_file(timm.create_model("test_vit").state_dict(), path)


def vit_weights(path: Path) -> None:
    save_file(ViTModel(ViTConfig.from_dict(VIT)).state_dict(), path, metadata={"format": "pt"})


def _writes(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text)


def _hostile() -> Iterator[Hostile]:
    hangs = raw(HEAD, b"}", DOUBLED, b"Ns.")
    overlay = {"source": "", "file": "evil.pth"}
    yield Hostile(
        "transformers flood",
        "a folder of transformers whose weights never end",
        folder(VIT, pytorch_model__bin=hangs),
        "--allow-pickle",
    )
    yield Hostile(
        "timm flood",
        "a folder of timm whose weights never end",
        folder(of_timm(), pytorch_model__bin=hangs),
        "--allow-pickle",
    )
    yield Hostile(
        "timm file",
        "a folder of timm that names a file elsewhere",
        folder(of_timm(pretrained_cfg_overlay=overlay), model__safetensors=weights),
        "pretrained_cfg_overlay",
    )
    for name, value in {"checkpoint_path": "evil.pth", "pretrained_cfg_overlay": overlay}.items():
        yield Hostile(
            f"wrapped {name}",
            "a model of timm in transformers that names a file elsewhere",
            folder({**WRAPPER, "model_args": {name: value}}),
            name,
        )
    yield Hostile(
        "wrapped elsewhere",
        "a model of timm in transformers that lies in another folder",
        folder({**WRAPPER, "architecture": "local-dir:other"}),
        "local-dir:other",
    )
    backbone = {**VIT, "model_type": "upernet", "architectures": ["UperNetForSemanticSegmentation"]}
    yield Hostile(
        "backbone elsewhere",
        "a model whose backbone lies on a hub",
        folder(
            {**backbone, "backbone": "evil/model", "use_pretrained_backbone": True, "backbone_config": None}
        ),
        "",
    )
    for name in ("flash_attention_2", "paged|flash_attention_2", "evil/kernel@1:x"):
        yield Hostile(
            f"attention {name}",
            "an attention that may be fetched",
            folder({**VIT, "attn_implementation": name}),
            "attention",
            configurations_choose_attention,
        )
    part = {key: VIT[key] for key in VIT if key not in ("model_type", "architectures")}
    clip = {"model_type": "clip", "architectures": ["CLIPVisionModel"], "vision_config": part}
    clip["attn_implementation"] = {"vision_config": "flash_attention_2"}
    yield Hostile("attention of a part", "an attention that may be fetched, of a part", folder(clip), "flash")
    for method in ("torchao", "gptq", "bitsandbytes"):
        yield Hostile(
            f"quantization {method}",
            "weights that another library decodes",
            folder(
                {**VIT, "quantization_config": {"quant_method": method, "quant_type": "int8_weight_only"}}
            ),
            "quantized",
        )
    processors = {
        "deep": '{"size": ' * 3000 + "1" + "}" * 3000,
        "flood": '{"image_mean": [' + "0.5," * 400_000 + "0.5]}",
        "list": "[1, 2]",
    }
    for name, text in processors.items():
        yield Hostile(
            f"processor {name}",
            "a folder whose processor's configuration is none",
            folder(VIT, model__safetensors=vit_weights, preprocessor_config__json=_writes(text)),
            "",
        )
    index = json.dumps({"metadata": {}, "weight_map": {"a": "../evil.pth", "b": "/etc/hostname"}})
    yield Hostile(
        "shards elsewhere",
        "an index that names files outside the folder",
        folder(VIT, model__safetensors__index__json=lambda path: path.write_text(index)),
        "",
    )


HOSTILE = tuple(_hostile())
