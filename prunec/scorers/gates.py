"""Learned scorers as modules: what a site adds to the model's parameters, under `prunec.site_0` and so on.

A scorer is a module from the patches of a stream, [B, N, C], to one number for each, [B, N]: the higher, the
better for the patch to stay. It is made for a `Setting`. Nothing else has to be known about the graph.
Packages announce scorers of their own through the entry points `prunec.scorers`; a policy then names them.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunec.errors import PolicyError
from prunec.policy.language import ENTRY_POINTS, Scorer


@dataclass(frozen=True)
class Setting:
    """What a scorer is made for."""

    dim: int  # C, channels of the stream
    patches: int  # N, of the whole stream
    grid: tuple[int, int] | None = None  # rows and columns of patches, where they are known
    image: tuple[int, ...] = ()  # [3, H, W]
    classes: int | None = None  # K, of a model that gives each patch class scores


class Gate(nn.Module):
    """What scorers have in common."""

    #: What forward gets: the patches of the stream at the site, or the images.
    reads: ClassVar[Literal["patches", "pixels"]] = "patches"
    #: Whether the score of a patch depends on the others; such a scorer must not be shown padding, ..
    context: ClassVar[bool] = False
    #: .. unless forward takes which patches count as well: [B, N], true for those.
    takes_valid: ClassVar[bool] = False


class SiteModule(nn.Module):
    """The numbers of one site: the threshold of its scores, and a learned scorer if it has one."""

    threshold: Tensor

    def __init__(self, gate: nn.Module | None = None, threshold: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("threshold", torch.tensor(threshold))
        self.gate = gate


class MlpGate(Gate):
    """Each patch by itself: norm, linear, GELU, linear to the logits of keep and drop (SViT)."""

    def __init__(self, setting: Setting, hidden: float = 0.25) -> None:
        super().__init__()
        dim, width = setting.dim, max(1, round(setting.dim * hidden))
        self.norm, self.up, self.down = nn.LayerNorm(dim), nn.Linear(dim, width), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        """How much more it wants to keep each patch than to drop it: [B, N, C] to [B, N]."""
        return _first_over_second(self.down(F.gelu(self.up(self.norm(x)))))


class Predictor(Gate):
    """Each patch beside what all that are there look like together (DynamicViT)."""

    context = True
    takes_valid = True

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        dim, half, quarter = setting.dim, max(1, setting.dim // 2), max(1, setting.dim // 4)
        self.norm, self.embed = nn.LayerNorm(dim), nn.Linear(dim, dim)
        self.first, self.second = nn.Linear(dim, half), nn.Linear(half, quarter)
        self.last = nn.Linear(quarter, 2)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """[B, N, C] to [B, N]."""
        x = F.gelu(self.embed(self.norm(x)))
        local, others = x.split((x.shape[-1] - x.shape[-1] // 2, x.shape[-1] // 2), dim=-1)
        if valid is None:
            mean = others.mean(dim=1, keepdim=True)
        else:
            share = valid / valid.sum(dim=1, keepdim=True).clamp_min(1)  # [B, N]
            mean = share.to(x.dtype).unsqueeze(1) @ others
        x = torch.cat([local, mean.expand_as(others)], dim=-1)
        return _first_over_second(self.last(F.gelu(self.second(F.gelu(self.first(x))))))


class QueryGate(Gate):
    """What learned queries see in a patch, summed up before they look (Token Cropr)."""

    def __init__(self, setting: Setting, queries: int = 1) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(queries, setting.dim))
        nn.init.trunc_normal_(self.queries, std=setting.dim**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """One product with one vector, however many queries there are: [B, N, C] to [B, N]."""
        return x @ self.queries.sum(dim=0)


class PreNet(Gate):
    """A small ViT in front of the model that separates objects from background (BAViT).

    It looks at the model's own patches, positions added, or makes its own from the image.
    """

    context = True
    takes_valid = True

    def __init__(
        self, setting: Setting, depth: int = 2, embedding: Literal["shared", "own"] = "shared"
    ) -> None:
        super().__init__()
        dim = setting.dim
        self.embed: nn.Module | None = None
        if embedding == "own":
            self.reads = "pixels"  # type: ignore[misc]
            size = _patch_size(setting)
            self.embed = nn.Conv2d(setting.image[0], dim, kernel_size=size, stride=size)
            self.position = nn.Parameter(torch.empty(setting.patches, dim))
            nn.init.trunc_normal_(self.position, std=0.02)
        self.layers = nn.ModuleList(_Layer(dim) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 2)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """How much more foreground than background: [B, N, C] (or images) to [B, N]."""
        if self.embed is not None:
            x = self.embed(x).flatten(2).transpose(1, 2) + self.position
        for layer in self.layers:
            x = layer(x, valid)
        return _first_over_second(self.head(self.norm(x)))


class Grader(Gate):
    """The classes of a patch, as far as they show at a site: norm and linear (DToP)."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        if setting.classes is None:
            raise PolicyError(
                "a grader learns the class scores of each token, and this model gives its tokens none",
                where="scorer.kind",
                remedy="choose a segmenter with a head for each token, or another scorer",
            )
        self.norm, self.head = nn.LayerNorm(setting.dim), nn.Linear(setting.dim, setting.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores: [B, N, C] to [B, N, K]."""
        scores: Tensor = self.head(self.norm(x))
        return scores


def build(scorer: Scorer, setting: Setting) -> nn.Module:
    """The module of a learned scorer, with fresh parameters."""
    if scorer.kind in ("mlp", "novelty"):
        return MlpGate(setting, scorer.hidden or 0.25)
    if scorer.kind == "predictor":
        return Predictor(setting)
    if scorer.kind == "query":
        return QueryGate(setting, scorer.queries or 1)
    if scorer.kind == "pre_net":
        return PreNet(setting, scorer.depth or 2, scorer.embedding or "shared")
    if scorer.kind == "grader":
        return Grader(setting)
    return _announced(scorer, setting)


def _announced(scorer: Scorer, setting: Setting) -> nn.Module:
    """A scorer of another package."""
    point, *others = entry_points(group=ENTRY_POINTS, name=scorer.kind)
    if others:
        raise PolicyError(
            f"the scorer {scorer.kind!r} is announced {1 + len(others)} times",
            where=", ".join(each.value for each in (point, *others)),
            remedy="uninstall all but one of these packages",
        )
    try:
        module = point.load()(setting, **(scorer.options or {}))
    except Exception as error:  # whatever another package raises
        raise PolicyError(
            f"the scorer {scorer.kind!r} cannot be made: {error}",
            where=f"scorer.options, {point.value}",
            remedy="give options that it takes, or correct the package that announces it",
        ) from error
    if not isinstance(module, nn.Module):
        raise PolicyError(
            f"the scorer {scorer.kind!r} is a {type(module).__name__}, not a torch.nn.Module",
            where=point.value,
            remedy="announce a class of modules, made from a prunec.scorers.gates.Setting",
        )
    return module.eval()  # what is random in training has no place in a kept set


class _Layer(nn.Module):
    """A pre-norm Transformer block."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.heads = next(heads for heads in (max(1, dim // 64), 3, 2, 1) if dim % heads == 0)
        self.norm1, self.qkv, self.proj = nn.LayerNorm(dim), nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.norm2, self.up, self.down = nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """[B, N, C] to the same."""
        query, key, value = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mask = None if valid is None else valid[:, None, None, :]
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x + self.proj(seen.transpose(1, 2).flatten(2))
        branch: Tensor = self.down(F.gelu(self.up(self.norm2(x))))
        return x + branch


def _first_over_second(logits: Tensor) -> Tensor:
    return logits[..., 0] - logits[..., 1]  # [B, N, 2] -> [B, N]


def _patch_size(setting: Setting) -> int:
    if setting.grid is None:
        raise PolicyError(
            "a pre-net with its own embedding must know the grid of patches, and the image's size tells none",
            where="scorer.embedding",
            remedy="use embedding: shared",
        )
    return setting.image[-2] // setting.grid[0]
