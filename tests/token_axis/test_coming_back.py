"""Own models whose tokens come back, or that want more than are left: beside a loop by hand, or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import prunec
from prunec.compiler import Compiled, compile_source
from prunec.frontend import sources
from prunec.ir.program import ProgramModule
from prunec.policy.policy import Policy
from tests.families import difference
from tests.own_models import (
    HEADS,
    TOLERANCE,
    Block,
    Fused,
    Model,
    Spelled,
    file_and_line,
    images,
    mlp,
    ready,
)
from tests.references import attend, heads

pytestmark = pytest.mark.usefixtures("recognised_once")

POLICY: dict[str, Any] = {
    "version": 1,
    "name": "half",
    "summary": "half of the patches, by their norm",
    "sites": {"where": "before_block", "blocks": [1, 2]},
    "scorer": {"kind": "norm"},
    "selector": {"kind": "top_k", "keep_per_site": 0.5},
    "fate": "preserve",
}
STALE = {**POLICY, "fate": "drop", "restore": "stale"}
REACTIVATE = {**POLICY, "reactivate": True}
REJOIN = {**POLICY, "restore": "rejoin"}


def compiled(model: torch.nn.Module, policy: dict[str, Any], blocks: tuple[int, ...] = (1, 2)) -> Compiled:
    chosen = Policy.load(policy).override(blocks=blocks)
    return compile_source(sources.from_module(model, images(2)), chosen)


class Walk:
    """One image: which rows each block works on, by the policy; x holds all tokens, [T, C]."""

    def __init__(self, x: Tensor, policy: dict[str, Any], blocks: tuple[int, ...]) -> None:
        self.x, self.policy, self.blocks, self.rows = x, policy, blocks, torch.arange(len(x))

    def rows_of(self, number: int) -> Tensor:
        every = torch.arange(len(self.x))
        if number in self.blocks:
            among = every if self.policy.get("reactivate") else self.rows
            best = self.x[among][1:].norm(dim=-1).topk(-(-(len(among) - 1) // 2)).indices.sort().values
            self.rows = among[torch.cat([torch.tensor([0]), best + 1])]
        elif self.policy.get("restore") == "rejoin" and number > max(self.blocks):
            self.rows = every
        return self.rows


def check(result: Compiled, by_hand: Any, model: torch.nn.Module) -> None:
    with torch.no_grad():
        expected = torch.stack([by_hand(image) for image in images()])
        assert difference(ProgramModule(result.pruned)(images()), expected) <= TOLERANCE
        assert difference(expected, model(images())) > 0.01


# --- values of the first block, in every block --------------------------------------------------------


class ValueResidual(Model):
    """The values of each block are mixed with those of block 0."""

    def __init__(self) -> None:
        super().__init__()
        self.share = torch.nn.Parameter(torch.zeros(4))

    def forward(self, image: Tensor) -> Tensor:
        x, first = self.embed(image), None
        for share, block in zip(self.share, self.blocks, strict=True):
            qkv = block.attention.qkv(block.norm1(x)).unflatten(-1, (3, HEADS, -1))
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            first = v if first is None else first
            y = F.scaled_dot_product_attention(q, k, share * v + (1 - share) * first)
            x = x + block.attention.proj(y.transpose(1, 2).flatten(2))
            x = x + block.mlp(block.norm2(x))
        return self.classifier(self.norm(x)[:, 0])

    def by_hand(self, image: Tensor, policy: dict[str, Any], blocks: tuple[int, ...]) -> Tensor:
        walk = Walk(self.embed(image[None])[0], policy, blocks)
        first = heads(self.blocks[0].attention.qkv(self.blocks[0].norm1(walk.x)).chunk(3, dim=-1)[2], HEADS)
        for number, (share, block) in enumerate(zip(self.share, self.blocks, strict=True)):
            rows = walk.rows_of(number)
            x = walk.x[rows]
            q, k, v = (heads(part, HEADS) for part in block.attention.qkv(block.norm1(x)).chunk(3, dim=-1))
            x = x + block.attention.proj(attend(q, k, share * v + (1 - share) * first[:, rows])[0])
            walk.x = walk.x.index_copy(0, rows, x + block.mlp(block.norm2(x)))
        return self.classifier(self.norm(walk.x[0]))


@pytest.mark.parametrize(
    ("policy", "blocks"),
    [(REACTIVATE, (1, 2)), (REJOIN, (1, 2)), (REACTIVATE, (0, 2))],
    ids=["chosen anew", "all come back", "some have sat the first block out"],
)
def test_values_of_the_first_block_are_those_of_the_same_tokens(
    policy: dict[str, Any], blocks: tuple[int, ...]
) -> None:
    model = ready(ValueResidual())
    result = compiled(model, policy, blocks)
    check(result, lambda image: model.by_hand(image, policy, blocks), model)


# --- post-norm ------------------------------------------------------------------------------------------


class PostNorm(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.mlp(x))


def post_norm_by_hand(model: Model, image: Tensor, policy: dict[str, Any]) -> Tensor:
    walk = Walk(model.embed(image[None])[0], policy, (1, 2))
    for number, block in enumerate(model.blocks):
        rows = walk.rows_of(number)
        x = walk.x[rows]
        q, k, v = (heads(part, HEADS) for part in block.attention.qkv(x).chunk(3, dim=-1))
        x = block.norm1(x + block.attention.proj(attend(q, k, v)[0]))
        walk.x = walk.x.index_copy(0, rows, block.norm2(x + block.mlp(x)))
    return model.classifier(model.norm(walk.x))


@pytest.mark.parametrize("policy", [STALE, REACTIVATE], ids=["at the end", "at each site"])
def test_a_token_that_comes_back_is_not_normed_again(policy: dict[str, Any]) -> None:
    model = ready(Model(lambda: PostNorm(Fused(), mlp()), head=lambda x: x))
    result = compiled(model, policy)
    assert result.dense.anatomy.states[-1] == "layer_norm_7"  # of the last block; the model's own is the next
    check(result, lambda image: post_norm_by_hand(model, image, policy), model)


def test_the_last_norm_of_a_pre_norm_model_is_not_a_blocks() -> None:
    anatomy = compiled(ready(Model()), STALE).dense.anatomy
    assert anatomy.states[-1] == anatomy.blocks[-1].branches[-1].add


# --- maps that the model returns -------------------------------------------------------------------------


class Maps(Model):
    """Returns what each token looks at, of the first blocks."""

    def __init__(self, returned: int) -> None:
        super().__init__(lambda: Block(Spelled(), mlp()))
        self.returned = returned

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        x, maps = self.embed(image), []
        for block in self.blocks:
            q, k, v = block.attention.qkv(block.norm1(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
            weights = (q @ k.mT).softmax(dim=-1)
            maps.append(weights)
            x = x + block.attention.proj((weights @ v).transpose(1, 2).flatten(2))
            x = x + block.mlp(block.norm2(x))
        return self.classifier(self.norm(x)[:, 0]), *maps[: self.returned]


def test_maps_of_pruned_blocks_are_refused_and_those_before_them_are_right() -> None:
    with pytest.raises(prunec.PolicyError, match="what an attention makes of all") as caught:
        compiled(ready(Maps(2)), POLICY)
    assert file_and_line(Maps.forward, "softmax") in str(caught.value.where)
    assert "output_attentions=False" in str(caught.value.remedy)
    model = ready(Maps(1))
    result = compiled(model, POLICY)  # block 0 is in front of the sites
    with torch.no_grad():
        assert difference(result.pruned.module(images())[1], model(images())[1]) <= TOLERANCE


# --- more tokens than are left ---------------------------------------------------------------------------


def brightest(x: Tensor) -> Tensor:
    return x.topk(12, dim=1).values.mean(dim=1)


def test_a_head_that_wants_more_tokens_than_are_left_is_refused_with_its_line() -> None:
    model, policy = ready(Model(head=brightest)), {**POLICY, "fate": "drop"}
    with pytest.raises(prunec.PolicyError, match=r"asks for 12 tokens \(topk\), and 6 are left") as caught:
        compiled(model, policy)
    assert str(caught.value.where).startswith("node topk, ")
    assert "self.read(self.norm(x))" in str(caught.value.where)
    assert caught.value.remedy == "keep at least 12: a higher keep, or fewer sites before it"
    result = compiled(
        model, {**policy, "selector": {"kind": "top_k", "keep_per_site": 0.6}}, (1,)
    )  # 13 are left
    assert result.certificate.own_counts is not None


# --- images that do not run by themselves ------------------------------------------------------------------


class Clips(Model):
    """Two images are one clip: their class tokens meet."""

    def forward(self, image: Tensor) -> Tensor:
        x = super().forward(image)
        return x + x.reshape(x.shape[0] // 2, 2, -1).mean(dim=1, keepdim=True).expand(-1, 2, -1).reshape(
            x.shape
        )


class Noisy(Model):
    """Each image with its own noise, as ViT-MAE shuffles."""

    def embed(self, x: Tensor) -> Tensor:
        x = super().embed(x)
        return x + torch.rand_like(x[:, :, :1])


@pytest.mark.parametrize(
    ("model", "reason"),
    [(Clips, "the model's own code joins several images"), (Noisy, "the model draws random numbers")],
)
def test_what_cannot_be_compared_image_by_image_is_said(model: type[Model], reason: str) -> None:
    threshold = Policy.load("dynamic").override(blocks=(1, 2))
    result = compile_source(sources.from_module(ready(model()), images(2)), threshold, calibrate=False)
    assert result.certificate.padding is None
    assert reason in str(result.certificate.unproven)
    assert result.certificate.permutation <= TOLERANCE
