"""Models that compute with the number of their tokens, in many ways, and what they are by hand."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunec
from prunec.frontend import sources
from tests.families import difference, randomise
from tests.tiny import Attention, Block, ViT

TOLERANCE = 1e-5

Read = Callable[[Tensor], Tensor]


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


class Attending(Attention):
    """Attention whose scores, weights and output meet the number of tokens in ways of their own."""

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


def distance(n: int) -> Tensor:
    rows = torch.arange(n)
    return -(rows[:, None] - rows[None]).abs() * 0.3


POSITIONS: dict[str, Callable[[int], Tensor]] = {
    "distance": distance,
    "distance / n": lambda n: distance(n) / n,
    "a window of neighbours": lambda n: torch.zeros(n, n).masked_fill(distance(n) < -2, -30.0),
    "only what stands before": lambda n: torch.full((n, n), -30.0).triu(1),
    "itself": lambda n: torch.eye(n),
    "sinusoids": lambda n: (torch.arange(n) / 3).sin(),
    "sinusoids of the share of the way": lambda n: (torch.arange(n) * (2 * math.pi / n)).sin(),
    "linspace(0, 1, n)": lambda n: torch.linspace(0, 1, n),
    "arange(n) / n": lambda n: torch.arange(n) / n,
    "from -1 to 1": lambda n: 2 * torch.arange(n) / (n - 1) - 1,
    "from the end": lambda n: (n - 1 - torch.arange(n)) * 0.1,
    "a bell": lambda n: torch.hann_window(n),
}


class Placed(Attention):
    """Attention to which positions are added: to its tokens, or to its scores."""

    def __init__(self, table: Callable[[int], Tensor]) -> None:
        super().__init__()
        self.table = table
        self.rows: Tensor | None = None  # those that are left, when it is run by hand

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        table = self.table(n if self.rows is None else TOKENS)
        if self.rows is not None:
            table = table[self.rows] if table.dim() == 1 else table[self.rows][:, self.rows]
        x = x + table[:, None] if table.dim() == 1 else x
        query, key, value = self.qkv(x).reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        scores = query @ key.mT * 0.35
        scores = scores + table if table.dim() == 2 else scores
        return self.proj((scores.softmax(-1) @ value).transpose(1, 2).reshape(b, n, c))


TOKENS = 26


class Counting(ViT):
    """One model for many ways: each block behind block 0, or each reading of the stream, gives an output."""

    def __init__(
        self, reads: list[Read] | None = None, attentions: Sequence[Callable[[], nn.Module]] = (Attention,)
    ) -> None:
        super().__init__(depth=1)
        self.blocks.extend(Block(attention=attention) for attention in attentions)
        self.reads = reads
        self.learned = nn.ModuleList(read for read in reads or () if isinstance(read, nn.Module))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.behind(self.blocks[0](self.embed(pixels)))

    def behind(self, x: Tensor) -> Tensor:
        """What block 1 and all that follows make of the stream, or of the rows that are left of it."""
        found = []
        for block in self.blocks[1:]:
            x = block(x)
            found.append(x[:, 0])
        if self.reads is not None:
            found = [read(self.norm(x)) for read in self.reads]
        return self.head(torch.stack(found, dim=1))  # [B, ways, 7]

    def by_hand(self, image: Tensor, kept: Tensor) -> Tensor:
        """One image: block 0 on all tokens, and the same code again on the kept ones."""
        rows = kept.nonzero()[:, 0]
        for part in self.modules():
            if isinstance(part, Placed):
                part.rows = rows
        found = self.behind(self.blocks[0](self.embed(image[None]))[:, rows])
        for part in self.modules():
            if isinstance(part, Placed):
                part.rows = None
        return found


def ready(model: Counting) -> Counting:
    return randomise(model.eval(), seed=2)


def heads_model(*names: str) -> Counting:
    return ready(Counting([HEADS[name] for name in names or HEADS]))


def attentions_model(*names: str) -> Counting:
    ways = [ATTENTIONS[name] for name in names or ATTENTIONS]
    return ready(Counting(attentions=[lambda ways=ways: Attending(**ways) for ways in ways]))


def images(batch: int = 3) -> Tensor:
    return torch.randn(batch, 3, 20, 20, generator=torch.Generator().manual_seed(7))


def pruned(model: nn.Module, **options: Any) -> nn.Module:
    return prunec.transform(
        model, prunec.Policy.load("norm", keep=0.5, blocks=(1,)), example=images(2), **options
    )


def kept_half(model: ViT, image: Tensor, suffix: int) -> Tensor:
    """Protected rows, and of the patches the half with the largest norm: [N]."""
    x = model.blocks[0](model.embed(image[None]))[0]
    norm = x.norm(dim=-1)
    norm[:1] = norm[len(x) - suffix :] = math.inf
    patches = len(x) - 1 - suffix
    kept = torch.zeros(len(x), dtype=torch.bool)
    kept[norm.topk(1 + suffix + math.ceil(patches / 2)).indices] = True
    return kept


@functools.cache
def static(make: Callable[[], Counting]) -> tuple[Tensor, Tensor, Tensor]:
    """What the pruned model gives, what its code gives by hand, and what the dense model gives."""
    model = make()
    module = pruned(model)
    suffix = module.program.anatomy.suffix
    with torch.no_grad():
        by_hand = [model.by_hand(image, kept_half(model, image, suffix)) for image in images()]
        return module(images()), torch.cat(by_hand), model(images())


def check(make: Callable[[], Counting], place: int) -> None:
    found, expected, dense = (outputs[:, place] for outputs in static(make))
    assert difference(found, expected) <= TOLERANCE
    assert difference(expected, dense) > 1e-3


class Early(Counting):
    """Three numbers of tokens, read off the image, the grid of its patches, and the tokens at first."""

    def __init__(self, image: int | None = None, tokens: int | None = None) -> None:
        super().__init__()
        self.image, self.tokens = image, tokens  # what it insists on
        self.counted = (True, True, True)

    def forward(self, pixels: Tensor) -> Tensor:
        assert self.image in (None, pixels.shape[2])
        grid = self.embed.patches(pixels)
        front = self.embed.front.expand(pixels.shape[0], -1, -1)
        x = torch.cat([front, grid.flatten(2).transpose(1, 2)], dim=1) + self.embed.position
        assert self.tokens in (None, x.shape[1])
        height, width = pixels.shape[2:]
        numbers = (height // 4) * (width // 4) + 1, grid.shape[2] * grid.shape[3] + 1, x.shape[1]
        return self.divided(self.blocks[0](x), numbers)

    def divided(self, x: Tensor, numbers: tuple[int, ...]) -> Tensor:
        total = self.norm(self.blocks[1](x)).sum(1)
        means = [total / number for number, counted in zip(numbers, self.counted, strict=True) if counted]
        return self.head(torch.stack(means, dim=1))

    def by_hand(self, image: Tensor, kept: Tensor) -> Tensor:
        x = self.blocks[0](self.embed(image[None]))[:, kept]
        return self.divided(x, (int(kept.sum()),) * 3)


def early() -> Counting:
    return ready(Early())


def early_of_one_size() -> Counting:
    model = Early(image=20)
    model.counted = (False, True, True)
    return ready(model)


def exported(model: nn.Module) -> sources.Source:
    shapes = ({0: torch.export.Dim.AUTO},)
    program = torch.export.export(model, (images(2),), dynamic_shapes=shapes)
    return sources.Source("mine", model, (images(2),), {}, "given", exported=program)
