"""Programs in packed rows, and parts of models that cannot be."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunec import ops
from prunec.ir import graph
from prunec.ir.program import Planned, Program
from prunec.passes import run_passes
from prunec.passes.lower_packed import LowerPacked
from prunec.policy.lowering import choose
from tests import moding, tiny
from tests.tiny import Attention, Block, Mlp, ViT, pixels, recognised

THRESHOLD = {"selector": "threshold", "fate": "preserve", "reactivate": True}


def padded(model: nn.Module, **choices: Any) -> Planned:
    return moding.plain(recognised(model), tiny.policy(**{**THRESHOLD, **choices}))


def packed(program: Program, attention: str = "rows") -> Program:
    lowering = choose(program.plan.rules, "packed")
    program = program.replace(plan=dataclasses.replace(program.plan, lowering=lowering))
    return run_passes((LowerPacked(attention),), program)  # type: ignore[arg-type]


def assert_same(program: Program, other: Program) -> None:
    kept, images = moding.kept_sets(program, 4), pixels(4)
    moding.assert_modes_agree({"padded": program, "other": other}, lambda x: [x], images, kept)


def packed_ops(program: Program) -> set[str]:
    """Operators whose result is packed rows, as the types have it."""
    (rows,) = (node for node in program.graph.nodes if node.target is ops.rows_of)
    total = rows.meta["val"].shape[1]
    return {
        graph.op(node)
        for node in program.graph.nodes
        if isinstance(node.meta.get("val"), Tensor)
        and any(size is total or str(size) == str(total) for size in node.meta["val"].shape)
    }


def last_block(mlp: type[nn.Module], attention: type[nn.Module] = Attention) -> ViT:
    """Two blocks, the second one with parts of its own."""
    model = ViT(depth=2, read=lambda x: x)
    model.blocks[1] = Block(attention, mlp)
    return model.eval()


class Overwriting(Mlp):
    """The first row is a parameter's, wherever it came from."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(1, 1, 16))

    def forward(self, x: Tensor) -> Tensor:
        first = self.first.expand(x.shape[0], -1, -1)
        return self.down(F.gelu(self.up(torch.slice_scatter(x, first, 1, 0, 1))))


class Prepending(Mlp):
    """The same by cutting the row off and putting another one in front."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(1, 1, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(torch.cat([self.first.expand(x.shape[0], -1, -1), x[:, 1:]], dim=1))))


class Summing(Mlp):
    """Every row sees those before it: rows meet."""

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x).cumsum(dim=1) / 10))


class Softmaxed(Attention):
    """Weights of keys, converted between softmax and values: they are padded, and hold zeros there."""

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        query, key, value = self.qkv(x).reshape(b, t, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (query @ key.mT).softmax(dim=-1, dtype=torch.float64).to(x.dtype)
        return self.proj((weights @ value).transpose(1, 2).reshape(b, t, c))
