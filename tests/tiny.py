"""Small Vision Transformers in ordinary PyTorch, and short ways through the stages, for the unit tests.

The models are small enough to be captured in a fraction of a second: two blocks, a 5 x 5 grid, 16 channels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunec import ops
from prunec.capture.capture import capture
from prunec.ir import graph
from prunec.ir.program import Planned, Program, Recognised
from prunec.passes import BACK, run_passes
from prunec.passes.insert_sites import InsertSites
from prunec.passes.normalise import Normalise
from prunec.passes.repair_tokens import RepairTokens
from prunec.policy.policy import Policy
from prunec.policy.site_plan import make_plan
from tests.sharing import captured_once, passed_once

Make = Callable[[], nn.Module]


class Attention(nn.Module):
    """Multi-head self-attention; `form` is fused or spelled (out, operator by operator)."""

    def __init__(self, dim: int = 16, heads: int = 2, form: str = "fused") -> None:
        super().__init__()
        self.heads, self.form = heads, form
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        qkv = self.qkv(x).reshape(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        if self.form == "fused":
            out = F.scaled_dot_product_attention(query, key, value)
        else:
            weights = ((query * (c // self.heads) ** -0.5) @ key.transpose(-2, -1)).softmax(dim=-1)
            out = weights @ value
        return self.proj(out.transpose(1, 2).reshape(b, t, c))


class Mlp(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, dim: int = 16, hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or 2 * dim
        self.up, self.down = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    """A pre-norm block; the parts may be replaced."""

    def __init__(self, attention: Make = Attention, mlp: Make = Mlp, dim: int = 16) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), attention()
        self.norm2, self.mlp = nn.LayerNorm(dim), mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Embedding(nn.Module):
    """Patches of 4 x 4 pixels, `prefix` learned rows in front, `suffix` at the end, learned positions."""

    def __init__(self, dim: int = 16, side: int = 5, prefix: int = 1, suffix: int = 0) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, dim, 4, 4)
        self.front = nn.Parameter(torch.randn(1, prefix, dim)) if prefix else None
        self.back = nn.Parameter(torch.randn(1, suffix, dim)) if suffix else None
        self.position = nn.Parameter(torch.randn(1, prefix + side**2 + suffix, dim))

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patches(pixels).flatten(2).transpose(1, 2)
        rows = [x]
        if self.front is not None:
            rows.insert(0, self.front.expand(x.shape[0], -1, -1))
        if self.back is not None:
            rows.append(self.back.expand(x.shape[0], -1, -1))
        return torch.cat(rows, dim=1) + self.position


def class_row(x: Tensor) -> Tensor:
    """A head's view of the stream: the class token."""
    return x[:, 0]


class ViT(nn.Module):
    """Embedding, blocks, norm, and whatever `read` makes of the stream, through a linear head."""

    def __init__(
        self,
        block: Make = Block,
        *,
        depth: int = 2,
        dim: int = 16,
        side: int = 5,
        prefix: int = 1,
        suffix: int = 0,
        read: Callable[[Tensor], Any] = class_row,
    ) -> None:
        super().__init__()
        self.embed = Embedding(dim, side, prefix, suffix)
        self.blocks = nn.Sequential(*(block() for _ in range(depth)))
        self.norm, self.read, self.head = nn.LayerNorm(dim), read, nn.Linear(dim, 7)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.norm(self.blocks(self.embed(pixels)))
        return self.head(self.read(x))


def pixels(batch: int = 2, side: int = 5) -> Tensor:
    """A batch of images for a `side` x `side` grid."""
    return torch.randn(batch, 3, 4 * side, 4 * side)


# --- short ways -------------------------------------------------------------------------------


def captured(model: nn.Module, *args: Any, **kwargs: Any) -> Program:
    """The captured program of a model; the default input when none is given."""
    return capture(model.eval(), args or (() if kwargs else (pixels(),)), kwargs)


def shared(model: nn.Module, *args: Any, **kwargs: Any) -> Program:
    """The same, captured once for all tests that have such a model; it holds the weights of this one."""
    return captured_once(model.eval(), args or (() if kwargs else (pixels(),)), kwargs)


def normalised(model: nn.Module, *args: Any, **kwargs: Any) -> Program:
    """Captured and normalised."""
    return run_passes((Normalise(),), shared(model, *args, **kwargs))


def recognised(model: nn.Module, *args: Any, **kwargs: Any) -> Recognised:
    """Captured, normalised and recognised, once for all tests that have such a model."""
    return passed_once(model.eval(), args or (() if kwargs else (pixels(),)), kwargs)


def policy(*, keep: float = 0.5, fate: str = "drop", **changes: Any) -> Policy:
    """A valid policy: the norm of each token, one site before block 1, unless `changes` say otherwise."""
    sites: Mapping[str, Any] = {
        "where": changes.pop("where", "before_block"),
        "blocks": changes.pop("blocks", [1]),
    }
    scorer = {"kind": changes.pop("scorer", "cls_attention" if fate == "fuse" else "norm")}
    if fate in ("drop", "fuse"):
        changes.setdefault("restore", "stale")
    kind = changes.pop("selector", "top_k")
    selector = {"kind": kind, "keep_per_site": keep}
    selector |= {key: changes.pop(key) for key in ("multiple_of", "least", "stages") if key in changes}
    return Policy.load(
        {
            "version": 1, "name": "mine", "summary": "For a test.", "sites": sites, "scorer": scorer,
            "selector": selector, "fate": fate, **changes,
        }
    )  # fmt: skip


def planned(dense: Recognised, **choices: Any) -> Planned:
    """A recognised program with a plan."""
    return dense.planned(make_plan(policy(**choices), dense.anatomy))


def repaired(dense: Recognised, **choices: Any) -> Planned:
    """A recognised program with its sites put in and repaired, and nothing else."""
    return run_passes((InsertSites(), RepairTokens()), planned(dense, **choices))


def pruned(dense: Recognised, **choices: Any) -> Planned:
    """A recognised program after all passes."""
    return run_passes(BACK, planned(dense, **choices))


def counts(program: Program, name: str) -> dict[str, int]:
    """What a stage of a program counted."""
    return dict(next(stage.counts for stage in program.stages if stage.name == name))


def targets_of(program: Program) -> list[str]:
    """The operators of a program in order, by their plain names."""
    return [graph.op(node) for node in program.graph.nodes if node.op == "call_function"]


def dialect_of(program: Program) -> list[str]:
    """The operators that prunec put in, in order."""
    return [graph.op(node) for node in program.graph.nodes if node.target in ops.DIALECT]


def run(program: Program, *inputs: Any) -> tuple[Any, ...]:
    """The flat outputs of a program on flat inputs."""
    with torch.no_grad():
        return tuple(program.module(*inputs))


def assert_a_copy_stands_by_itself(module: nn.Module) -> None:
    """A deep copy runs as the module does, on weights of its own."""
    x = pixels()
    before = module(x)
    twin = copy.deepcopy(module)
    assert torch.equal(twin(x), before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert not twin(x).any()
    assert torch.equal(module(x), before)
