"""Models whose images keep different numbers of tokens, and plain loops that do the same."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunec.ir.program import Program, Recognised
from prunec.passes import BACK, run_passes
from tests.tiny import Attention, Block, ViT, pixels, planned, recognised

Score = Callable[[int, Tensor], Tensor]  # site, rows [n, C] -> scores [n]


@cache
def dense_of(model: nn.Module, side: int = 5) -> Recognised:
    """The recognised model; programs are immutable, so all policies for one model share it."""
    return recognised(model, pixels(side=side))


def program_of(model: nn.Module, *, side: int = 5, **choices: Any) -> Program:
    """The model with ragged sites; every threshold is set so that about half of the rows pass."""
    defaults = {"selector": "threshold", "fate": "preserve", "reactivate": True, "blocks": [1, 2, 3]}
    made = run_passes(BACK, planned(dense_of(model, side), **{**defaults, **choices}))
    torch.manual_seed(3)
    for name, parameter in made.module.named_parameters():
        if name.startswith("prunec."):
            nn.init.normal_(parameter, std=0.5)
    for number, site in enumerate(made.plan.sites if made.plan else ()):
        if site.ragged:
            limit = 4.2 + 0.2 * number if made.plan.rules.scorer.kind == "norm" else 0.0
            made.module.get_buffer(f"prunec.site_{number}.threshold").fill_(limit)
    return made


def score_of(program: Program) -> Score:
    """The scorer of each site, written anew."""

    def norm(site: int, x: Tensor) -> Tensor:
        return (x**2).sum(dim=-1) ** 0.5 - program.module.get_buffer(f"prunec.site_{site}.threshold")

    def mlp(site: int, x: Tensor) -> Tensor:
        own = dict(program.module.get_submodule(f"prunec.site_{site}.gate").named_parameters())
        x = F.layer_norm(x, x.shape[-1:], own["norm.weight"], own["norm.bias"])
        logits = F.gelu(x @ own["up.weight"].T + own["up.bias"]) @ own["down.weight"].T + own["down.bias"]
        return logits.log_softmax(dim=-1) @ torch.tensor([1.0, -1.0])  # keep against drop

    return {"norm": norm, "mlp": mlp}[program.plan.rules.scorer.kind]


def loops(
    model: ViT,
    image: Tensor,
    score: Score,
    sites: tuple[int, ...],
    *,
    reactivate: bool,
    prefix: int,
    suffix: int,
) -> tuple[Tensor, list[int]]:
    """One image: which rows go through each block, and what the head makes of all of them."""
    x = model.embed(image[None])[0]  # [T, C]
    protected = torch.zeros(len(x), dtype=torch.bool)
    protected[:prefix] = True
    protected[len(x) - suffix :] = True
    kept, counts = torch.ones(len(x), dtype=torch.bool), []
    for index, block in enumerate(model.blocks):
        if index in sites:
            scores = score(sites.index(index), x).masked_fill(protected, float("-inf"))
            if not reactivate:
                scores = scores.masked_fill(~kept, float("-inf"))
            kept = scores > 0
            kept[scores.argmax()] = True  # never none
            kept |= protected
            counts.append(int(kept.sum()))
        x = x.clone()
        x[kept] = block(x[kept][None])[0]
    return model.head(model.read(model.norm(x[None])))[0], counts


class Biased(Attention):
    """A learned bias for each pair of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(1, 2, 26, 26))
        self.rows: Tensor | None = None  # which tokens these are, for the loops

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        query, key, value = self.qkv(x).reshape(b, t, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.bias if self.rows is None else self.bias[:, :, self.rows][..., self.rows]
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.proj(out.transpose(1, 2).reshape(b, t, c))


MODELS: dict[str, tuple[Callable[[], ViT], int, int]] = {
    "class token": (lambda: ViT(depth=4), 1, 0),
    "mean": (lambda: ViT(depth=4, prefix=0, read=lambda x: x.mean(dim=1)), 0, 0),
    "registers": (lambda: ViT(depth=4, prefix=5, read=lambda x: x[:, 5:].mean(dim=1)), 5, 0),
    "detection tokens": (lambda: ViT(depth=4, suffix=4, read=lambda x: x[:, -4:]), 1, 4),
    "all tokens": (lambda: ViT(depth=4, read=lambda x: x), 1, 0),
    "spelled out": (lambda: ViT(lambda: Block(lambda: Attention(form="spelled")), depth=4), 1, 0),
}


@cache
def model_of(name: str) -> ViT:
    torch.manual_seed(0)
    return MODELS[name][0]().eval()
