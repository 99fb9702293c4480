"""Small models of many families, and what is true of each, written down by hand.

All have four blocks of width 48 with three heads, random weights, and two sites. The number of tokens equals
no width: 4 x 7 patches for timm and YOLOS, 5 x 5 for the rest of Hugging Face.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch
import transformers
from torch import Tensor, nn

from tests import references
from tests.references import EVIT, NORM, Pruning

WIDTH, HEADS, DEPTH, CLASSES = 48, 3, 4, 10

Reference = Callable[[nn.Module, Tensor, Pruning], tuple[Tensor, list[list[int]]]]


@dataclass(frozen=True)
class Family:
    """One model, its anatomy, and what two sites at half the patches make of it."""

    name: str
    build: Callable[[], nn.Module]
    image: tuple[int, int]
    pruning: Pruning  # EviT where the head reads a class token, else norm
    # anatomy
    tokens: int
    prefix: int
    suffix: int
    class_token: int | None
    head: tuple[str, ...]
    layer_scale: bool
    activation: str
    core: str  # fused | spelled
    # what the compiler does
    masks: int  # masks that hide nothing, dropped
    literals: int
    gathered: int  # operands that are gathered
    scatters: int
    takes: (
        int  # nodes that gather tables: fewer than operands where these share one, more where both axes move
    )
    lengths: tuple[int, int, int]  # of the stream, before and after each site
    # widths, for the number of floating-point operations
    patch: int
    hidden: int
    head_flops: Callable[[int], int]  # by the length of the last stream
    matrices: int = 2  # in the MLP: three where it is gated
    # rows that the head reads of the last block (None: all), and how many cuts leave the others out
    read: int | None = None
    cuts: int = 0
    # attention whose keys and values are not made, and how many cuts of weights that adds
    folded: int = 0
    views: int = 0
    # the independent implementation, and which of the outputs it gives
    reference: Reference | None = None

    @property
    def policy(self) -> str:
        """The preset of the two sites."""
        return "evit" if self.pruning == EVIT else "norm"

    def model(self) -> nn.Module:
        """The model in eval mode, every parameter filled with numbers that matter."""
        return randomise(self.build().eval(), seed=1)

    def images(self, batch: int, seed: int = 2) -> Tensor:
        """A batch of random images."""
        return torch.randn(batch, 3, *self.image, generator=torch.Generator().manual_seed(seed))

    def call(self, images: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword inputs, as the library documents them."""
        return ((), {"pixel_values": images}) if self.name.startswith("hf") else ((images,), {})


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Fill every parameter so that a term that is dropped, or a row that is swapped, shows in the output.

    LayerScale, biases, norms, tables and tokens start at zero, one or 1e-5 in most families.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {id(part.weight) for part in model.modules() if isinstance(part, nn.Linear | nn.Conv2d)}
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if id(parameter) in weights:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            elif parameter.dim() == 1:
                parameter.add_(0.4 * noise)  # norms around one, LayerScale and biases around zero
            else:
                parameter.copy_(0.7 * noise)  # tokens and tables
    return model


def tensors(outputs: object) -> list[Tensor]:
    """The tensors of any output structure, in order."""
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, Mapping):
        return [tensor for value in outputs.values() for tensor in tensors(value)]
    if isinstance(outputs, tuple | list):
        return [tensor for value in outputs for tensor in tensors(value)]
    return []


def difference(found: object, expected: object) -> float:
    """The largest difference of any output, relative to that output's largest value."""
    pairs = list(zip(tensors(found), tensors(expected), strict=True))
    assert pairs
    assert all(one.shape == other.shape for one, other in pairs)
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs)


# --- how the models are built ---------------------------------------------------------------


def _timm(name: str, patch: int = 16, **options: Any) -> Callable[[], nn.Module]:
    widths = {"embed_dim": WIDTH, "num_heads": HEADS, "depth": DEPTH, "img_size": (4 * patch, 7 * patch)}
    return lambda: timm.create_model(name, num_classes=CLASSES, **widths, **options)


