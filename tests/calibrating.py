"""A policy with learned parts and thresholds, and images that differ in how much there is to see."""

from __future__ import annotations

import torch
from torch import Tensor

from prunec import ops
from prunec.ir.program import Planned, Program, Recognised
from prunec.passes import BACK, run_passes
from tests.tiny import ViT, pixels, planned, recognised

DYNAMIC = {
    "selector": "threshold", "fate": "preserve", "reactivate": True, "scorer": "mlp", "blocks": [1, 2],
}  # fmt: skip


def dense_vit() -> Recognised:
    """A ViT of three blocks."""
    torch.manual_seed(0)
    return recognised(ViT(depth=3))


def images(count: int = 16) -> Tensor:
    """Images that differ in how much there is to see."""
    torch.manual_seed(1)
    return pixels(count) * torch.linspace(0.3, 2, count).view(-1, 1, 1, 1)


def pruned(dense: Recognised, **choices: object) -> Planned:
    return run_passes(BACK, planned(dense, **{**DYNAMIC, **choices}))  # type: ignore[arg-type]


def counts(program: Program, x: Tensor) -> list[Tensor]:
    """How many patches each image keeps at each site."""
    found: list[Tensor] = []

    class Watching(torch.fx.Interpreter):
        def call_function(self, target, args, kwargs):  # type: ignore[no-untyped-def]
            result = super().call_function(target, args, kwargs)
            if target is ops.threshold_mask:
                found.append(result[:, 1:].sum(dim=1))
            return result

    with torch.no_grad():
        Watching(program.module).run(x)
    return found
