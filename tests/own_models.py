"""Models that no library ships, in parts to build from, and what it means that one comes out right."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import prunec
from prunec import ops
from prunec.compiler import Compiled, compile_source
from prunec.frontend import sources
from prunec.policy.policy import Policy
from tests.families import difference, randomise, tensors
from tests.references import Layer, Pruning, Stream, walk

WIDTH, HEADS, GRID = 24, 2, (4, 5)

PATCHES = GRID[0] * GRID[1]

TOKENS = PATCHES + 1

TOLERANCE = 1e-5


class Spelled(nn.Module):
    """Attention in plain matmuls, with an additive bias for each pair of tokens."""

    def __init__(self, tokens: int = TOKENS, width: int = WIDTH) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.bias = nn.Parameter(torch.zeros(HEADS, tokens, tokens))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        scores = torch.matmul(q, k.transpose(-2, -1)) / (q.shape[-1] ** 0.5) + self.bias
        y = torch.matmul(torch.softmax(scores, dim=-1), v)
        return self.proj(y.transpose(1, 2).flatten(2))


class Masked(Spelled):
    """The same bias as the mask of one fused call: added, or hiding the pairs where it is low."""

    def __init__(self, boolean: bool) -> None:
        super().__init__()
        self.boolean = boolean

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mask = self.bias > -0.5 if self.boolean else self.bias
        return self.proj(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))


class Fused(nn.Module):
    """Attention in one call."""

    def __init__(self, causal: bool = False, width: int = WIDTH) -> None:
        super().__init__()
        self.qkv, self.proj, self.causal = nn.Linear(width, 3 * width), nn.Linear(width, width), causal

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.proj(y.transpose(1, 2).flatten(2))


class Distance(nn.Module):
    """Attention that fades with the distance of two rows, computed from their numbers: no table anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.slope = nn.Linear(WIDTH, 3 * WIDTH), nn.Parameter(torch.ones(HEADS))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        rows = torch.arange(x.shape[1], device=x.device)
        bias = -(rows[:, None] - rows[None]).abs() * self.slope[:, None, None]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)


class Grouped(nn.Module):
    """Four heads of queries share two of keys and values, with a scale of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.proj = nn.Linear(WIDTH, 24), nn.Linear(WIDTH, 24), nn.Linear(24, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (4, 6)).transpose(1, 2)
        k, v = self.kv(x).unflatten(-1, (2, 2, 6)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, scale=0.7, enable_gqa=True)
        return self.proj(y.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(width, 32), nn.Linear(width, 32), nn.Linear(32, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


def mlp(width: int = WIDTH) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))


class Block(nn.Module):
    def __init__(self, attention: nn.Module, feed_forward: nn.Module, width: int = WIDTH) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), attention
        self.norm2, self.mlp = nn.LayerNorm(width), feed_forward

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Parallel(Block):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(self.norm1(x)) + self.mlp(self.norm2(x))


class Model(nn.Module):
    """A ViT; `between` works on the whole stream after block 1, `head` reads what comes out."""

    def __init__(
        self,
        block: Callable[[], nn.Module] = lambda: Block(Fused(), mlp()),
        between: Callable[[Tensor], Tensor] | nn.Module | None = None,
        head: Callable[[Tensor], Any] = lambda x: x[:, 0],
        width: int = WIDTH,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 8, stride=8)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, TOKENS, width))
        self.blocks = nn.ModuleList(block() for _ in range(4))
        self.between, self.read = between, head
        self.norm, self.classifier = nn.LayerNorm(width), nn.Linear(width, 7)

    def embed(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        return torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.position

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number == 1 and self.between is not None:
                x = self.between(x)
        return self.classifier(self.read(self.norm(x)))


def ready(model: nn.Module) -> nn.Module:
    return randomise(model.eval(), seed=3)


def images(batch: int = 3) -> Tensor:
    return torch.randn(batch, 3, 8 * GRID[0], 8 * GRID[1], generator=torch.Generator().manual_seed(4))


def compiled(
    model: nn.Module, policy: str = "norm", blocks: tuple[int, ...] = (1, 2), keep: float = 0.5
) -> Compiled:
    chosen = Policy.load(policy).override(keep_per_site=keep, blocks=blocks, restore="stale")
    return compile_source(sources.from_module(model, images(2)), chosen)


def counts(result: Compiled) -> dict[str, int]:
    return dict(next(stage.counts for stage in result.pruned.stages if stage.name == "repair tokens"))


class Shuffled(fx.Interpreter):
    """Runs a pruned program with every selection replaced by all rows, the patches in an order of its own."""

    def __init__(self, module: fx.GraphModule, prefix: int, suffix: int) -> None:
        super().__init__(module)
        self.prefix, self.suffix = prefix, suffix

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is not ops.select:
            return super().call_function(target, args, kwargs)
        batch, tokens = args[0].shape
        patches = torch.arange(self.prefix, tokens - self.suffix)
        ends = torch.arange(self.prefix), torch.arange(tokens - self.suffix, tokens)
        return torch.stack(
            [torch.cat([ends[0], patches[torch.randperm(len(patches))], ends[1]]) for _ in range(batch)]
        )


def right(model: nn.Module, result: Compiled, prefix: int = 1, suffix: int = 0) -> None:
    """Keeping everything, in order and shuffled (each image its own way), gives what the model gives."""
    assert (result.dense.anatomy.prefix, result.dense.anatomy.suffix) == (prefix, suffix)
    assert result.certificate.identity <= TOLERANCE
    assert result.certificate.permutation <= TOLERANCE
    with torch.no_grad():
        expected = model(images())
        for _ in range(3):
            found = Shuffled(result.pruned.module, prefix, suffix).run(images())
            assert difference(found, expected) <= TOLERANCE
        pruned = result.pruned.module(images())
    assert [value.shape for value in tensors(pruned)] == [value.shape for value in tensors(expected)]
    assert difference(pruned, expected) > 0.01


def agree(model: Model, layers: list[Layer], policy: str, pruning: Pruning) -> None:
    """With half of the patches, equal to the same model pruned by hand."""
    module = prunec.transform(
        model,
        prunec.Policy.load(policy, keep_per_site=0.5, blocks=(1, 2), restore="stale"),
        example=images(2),
    )
    with torch.no_grad():
        streams = [walk(Stream(model.embed(image[None])[0], prefix=1), layers, pruning) for image in images()]
        expected = model.classifier(model.norm(torch.stack([stream.x[0] for stream in streams])))
        assert difference(module(images()), expected) <= TOLERANCE


def file_and_line(function: Callable[..., Any], text: str) -> str:
    """`file:line` of the first line of a function that holds a text."""
    lines, first = inspect.getsourcelines(function)
    return (
        f"{inspect.getsourcefile(function)}:{first + next(n for n, line in enumerate(lines) if text in line)}"
    )
