from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, ViTConfig

from prunec.errors import SourceError
from prunec.frontend import folders, sources
from prunec.frontend.folders import Refused

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
         "image_size": 32, "patch_size": 8}  # fmt: skip


@pytest.mark.parametrize("attention", [None, "eager", "sdpa"])
def test_attentions_of_pytorch_are_read(attention: str | None) -> None:
    folders.check_config(ViTConfig(**SMALL, attn_implementation=attention))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"_attn_implementation": "flash_attention_2"}, "attention kernel 'flash_attention_2'"),
        ({"_attn_implementation": "evil/kernel"}, "attention kernel 'evil/kernel'"),
        ({"quantization_config": {"quant_method": "torchao"}}, "quantized"),
        ({"backbone": "local-dir:other"}, "a model elsewhere, 'local-dir:other'"),
        ({"architecture": "hf-hub:evil/model"}, "a model elsewhere"),
        ({"transformers_weights": "adapter_model.bin"}, "a pickle as its weights"),
        ({"model_args": {"checkpoint_path": "x"}}, "where weights are: checkpoint_path"),
        ({"model_args": {"pretrained": True}}, "where weights are: pretrained"),
        ({"model_args": [1]}, "no mapping"),
    ],
)
@pytest.mark.parametrize("place", ["itself", "a part", "a list", "a part of a part"])
def test_what_a_configuration_may_not_ask_for(said: dict[str, Any], message: str, place: str) -> None:
    wrong, config = CLIPVisionConfig(), ViTConfig(**SMALL)
    for name, value in said.items():
        setattr(wrong, name, value)
    config.part = {"a part": wrong, "a list": [{"x": wrong}]}.get(place)
    if place == "a part of a part":
        config.part = CLIPVisionConfig()
        config.part.inner = wrong
    with pytest.raises(Refused, match=message):
        folders.check_config(wrong if place == "itself" else config)


@pytest.mark.parametrize(
    ("arguments", "weights"),
    [
        ({"pretrained_cfg_overlay": {}}, {}),
        ({"checkpoint_path": "x"}, {}),
        ({}, {"hf_hub_filename": "x"}),
        ({}, {"custom_load": True}),
        ({}, {"state_dict": {"a": 1}}),
        ([], {}),
        ({}, 1),
    ],
)
def test_what_a_configuration_of_timm_may_not_ask_for(arguments: Any, weights: Any) -> None:
    folders.check_arguments({"img_size": 64}, {"custom_load": False, "input_size": [3, 64, 64]})
    with pytest.raises(Refused):
        folders.check_arguments(arguments, weights)


def test_pickles_are_read_where_there_is_nothing_else_and_with_consent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = transformers.ViTModel(ViTConfig(**SMALL))
    model.config.architectures = ["ViTModel"]
    model.config.save_pretrained("vit")
    torch.save(model.state_dict(), "vit/pytorch_model.bin")
    with pytest.raises(SourceError, match=r"pytorch_model\.bin is a pickle.*--allow-pickle"):
        sources.load("hf:./vit")
    with pytest.raises(SourceError, match=r"pytorch_model\.bin is a pickle"):
        sources.load("hf:vit")
    source = sources.load("hf:./vit", allow_pickle=True)
    assert source.weights == "pretrained"
    save_file(model.state_dict(), "vit/model.safetensors", {"format": "pt"})
    assert sources.load("hf:./vit").weights == "pretrained"


@pytest.mark.parametrize("name", ["../a.safetensors", "/a.safetensors", "a.bin", "b/a.safetensors"])
def test_an_index_lists_safetensors_beside_it(tmp_path: Path, name: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "model-1.safetensors"}}))
    folders.check_weights(tmp_path, "hf")
    index.write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(Refused, match="file beside it"):
        folders.check_weights(tmp_path, "hf")


def test_adapters_are_left_to_peft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    folders.check_adapter(str(tmp_path), local=True)  # without peft transformers does not look at it
    monkeypatch.setattr("transformers.utils.is_peft_available", lambda: True)
    with pytest.raises(Refused, match="adapter"):
        folders.check_adapter(str(tmp_path), local=True)
    (tmp_path / "adapter_config.json").unlink()
    folders.check_adapter(str(tmp_path), local=True)