HF = {
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "intermediate_size": 96,
    "image_size": 80,
    "patch_size": 16,
}


def _hf(model: str, config: str, attention: str = "sdpa", **options: Any) -> Callable[[], nn.Module]:
    changed = {**HF, **{key: value for key, value in options.items() if not key.startswith("add_")}}
    arguments = {key: value for key, value in options.items() if key.startswith("add_")}

    def build() -> nn.Module:
        made = getattr(transformers, config)(**changed, attn_implementation=attention)
        return getattr(transformers, model)(made, **arguments)

    return build


# --- floating-point operations, counted by hand ---------------------------------------------


def block_flops(family: Family, attending: int, passing: int) -> int:
    """One block: `attending` tokens in its attention, `passing` in its MLP."""
    projections = 2 * attending * WIDTH * 4 * WIDTH
    scores_and_values = 2 * 2 * attending * attending * WIDTH
    mlp = 2 * passing * WIDTH * family.hidden * family.matrices
    return projections + scores_and_values + mlp


def last_block_flops(family: Family, tokens: int) -> int:
    """The last block where the head reads some rows: keys and values for all, the rest for those."""
    rows = tokens if family.read is None else family.read
    keys_and_values, queries_and_output = 2 * tokens * WIDTH * 2 * WIDTH, 2 * rows * WIDTH * 2 * WIDTH
    scores_and_values = 2 * 2 * rows * tokens * WIDTH
    mlp = 2 * rows * WIDTH * family.hidden * family.matrices
    return keys_and_values + queries_and_output + scores_and_values + mlp


def folded_flops(family: Family, tokens: int) -> int:
    """What is left out where an attention makes no keys and values: each head of a query reads the states."""
    rows = family.read or 1
    made = 2 * tokens * WIDTH * 2 * WIDTH + 2 * 2 * rows * tokens * WIDTH
    instead = 2 * rows * WIDTH * 2 * WIDTH + 2 * 2 * rows * HEADS * tokens * WIDTH
    return made - instead


