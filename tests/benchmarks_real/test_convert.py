from __future__ import annotations

from types import SimpleNamespace

import backbone
import convert
import pytest
import torch
from torch import Tensor


def transformers_names() -> dict[str, Tensor]:
    """Random weights as the ONNX file gives them, under transformers' names."""
    width, found = backbone.WIDTH, {}
    sizes = {
        "norm1": (width,),
        "norm2": (width,),
        "mlp.fc1": (4 * width, width),
        "mlp.fc2": (width, 4 * width),
    }
    for part in ("query", "key", "value"):
        sizes[f"attention.attention.{part}"] = (width, width)
    sizes["attention.output.dense"] = (width, width)
    for block in range(convert.BLOCKS):
        for name, size in sizes.items():
            found[f"encoder.layer.{block}.{name}.weight"] = torch.randn(size)
            found[f"encoder.layer.{block}.{name}.bias"] = torch.randn(size[:1])
        for number in (1, 2):
            found[f"encoder.layer.{block}.layer_scale{number}.lambda1"] = torch.randn(width)
    found["embeddings.cls_token"] = torch.randn(1, 1, width)
    found["embeddings.position_embeddings"] = torch.randn(1, 1 + 37 * 37, width)
    found["embeddings.patch_embeddings.projection.weight"] = torch.randn(width, 3, 14, 14)
    found["embeddings.patch_embeddings.projection.bias"] = torch.randn(width)
    return found | {"layernorm.weight": torch.randn(width), "layernorm.bias": torch.randn(width)}


def test_timm_gets_every_weight_that_it_wants_and_no_other() -> None:
    named = transformers_names()
    state = convert._timm(named)
    model = backbone.backbone(state, grid=13)  # loads strictly
    assert model.pos_embed.shape == (1, 1 + 13 * 13, backbone.WIDTH)
    key = named["encoder.layer.3.attention.attention.key.weight"]
    assert torch.equal(model.blocks[3].attn.qkv.weight[backbone.WIDTH : 2 * backbone.WIDTH], key)


def test_weights_of_products_get_the_names_of_their_nodes_and_are_turned() -> None:
    width = backbone.WIDTH
    weight, leading, patches = torch.randn(width, 3), torch.randn(1, 1, width), torch.randn(1, 37 * 37, width)
    tensors = {"backbone.layernorm.bias": torch.zeros(1), "m7": weight, "c1": leading, "c2": patches}
    nodes = [
        SimpleNamespace(op_type="MatMul", name="/backbone/encoder/layer.0/mlp/fc1/MatMul", input=["x", "m7"]),
        SimpleNamespace(
            op_type="MatMul", name="/backbone/encoder/layer.0/attention/MatMul", input=["q", "k"]
        ),
    ]
    found = convert._transformers(tensors, nodes)
    assert torch.equal(found["encoder.layer.0.mlp.fc1.weight"], weight.T)
    assert torch.equal(found["embeddings.position_embeddings"], torch.cat([leading, patches], dim=1))
    assert "encoder.layer.0.attention.weight" not in found


def test_weights_that_compute_something_else_are_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    state = convert._timm(transformers_names())
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        tokens = backbone.Tokens(backbone.backbone(state))(images)
    heads = backbone.Decoder().eval()
    with torch.no_grad():
        heat = heads(tokens)
    monkeypatch.setattr(convert, "_run_onnx", lambda model, images: (1.01 * tokens, heat))
    monkeypatch.setattr(
        convert, "_dinov2", lambda folder: lambda images: SimpleNamespace(last_hidden_state=1.01 * tokens)
    )
    made = convert.Weights(state, {}, heads.state_dict())
    with pytest.raises(ValueError, match=r"do not compute what the ONNX file does: \{'timm tokens': 0\.0099"):
        convert.check(made, None, None, images)
