"""Small models that are transformed, optimized and saved."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

import prunec
import prunec.measure.image_sets
from prunec.api.verbs import Result
from prunec.data.tiny_vit import TinyViT

EVIT = {"keep": 0.5, "blocks": (0,)}


class Odd(TinyViT):
    """Holds a parameter that its forward never reads, and two blocks that share one."""

    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)
        self.mask_token = nn.Parameter(torch.zeros(3))
        self.blocks[1].attn.proj.weight = self.blocks[0].attn.proj.weight


def vit(kind: type[TinyViT] = TinyViT, **sizes: int) -> TinyViT:
    torch.manual_seed(0)
    chosen = {"image_size": 20, "patch_size": 4, "dim": 16, "depth": 2, "heads": 2, "num_classes": 7, **sizes}
    model = kind(**chosen)
    nn.init.normal_(model.head.weight)
    return model.eval()


def images(count: int = 3, side: int = 20) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def optimize(
    source: Any,
    policy: str = "evit",
    *,
    keep: float | None = None,
    blocks: tuple[int, ...] | None = None,
    images: Path | None = None,
    example: Any = None,
    **measure: Any,
) -> Result:
    chosen = prunec.Policy.load(policy, keep=keep, blocks=blocks)
    how = prunec.Measure(target="eager", batch=2, rounds=5, **measure)
    return prunec.optimize(source, chosen, images=images, example=example, measure=how)


def same(one: nn.Module, other: nn.Module, x: Tensor) -> bool:
    with torch.no_grad():
        return torch.equal(one(x), other(x))


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    now = model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in now)


def copied(folder: Path, place: Path) -> Path:
    """The same artefact elsewhere, to be changed."""
    return Path(shutil.copytree(folder, place))


def pictures(folder: Path, *classes: str) -> Path:
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for count in range(2):
            picture = Image.new("RGB", (24, 30), (60 * number, 90 * count, 40))
            picture.save(folder / name / f"{count}.png")
    return folder
