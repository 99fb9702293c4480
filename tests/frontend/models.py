"""Small models that sources are read as."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn

from prunec.frontend.sources import Source

VIT = "test_vit"  # the smallest that timm has


def vit_config(**changes: Any) -> transformers.ViTConfig:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return transformers.ViTConfig(**{**sizes, "image_size": 32, "patch_size": 8, **changes})


class Plain(nn.Module):
    """A model that says nothing about its input."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 2)
        self.register_buffer("shift", torch.ones(2))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.head(self.drop(x)) + self.shift


def check_runs(source: Source) -> None:
    """The source is in eval mode and its own example goes through it, two images at a time."""
    assert not any(part.training for part in source.module.modules())
    with torch.no_grad():
        out = source.module(*source.args, **source.kwargs)
    out = out if isinstance(out, Tensor) else out[0]
    assert out.shape[0] == 2
