"""All modes beside plain loops: one image at a time, boolean indexing, nothing of prunec.

Kept sets are forced, so the loops need no scores but those by which dropped tokens are summed up. Then the
same over anatomies, policies, sets and batches that are drawn at random.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from prunec.ir.program import Program
from tests import moding, tiny
from tests.families import difference
from tests.passes.padding import Biased
from tests.tiny import Attention, Block, ViT, pixels


def joins(x: Tensor, places: tuple[slice, slice]) -> Tensor:
    """A class token joins behind the blocks, before or behind the tokens, and looks at all; twice."""
    first, rest = places
    for _ in range(2):
        token = torch.linspace(-1, 1, x.shape[-1]).expand(x.shape[0], 1, -1)
        x = torch.cat([token, x] if rest.start else [x, token], dim=1)
        seen = F.scaled_dot_product_attention(x[:, None, first], x[:, None], x[:, None])[:, 0]
        # what talking heads do: heads behind all other axes, and a bias for keys that have no weight
        weights = ((seen @ x.mT) / 4).softmax(dim=-1)[..., None].transpose(1, 2) * 0.5 + 0.1
        token = token + weights.squeeze(-1).mT @ x
        x = x[:, rest]
    return token[:, 0]


READS: dict[str, Callable[[Tensor], Any]] = {
    "class token that joins in front": lambda x: joins(x, (slice(0, 1), slice(1, None))),
    "class token that joins at the end": lambda x: joins(x, (slice(-1, None), slice(None, -1))),
    "class token": tiny.class_row,
    "mean": lambda x: x.mean(dim=1),
    "mean of patches": lambda x: x[:, 1:].mean(dim=1),
    "sum of patches behind eight": lambda x: x[:, 8:].sum(dim=1),
    "largest": lambda x: x.amax(dim=1),
    "last two": lambda x: x[:, -2:],
    "all": lambda x: x,
}


class Narrow(Attention):
    """Queries and keys have half the width of values."""

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(query[..., :4], key[..., :4], value)
        return self.proj(out.transpose(1, 2).flatten(2))


FORMS: dict[str, Callable[[], Attention]] = {
    "fused": Attention,
    "spelled": functools.partial(Attention, form="spelled"),
    "biased": Biased,
    "narrow": Narrow,
}


@dataclass(frozen=True)
class Case:
    """A model and a policy for it."""

    read: str = "class token"
    form: str = "fused"
    prefix: int = 1
    suffix: int = 0
    depth: int = 3
    fate: str = "drop"
    restore: str = "none"
    reactivate: bool = False
    where: str = "before_block"
    blocks: tuple[int, ...] = (1, 2)
    scorer: str = "norm"
    selector: str = "threshold"

    def model(self) -> ViT:
        torch.manual_seed(0)
        block = functools.partial(Block, FORMS[self.form])
        ends = {"prefix": self.prefix, "suffix": self.suffix}
        return ViT(block, depth=self.depth, read=READS[self.read], **ends).eval()

    def programs(self, model: ViT) -> dict[str, Program]:
        uniform = {"weights": "uniform"} if self.fate == "fuse" and self.scorer == "norm" else {}
        policy = tiny.policy(
            fate=self.fate, restore=self.restore, reactivate=self.reactivate, where=self.where,
            blocks=list(self.blocks), scorer=self.scorer, selector=self.selector, **uniform,
        )  # fmt: skip
        return moding.in_all_modes(moding.unfinished(tiny.recognised(model), policy))


class Loop:
    """One image through the blocks; `kept` says for each site which tokens stay."""

    def __init__(self, case: Case, model: ViT, image: Tensor, kept: Tensor) -> None:
        self.case, self.model, self.kept, self.site = case, model, list(kept), 0
        self.x = model.embed(image[None])[0]
        self.here = torch.arange(len(self.x))  # which token each row is
        self.whole = self.x.clone()
        self.left: list[list[int]] = []

    def run(self) -> Tensor:
        """What the head makes of it."""
        case, model = self.case, self.model
        for number, block in enumerate(model.blocks):
            if number in case.blocks and case.where == "before_block":
                self.prune()
            if case.form == "biased":
                block.attn.rows = self.here
            normed = block.norm1(self.x[None])
            seen = class_attention(block.attn, normed)
            self.x = self.x + block.attn(normed)[0]
            if number in case.blocks and case.where == "after_attention":
                self.prune(seen)
            self.x = self.x + block.mlp(block.norm2(self.x))
            if case.form == "biased":
                block.attn.rows = None
        if case.restore != "none":
            self.come_back()
        return model.head(model.read(model.norm(self.x[None])))[0]

    def come_back(self) -> None:
        """All tokens, those that left with the value that they had."""
        self.whole[self.here] = self.x
        self.x, self.here = self.whole.clone(), torch.arange(len(self.whole))

    def prune(self, seen: Tensor | None = None) -> None:
        """Boolean indexing; the sum of those that leave stands where the best of them stood.

        By the attention that the class token pays them, or their mean, and the longest is the best.
        """
        if self.case.reactivate:
            self.come_back()
        stays = self.kept.pop(0)[self.here]
        self.whole[self.here] = self.x
        if self.case.fate == "fuse" and not stays.all():
            by_attention = self.case.scorer == "cls_attention"
            scores = seen if by_attention and seen is not None else self.x.norm(dim=-1)
            place = int(scores.masked_fill(stays, -1.0).argmax())
            others = self.x[~stays]
            joined = scores[~stays] @ others if by_attention else others.mean(dim=0)
            self.x = self.x.clone()
            self.x[place] = joined
            stays = stays.clone()
            stays[place] = True
        self.x, self.here = self.x[stays], self.here[stays]
        self.left.append(self.here.tolist())


def class_attention(attention: Attention, x: Tensor) -> Tensor:
    """What the class token pays each token, the mean of two heads; x: [1, n, 16] -> [n]."""
    query, key, _ = attention.qkv(x)[0].unflatten(-1, (3, 2, 8)).unbind(1)  # [n, 2, 8]
    return torch.einsum("hd,nhd->hn", query[0] / 8**0.5, key).softmax(dim=-1).mean(dim=0)


def assert_modes_are_loops(case: Case, images: Tensor, kept: Tensor) -> None:
    """Every mode gives each image what the loop gives it; static one image at a time."""
    model, programs = made(case)
    with torch.no_grad():
        loops = [Loop(case, model, image, kept[:, n]) for n, image in enumerate(images)]
        expected = torch.stack([loop.run() for loop in loops])
    assert bool(expected.isfinite().all())
    inputs: moding.Inputs = lambda images: [images]  # noqa: E731
    for mode, program in programs.items():
        if mode == "static":
            found = moding.apart(program, {}, inputs, images, kept)
        else:
            found = moding.outcome(program, {}, inputs(images), kept)
        left = [[row.nonzero()[:, 0].tolist() for row in site] for site in found.left]
        assert [list(rows) for rows in zip(*left, strict=True)] == [loop.left for loop in loops], mode
        assert difference(found.outputs[0], expected) < moding.TOLERANCE, mode


@functools.cache
def made(case: Case) -> tuple[ViT, dict[str, Program]]:
    model = case.model()
    return model, case.programs(model)


CASES = {
    "drop, a mean": Case(read="mean"),
    "drop, a mean, nothing protected": Case(read="mean", prefix=0, form="spelled"),
    "drop, a class token": Case(),
    "drop behind the attention": Case(read="mean of patches", where="after_attention"),
    "drop, stale": Case(read="all", restore="stale"),
    "preserve and reactivate": Case(read="all", fate="preserve", restore="stale", reactivate=True),
    "fuse": Case(read="last two", suffix=2, fate="fuse"),
    "fuse by counts": Case(read="mean", fate="fuse", selector="top_k"),
    "fuse behind the attention, stale": Case(
        read="all", fate="fuse", restore="stale", where="after_attention", form="spelled"
    ),
    "fuse by attention and a threshold": Case(
        fate="fuse", scorer="cls_attention", where="after_attention", blocks=(0, 1)
    ),
    "a bias between tokens": Case(read="mean", form="biased"),
    "queries narrower than values": Case(form="narrow"),
    "many protected": Case(read="sum of patches behind eight", prefix=8, blocks=(0, 1, 2)),
    "drop, a class token in front of what is left": Case(read="class token that joins in front", prefix=0),
    "drop, a class token behind what is left": Case(read="class token that joins at the end", prefix=0),
}


@pytest.mark.parametrize("name", CASES)
def test_all_modes_are_plain_loops(name: str) -> None:
    case = CASES[name]
    padded = made(case)[1]["padded"]
    for batch in (1, 3, 8):
        least = 0 if case.prefix and case.read != "mean of patches" else 2
        kept = moding.kept_sets(padded, batch, seed=batch, least=least)
        assert_modes_are_loops(case, pixels(batch), kept)


# --- anything ---------------------------------------------------------------------------------


@st.composite
def cases(draw: st.DrawFn) -> Case:
    read = draw(st.sampled_from(list(READS)))
    prefix = 1 if read in ("class token", "mean of patches") else draw(st.integers(0, 2))
    fate = draw(st.sampled_from(["drop", "preserve", "fuse"]))
    stays = read == "all" or fate == "preserve"
    depth = draw(st.integers(2, 3))
    blocks = draw(st.sampled_from([(1,), (0, 1)] if depth == 2 else [(1,), (2,), (1, 2)]))
    where = draw(st.sampled_from(["before_block", "after_attention"]))
    if where == "after_attention" and read in ("class token", "last two"):  # there is no site in the last one
        blocks = tuple(block for block in blocks if block < depth - 1) or (0,)
    case = Case(
        read=read, prefix=prefix, suffix=2 if read == "last two" else draw(st.sampled_from([0, 0, 1])),
        form=draw(st.sampled_from(["fused", "spelled"])), depth=depth, fate=fate, where=where, blocks=blocks,
        restore="stale" if stays else "none",
        scorer="norm" if fate == "fuse" else draw(st.sampled_from(["norm", "mlp"])),
        selector=draw(st.sampled_from(["threshold", "top_k"])),
    )  # fmt: skip
    return replace(case, reactivate=fate == "preserve" and draw(st.booleans()))


@settings(
    max_examples=8, deadline=None, derandomize=True, database=None,
    phases=[Phase.generate], suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
@given(case=cases(), batch=st.integers(1, 8), seed=st.integers(0, 99))
def test_so_are_they_for_any_anatomy_policy_and_sets(case: Case, batch: int, seed: int) -> None:
    kept = moding.kept_sets(made(case)[1]["padded"], batch, seed=seed, least=2)
    assert_modes_are_loops(case, pixels(batch), kept)