def expected_flops(family: Family, lengths: tuple[int, int, int], *, original: bool = False) -> int:
    """One image through a model whose stream has these lengths before, between and after the sites.

    The original computes every row of its last block and all keys, prunec what is read.
    """
    patches = (family.image[0] // family.patch) * (family.image[1] // family.patch)
    total = 2 * patches * 3 * family.patch**2 * WIDTH + family.head_flops(lengths[2])
    attending = [lengths[0], lengths[0], lengths[1], lengths[2]]
    passing = [lengths[0], lengths[1], lengths[2], lengths[2]]
    if family.pruning.where == "before_block":
        attending = passing
    blocks = [block_flops(family, *pair) for pair in zip(attending, passing, strict=True)]
    total += sum(blocks) if original else sum(blocks[:3]) + last_block_flops(family, lengths[2])
    if family.folded and not original:
        total -= folded_flops(family, lengths[2])
    pruned = lengths[2] < lengths[0]
    if pruned and family.pruning.scorer == "cls_attention" and family.core == "fused":
        total += sum(2 * length * WIDTH for length in lengths[:2])  # one row of queries against all keys
    if pruned and family.pruning.fate == "fuse":
        total += sum(2 * length * WIDTH for length in lengths[:2])  # the weighted sum
    return total


def _classify(outputs: int = CLASSES, heads: int = 1) -> Callable[[int], int]:
    return lambda _length: heads * 2 * WIDTH * outputs


def _pool(hidden: int, classes: int) -> Callable[[int], int]:
    """One learned query against the whole stream, an MLP, and perhaps a classifier."""
    fixed = 2 * WIDTH * (2 * WIDTH + 2 * hidden + classes)
    return lambda length: fixed + 2 * length * WIDTH * 2 * WIDTH + 2 * 2 * length * WIDTH


def _detect(queries: int, classes: int) -> Callable[[int], int]:
    return lambda _length: 2 * queries * WIDTH * (2 * WIDTH + classes + 1 + 2 * WIDTH + 4)


def _nothing(_length: int) -> int:
    return 0


# --- the table ------------------------------------------------------------------------------

_TIMM = {
    "image": (64, 112),
    "suffix": 0,
    "masks": 0,
    "scatters": 0,
    "patch": 16,
    "hidden": 192,
    "core": "fused",
}
_SQUARE = {"image": (80, 80), "suffix": 0, "patch": 16, "hidden": 96}

FAMILIES = (
    Family(
        "timm_vit", _timm("vit_small_patch16_224"), pruning=EVIT, tokens=29, prefix=1, class_token=0,
        head=("class token",), layer_scale=False, activation="gelu", literals=4, gathered=0, takes=0,
        lengths=(29, 16, 10), read=1, cuts=8, folded=1, views=-1, head_flops=_classify(),
        reference=references.plain, **_TIMM,
    ),
    Family(
        "timm_deit_distilled", _timm("deit_tiny_distilled_patch16_224"), pruning=EVIT, tokens=30, prefix=2,
        class_token=0, head=("class token", "token 1"), layer_scale=False, activation="gelu", literals=4,
        gathered=0, takes=0, lengths=(30, 17, 11), read=2, cuts=10, folded=1, views=-1,
        head_flops=_classify(heads=2), reference=references.plain, **_TIMM,
    ),
    Family(
        "timm_dinov2_registers", _timm("vit_small_patch14_reg4_dinov2", patch=14), pruning=EVIT, tokens=33,
        prefix=5, class_token=0, head=("class token",), layer_scale=True, activation="gelu", literals=4,
        gathered=0, takes=0, lengths=(33, 20, 14), read=1, cuts=8, folded=1, views=-1,
        head_flops=_classify(), reference=references.plain, **{**_TIMM, "image": (56, 98), "patch": 14},
    ),
    Family(
        "timm_siglip", _timm("vit_base_patch16_siglip_224"), pruning=NORM, tokens=28, prefix=0,
        class_token=None, head=("attention pooling",), layer_scale=False, activation="gelu", literals=7,
        gathered=0, takes=0,
        lengths=(28, 14, 7), folded=1, views=3, head_flops=_pool(192, CLASSES),
        reference=references.plain, **_TIMM,
    ),
    Family(
        "timm_deit3", _timm("deit3_small_patch16_224"), pruning=EVIT, tokens=29, prefix=1, class_token=0,
        head=("class token",), layer_scale=True, activation="gelu", literals=4, gathered=0, takes=0,
        lengths=(29, 16, 10), read=1, cuts=8, folded=1, views=-1, head_flops=_classify(),
        reference=references.plain, **_TIMM,
    ),
    # Sine and cosine for the queries and the keys of three blocks, each gathered once behind either site.
    Family(
        "timm_eva02", _timm("eva02_tiny_patch14_224", patch=14), pruning=NORM, tokens=29, prefix=1,
        class_token=None, head=("mean",), layer_scale=False, activation="silu gated", literals=12,
        gathered=12, takes=4, lengths=(29, 15, 8), head_flops=_classify(), matrices=3,
        reference=references.rotary, **{**_TIMM, "image": (56, 98), "patch": 14, "hidden": 128},
    ),
    Family(
        "timm_dinov3", _timm("vit_small_patch16_dinov3"), pruning=NORM, tokens=33, prefix=5, class_token=None,
        head=("mean",), layer_scale=True, activation="gelu", literals=6, gathered=12, takes=4,
        lengths=(33, 19, 12), head_flops=_classify(), reference=references.rotary, **_TIMM,
    ),
    # One bias for each of three blocks, each gathered along both of its axes.
    Family(
        "timm_beit", _timm("beit_base_patch16_224"), pruning=NORM, tokens=29, prefix=1, class_token=None,
        head=("mean",), layer_scale=True, activation="gelu", literals=6, gathered=3, takes=6,
        lengths=(29, 15, 8), head_flops=_classify(), reference=references.relative, **_TIMM,
    ),
    Family(
        "hf_vit", _hf("ViTModel", "ViTConfig", add_pooling_layer=False), pruning=NORM, tokens=26, prefix=1,
        class_token=None, head=("tokens",), layer_scale=False, activation="gelu", core="fused", masks=4,
        literals=15, gathered=0, takes=0, scatters=2, lengths=(26, 14, 8), head_flops=_nothing,
        reference=references.hf_vit, **_SQUARE,
    ),
    Family(
        "hf_vit_eager", _hf("ViTForImageClassification", "ViTConfig", "eager"), pruning=EVIT, tokens=26,
        prefix=1, class_token=0, head=("class token",), layer_scale=False, activation="gelu", core="spelled",
        masks=0, literals=8, gathered=2, takes=4, scatters=0, lengths=(26, 15, 9), read=1, cuts=3,
        head_flops=_classify(2), **_SQUARE,
    ),
    Family(
        "hf_deit", _hf("DeiTForImageClassificationWithTeacher", "DeiTConfig"), pruning=EVIT, tokens=27,
        prefix=2, class_token=0, head=("class token", "token 1"), layer_scale=False, activation="gelu",
        core="fused", masks=4, literals=10, gathered=0, takes=0, scatters=0, lengths=(27, 16, 10),
        read=2, cuts=4, folded=1, head_flops=_classify(2, heads=2), **_SQUARE,
    ),
    Family(
        "hf_dinov2", _hf("Dinov2Model", "Dinov2Config", mlp_ratio=2), pruning=EVIT, tokens=26, prefix=1,
        class_token=0, head=("class token", "tokens"), layer_scale=True, activation="gelu", core="fused",
        masks=4, literals=10, gathered=0, takes=0, scatters=2, lengths=(26, 15, 9), head_flops=_nothing,
        reference=references.hf_dinov2, **_SQUARE,
    ),
    Family(
        "hf_dinov3", _hf("DINOv3ViTModel", "DINOv3ViTConfig", num_register_tokens=4), pruning=EVIT, tokens=30,
        prefix=5, class_token=0, head=("class token", "tokens"), layer_scale=True, activation="gelu",
        core="fused", masks=0, literals=14, gathered=8, takes=4, scatters=2, lengths=(30, 19, 13),
        head_flops=_nothing, **_SQUARE,
    ),
    Family(
        "hf_siglip", _hf("SiglipVisionModel", "SiglipVisionConfig"), pruning=NORM, tokens=25, prefix=0,
        class_token=None, head=("attention pooling", "tokens"), layer_scale=False, activation="gelu",
        core="fused", masks=0, literals=17, gathered=0, takes=0, scatters=2, lengths=(25, 13, 7),
        head_flops=_pool(96, 0), **_SQUARE,
    ),
    Family(
        "hf_clip", _hf("CLIPVisionModel", "CLIPVisionConfig"), pruning=EVIT, tokens=26, prefix=1,
        class_token=0, head=("class token", "tokens"), layer_scale=False, activation="sigmoid gated",
        core="fused", masks=0,
        literals=10, gathered=0, takes=0, scatters=2, lengths=(26, 15, 9), head_flops=_nothing, **_SQUARE,
    ),
    # Position embeddings are added again after blocks 0 to 2: two of them past the first site.
    Family(
        "hf_yolos",
        _hf(
            "YolosForObjectDetection", "YolosConfig", image_size=[64, 112], num_detection_tokens=6,
            use_mid_position_embeddings=True, num_labels=5,
        ),
        pruning=NORM, tokens=35, prefix=1, class_token=None, head=("tokens 29..34", "tokens"),
        layer_scale=False, activation="gelu", core="fused", masks=0, literals=6, gathered=2, takes=2,
        scatters=2, lengths=(35, 21, 14), head_flops=_detect(6, 5),
        **{**_SQUARE, "image": (64, 112), "suffix": 6},
    ),
)  # fmt: skip
