"""The programs that mistakes are planted in: six small models, under policies that use all of the dialect."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunec.compiler import lower
from prunec.ir.program import Planned, Program, Recognised
from prunec.passes import BACK, run_passes
from prunec.policy.lowering import choose
from prunec.policy.policy import Policy
from prunec.policy.site_plan import make_plan
from tests.tiny import Attention, Block, ViT, pixels, policy, recognised
from tests.windows import SIDE, windowed

DEPTH = 4


class Rotary(Attention):
    """Queries and keys of patches are turned by a table that has no row for the class token."""

    def __init__(self) -> None:
        super().__init__()
        angles = torch.rand(25, 4, generator=torch.Generator().manual_seed(0)) * 6
        self.register_buffer("cos", torch.cat([angles.cos()] * 2, dim=-1))
        self.register_buffer("sin", torch.cat([angles.sin()] * 2, dim=-1))

    def _turned(self, x: Tensor) -> Tensor:
        first, patches = x[:, :, :1], x[:, :, 1:]
        one, other = patches.chunk(2, dim=-1)
        turned = patches * self.cos + torch.cat([-other, one], dim=-1) * self.sin
        return torch.cat([first, turned], dim=2)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        query, key, value = self.qkv(x).reshape(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(self._turned(query), self._turned(key), value)
        return self.proj(out.transpose(1, 2).reshape(b, t, c))


class Tabled(Attention):
    """A table with a row for every token."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(26, 16))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.table)


def _spelled() -> Attention:
    return Attention(form="spelled")


def _mean(x: Tensor) -> Tensor:
    return x[:, 1:].mean(dim=1)


def _all(x: Tensor) -> Tensor:
    return x


def _patches(x: Tensor) -> Tensor:
    return x[:, 1:]


def _queries(x: Tensor) -> Tensor:
    return x[:, -3:]


MODELS: dict[str, Any] = {
    "class token": lambda: ViT(depth=DEPTH),
    "spelled out": lambda: ViT(lambda: Block(_spelled), depth=DEPTH),
    "mean head": lambda: ViT(depth=DEPTH, read=_mean),
    "rotary": lambda: ViT(lambda: Block(Rotary), depth=DEPTH),
    "tables": lambda: ViT(lambda: Block(Tabled), depth=DEPTH),
    "dense output": lambda: ViT(depth=DEPTH, read=_all),
    "segmenter": lambda: ViT(depth=DEPTH, read=_patches),
    "queries": lambda: ViT(depth=DEPTH, suffix=3, read=_queries),
    "windows": windowed,
}


@dataclass(frozen=True)
class Subject:
    """A model, a policy and a mode."""

    model: str
    policy: Policy
    mode: str | None = None
    options: tuple[tuple[str, Any], ...] = ()


def _preset(name: str, **changes: Any) -> Policy:
    data = Policy.load(name).model_dump()
    for axis, change in changes.items():
        updates = isinstance(change, dict) and isinstance(data[axis], dict)
        data[axis] = {**data[axis], **change} if updates else change
    return Policy.load(data)


def _at(*blocks: int) -> dict[str, Any]:
    return {"blocks": blocks, "depths": None, "between": None}


_DROP = policy(blocks=[1, 2])
_RAGGED = policy(selector="threshold", blocks=[1, 2])
_EVIT = _preset("evit", sites=_at(1, 2), selector={"keep_per_site": 0.5})
_ANEW = policy(fate="preserve", selector="threshold", reactivate=True, blocks=[1, 2])
_TOME = _preset("tome", sites=_at(0, 1, 2), selector={"remove": 0.2})
_DIFFRATE = _preset("diffrate", sites=_at(0, 1, 2), selector={"remove": 0.2})
_SHARE = policy(blocks=[1, 2], restore="share")
_COVER = _preset("cover", sites=_at(1, 2), selector={"keep_per_site": 0.5})
_COVER_RAGGED = _preset(
    "cover", sites=_at(1, 2), selector={"kind": "threshold", "keep_per_site": 0.5, "least": 4}
)
_EXIT = _preset("dtop", sites=_at(1, 2), selector={"at": 0.6, "spare": 2})
_FUSE_RAGGED = policy(fate="fuse", scorer="norm", weights="uniform", selector="threshold", blocks=[1, 2])
_LEARNED = _preset("svit", sites=_at(1, 2), selector={"stages": 1}, reactivate=False)

