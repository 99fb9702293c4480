"""Learned scorers as modules: what a site adds to the model's parameters, under `prunec.site_0` and so on.

A graph calls the scoring function of ops.py with these parameters as operands, so that they are saved, moved
and trained like the model's own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunec import ops


class Site(nn.Module):
    """The numbers of one site: the threshold of its scores, and a learned scorer if it has one."""

    threshold: Tensor

    def __init__(self, gate: nn.Module | None = None) -> None:
        super().__init__()
        self.register_buffer("threshold", torch.zeros(()))
        self.gate = gate


class MlpGate(nn.Module):
    """Norm, linear, GELU, linear to the logits of keep and drop; the score is their difference."""

    function = staticmethod(ops.mlp_score)
    #: The operands of the scoring function, in order, by their path.
    operands = ("norm.weight", "norm.bias", "up.weight", "up.bias", "down.weight", "down.bias")

    def __init__(self, dim: int, hidden: float) -> None:
        super().__init__()
        width = max(1, round(dim * hidden))
        self.norm, self.up, self.down = nn.LayerNorm(dim), nn.Linear(dim, width), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        """The score of each token: [B, T, C] to [B, T]."""
        norm, up, down = self.norm, self.up, self.down
        return ops.mlp_score(x, norm.weight, norm.bias, up.weight, up.bias, down.weight, down.bias)


#: Learned scorers by the kind that a policy names.
LEARNED = {"mlp": MlpGate}
