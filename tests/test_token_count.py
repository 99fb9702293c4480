"""The number of tokens as a number: a pruned model computes with the number of those that are left.

Each snippet stands in a small model. What the pruned model gives must equal the model's own code run on the
kept tokens alone, image by image, in plain PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunec
from tests.tiny import Attention, Block, Mlp, ViT, pixels

from .families import difference, randomise

TOLERANCE = 1e-5
Read = Callable[[Tensor], Tensor]


# --- in the head: what is read of the stream x [B, N, C] -----------------------------------------


def variance(x: Tensor) -> Tensor:
    mean = x.sum(dim=1, keepdim=True) / x.shape[1]
    return ((x - mean) ** 2).sum(dim=1) / (x.shape[1] - 1)


def entropy(x: Tensor) -> Tensor:
    p = x.softmax(dim=1)
    return -(p * p.log()).sum(dim=1) / math.log(x.shape[1])


def pairs(x: Tensor) -> Tensor:
    n = x.shape[1]
    return (x.sum(dim=1) ** 2 - (x**2).sum(dim=1)) / (n * (n - 1))


HEADS: dict[str, Read] = {
    "sum / n": lambda x: x.sum(1) / x.shape[1],
    "sum of the patches / (n - 1)": lambda x: x[:, 1:].sum(1) / (x.shape[1] - 1),
    "sum of the patches / their number": lambda x: x[:, 1:].sum(1) / x[:, 1:].size(1),
    "sum * (1 / n)": lambda x: x.sum(1) * (1 / x.shape[1]),
    "sum / float(n)": lambda x: x.sum(1) / float(x.size(1)),
    "mean * n": lambda x: x.mean(1) * x.shape[1],
    "the last of a cumulative sum / n": lambda x: x.cumsum(1)[:, -1] / x.shape[1],
    "sum / torch.tensor(n)": lambda x: x.sum(1) / torch.tensor(x.shape[1]),
    "sum / a root of torch.tensor(n)": lambda x: x.sum(1) / torch.tensor(float(x.shape[1])).sqrt(),
    "sum / x.new_tensor(n)": lambda x: x.sum(1) / x.new_tensor(x.shape[1]),
    "sum / full((), n)": lambda x: x.sum(1) / torch.full((), x.shape[1]),
    "sum / full_like(.., n)": lambda x: x.sum(1) / torch.full_like(x[:, 0], x.shape[1]),
    "ones(n) / n @ x": lambda x: (torch.ones(x.shape[1]) / x.shape[1]) @ x,
    "full((1, n), 1 / n) @ x": lambda x: (torch.full((1, x.shape[1]), 1 / x.shape[1]) @ x)[:, 0],
    "x.new_full((n,), 1 / n) @ x": lambda x: x.new_full((x.shape[1],), 1 / x.shape[1]) @ x,
    "ones_like(x) / n * x": lambda x: (torch.ones_like(x) / x.shape[1] * x).sum(1),
    "sum / (sum of arange(n))": lambda x: x.sum(1) / torch.arange(x.shape[1]).sum(),
    "logsumexp - log(n)": lambda x: x.logsumexp(1) - math.log(x.shape[1]),
    "variance by hand": variance,
    "norm / sqrt(n)": lambda x: x.norm(dim=1) / math.sqrt(x.shape[1]),
    "root of the mean square": lambda x: x.square().sum(1).div(x.shape[1]).sqrt(),
    "entropy / log(n)": entropy,
    "x.T @ x / n": lambda x: (x.mT @ x / x.shape[1])[:, :, 3],
    "einsum / n": lambda x: torch.einsum("btc,btc->bc", x, x) / x.shape[1],
    "add(.., alpha=1 / n)": lambda x: torch.add(x[:, 0], x.sum(1), alpha=1 / x.shape[1]),
    "sum over tokens and channels / (n c)": lambda x: x[:, 0] + x.sum((1, 2)).div(x.shape[1] * 16)[:, None],
    "all pairs / n (n - 1)": pairs,
    "sum / n ** 0.75": lambda x: x.sum(1) / x.shape[1] ** 0.75,
    "sum * log2(n) / n": lambda x: x.sum(1) * (math.log2(x.shape[1]) / x.shape[1]),
}


# --- in the attention: how scores [B, h, N, N] and rows become an output ---------------------------


class Attending(Attention):
    """Attention whose scores, weights and output meet the number of tokens in ways of their own."""

    scale = weigh = add = None

    def __init__(self, **ways: Callable[..., Any]) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(2, 1, 1))
        self.ways = ways

    def forward(self, x: Tensor) -> Tensor:
        (b, n, c), ways = x.shape, self.ways
        query, key, value = self.qkv(x).reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        if "fused" in ways:
            out = F.scaled_dot_product_attention(query, key, value, scale=ways["fused"](n, c // 2))
        else:
            scores = query @ key.mT
            scores = ways["scores"](scores, n, self.factor) if "scores" in ways else scores * 0.35
            weights = scores.softmax(-1)
            weights = ways["weights"](weights, n) if "weights" in ways else weights
            out = weights @ value
            out = out + ways["values"](value, n) if "values" in ways else out
        y = self.proj(out.transpose(1, 2).reshape(b, n, c))
        return ways["output"](y, n) if "output" in ways else y


ATTENTIONS: dict[str, dict[str, Callable[..., Any]]] = {
    "scores * n ** -0.5": {"scores": lambda s, n, _: s * n**-0.5},
    "scores / sqrt(n)": {"scores": lambda s, n, _: s / math.sqrt(n)},
    "scores * log(n)": {"scores": lambda s, n, _: s * math.log(n) * 8**-0.5},
    "scores * (log(n) / sqrt(d))": {"scores": lambda s, n, _: s * (math.log(n) / 8**0.5)},
    "scores * (a parameter * log(n))": {"scores": lambda s, n, factor: s * (factor * math.log(n))},
    "scores * torch.tensor(n).log()": {"scores": lambda s, n, _: s * torch.tensor(float(n)).log()},
    "scale=log(n) / sqrt(d)": {"fused": lambda n, d: math.log(n) * d**-0.5},
    "scale=n ** -0.5": {"fused": lambda n, _: n**-0.5},
    "scale=log_26(n) / sqrt(d)": {"fused": lambda n, d: math.log(n, 26) * d**-0.5},
    "softmax - 1 / n": {"weights": lambda w, n: w - 1 / n},
    "weights over 1 / n": {"weights": lambda w, n: torch.where(w > 1 / n, w, 0.0)},
    "weights under 1 / n filled": {"weights": lambda w, n: w.masked_fill(w < 1 / n, 0.0)},
    "weights clamped at 2 / n": {"weights": lambda w, n: w.clamp(max=2 / n)},
    "+ sum of the values / n": {"values": lambda v, n: v.sum(-2, keepdim=True) / n},
    "y / sqrt(n)": {"output": lambda y, n: y / n**0.5},
    "ranks / n": {"output": lambda y, n: y * (y.argsort(1).argsort(1) / n)},
    "y - sum / n": {"output": lambda y, n: y - y.sum(1, keepdim=True) / n},
}


# --- the model, and its code on the kept tokens ----------------------------------------------------


def model_of(read: Read | None = None, attention: Callable[[], nn.Module] = Attention) -> ViT:
    more = {} if read is None else {"read": read}
    return randomise(ViT(lambda: Block(attention=attention), **more).eval(), seed=2)


def images(batch: int = 3) -> Tensor:
    return torch.randn(batch, 3, 20, 20, generator=torch.Generator().manual_seed(7))


def kept_rows(x: Tensor, prefix: int, suffix: int) -> Tensor:
    """Protected rows, and of the patches the half with the largest norm: [n]."""
    end = len(x) - suffix
    best = x[prefix:end].norm(dim=-1).argsort(descending=True)[: math.ceil((end - prefix) / 2)] + prefix
    ends = torch.arange(prefix), torch.arange(end, len(x))
    return torch.cat([ends[0], best.sort().values, ends[1]])


def by_hand(model: ViT, batch: Tensor, suffix: int = 0) -> Tensor:
    """Each image by itself: block 0 on all tokens, the rest of the model on the kept ones."""
    outputs = []
    for image in batch:
        x = model.blocks[0](model.embed(image[None]))
        x = x[:, kept_rows(x[0], 1, suffix)]
        outputs.append(model.head(model.read(model.norm(model.blocks[1](x)))))
    return torch.cat(outputs)


def pruned(model: nn.Module, **options: Any) -> nn.Module:
    return prunec.transform(model, "norm", keep=0.5, blocks=(1,), example=images(2), **options)


def check(model: ViT, **options: Any) -> None:
    module = pruned(model, **options)
    anatomy = module.program.anatomy
    with torch.no_grad():
        expected = by_hand(model, images(), anatomy.suffix)
        assert difference(module(images()), expected) <= TOLERANCE
        assert difference(expected, model(images())) > 1e-3


@pytest.mark.parametrize("name", HEADS)
def test_a_head_counts_the_tokens_that_are_left(name: str) -> None:
    check(model_of(HEADS[name]))


@pytest.mark.parametrize("name", ATTENTIONS)
def test_an_attention_counts_the_tokens_that_are_left(name: str) -> None:
    check(model_of(attention=lambda: Attending(**ATTENTIONS[name])))