SUBJECTS: dict[str, Subject] = {
    "class token, drop": Subject("class token", _DROP),
    "class token, fuse": Subject("class token", _EVIT),
    "class token, fuse the mean": Subject(
        "class token", _preset("pomt", sites=_at(1), selector={"keep_per_site": 0.5})
    ),
    "class token, thresholds": Subject("class token", _RAGGED),
    "class token, fuse by thresholds": Subject("class token", _FUSE_RAGGED),
    "mean head, drop": Subject("mean head", _DROP),
    "mean head, thresholds": Subject("mean head", _RAGGED),
    "mean head, set aside": Subject("mean head", policy(fate="preserve", blocks=[1, 2])),
    "rotary, drop": Subject("rotary", _DROP),
    "dense output, stale": Subject("dense output", _DROP),
    "dense output, copy": Subject("dense output", policy(blocks=[1, 2], restore="copy")),
    "dense output, share": Subject("dense output", _SHARE),
    "dense output, share by thresholds": Subject(
        "dense output", policy(selector="threshold", blocks=[1, 2], restore="share")
    ),
    "dense output, cover": Subject("dense output", _COVER),
    "dense output, anew": Subject("dense output", _ANEW),
    "dense output, rejoin": Subject("dense output", policy(blocks=[1, 2], restore="rejoin")),
    "dense output, thresholds": Subject("dense output", _RAGGED),
    "queries, drop": Subject("queries", _DROP),
    "merging pairs": Subject("class token", _TOME),
    "merging pairs, dense output": Subject("dense output", _TOME),
    "merging pairs, spelled out": Subject("spelled out", _TOME),
    "merging into the nearest": Subject("class token", _DIFFRATE),
    "merging windows": Subject("class token", _preset("algm", sites=_at(0), selector={"at": 0.5})),
    "windows, drop": Subject("windows", _DROP),
    "exits": Subject("segmenter", _EXIT),
    "packed": Subject("class token", _RAGGED, "packed", (("attention", "rows"),)),
    "packed, dense output": Subject("dense output", _RAGGED, "packed", (("attention", "rows"),)),
    "packed, tables": Subject("tables", _RAGGED, "packed", (("attention", "rows"),)),
    "packed, mean head": Subject("mean head", _RAGGED, "packed", (("attention", "padded"),)),
    "packed, anew": Subject("dense output", _ANEW, "packed", (("attention", "rows"),)),
    "masked": Subject("class token", _RAGGED, "masked"),
    "packed, share": Subject("dense output", _SHARE, "packed", (("attention", "rows"),)),
    "packed, cover": Subject("dense output", _COVER_RAGGED, "packed", (("attention", "rows"),)),
    "masked, cover": Subject("dense output", _COVER_RAGGED, "masked"),
    "masked, dense output": Subject("dense output", _RAGGED, "masked"),
    "masked, spelled out": Subject("spelled out", _RAGGED, "masked"),
    "masked, mean head": Subject("mean head", _RAGGED, "masked"),
    "masked, learned": Subject("dense output", _LEARNED, "masked"),
    "one image at a time": Subject("dense output", _RAGGED, "static"),
}


@functools.cache
def dense(model: str) -> Recognised:
    """The recognised program of a model; its weights are large, so that little is lost in rounding."""
    torch.manual_seed(1)
    made: nn.Module = MODELS[model]()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.mul_(1.5)
    return recognised(made, pixels(3, side=SIDE if model == "windows" else 5))


def planned(subject: Subject, program: Program) -> Planned:
    """The recognised program with the subject's plan."""
    lowering = choose(subject.policy, subject.mode, **dict(subject.options))
    return program.planned(make_plan(subject.policy, program.anatomy, lowering))


@functools.cache
def plain(name: str) -> Planned:
    """The rewritten program, as it goes to the certificate; learned scorers get numbers that matter."""
    subject = SUBJECTS[name]
    program = run_passes(BACK, planned(subject, dense(subject.model)))
    generator = torch.Generator().manual_seed(3)
    for path, parameter in program.module.named_parameters():
        if path.startswith("prunec."):
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return program


@functools.cache
def lowered(name: str) -> Planned:
    """The same in its mode."""
    return lower(plain(name))
