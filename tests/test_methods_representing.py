"""Tokens come back by means of those that stand for them: `copy`, `share`, and the preset cover, by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunec import ops
from prunec.policy.lowering import MODES
from prunec.policy.policy import Policy
from tests import methods, moding
from tests.families import difference
from tests.methods import representing
from tests.methods.representing import Chosen, Tokens, represented
from tests.watching import (
    TOLERANCE,
    Watching,
    at,
    images,
    learned,
    preset,
    recognised,
    segmenter,
    separate,
    sites,
    thresholds,
    transformed,
    vit,
    watch,
)

WAYS = ("copy", "share")
Made = Callable[[Watching, int, int], Callable[[Tokens], Chosen]]  # of a run, an image and a site


def check(model: nn.Module, policy: Policy, made: Made, **how: Any) -> Watching:
    """Each image gets what the reference gives it, on the tokens that its sites chose."""
    fast, x = transformed(model, policy), images()
    if policy.ragged:
        separate(fast, x)
    run, blocks = watch(fast, x), [site.block for site in sites(fast)]
    how = {
        "late": policy.sites.where == "after_attention", "anew": policy.reactivate,
        "proportional": policy.attention == "proportional", "share": policy.restored == "share", **how,
    }  # fmt: skip
    with torch.no_grad():
        for image in range(len(x)):
            chosen = {block: made(run, image, number) for number, block in enumerate(blocks)}
            expected = represented(model, x[image], chosen, **how)
            assert difference(run.result[0][image], expected) < TOLERANCE
    return run


def dropped(run: Watching, image: int, site: int) -> Callable[[Tokens], Chosen]:
    return lambda tokens: representing.drop(tokens, run.places(image)[site])


# --- drop, preserve ---------------------------------------------------------------------------


@pytest.mark.parametrize("restore", WAYS)
@pytest.mark.parametrize(("fate", "blocks"), [("drop", (2,)), ("drop", (0, 1, 3)), ("preserve", (1, 2))])
def test_as_many_of_every_image(fate: str, blocks: tuple[int, ...], restore: str) -> None:
    check(segmenter(4), preset("norm", sites=at(*blocks), fate=fate, restore=restore), dropped)


@pytest.mark.parametrize("restore", WAYS)
@pytest.mark.parametrize(("anew", "blocks"), [(False, (2,)), (False, (1, 2)), (True, (1, 2))])
def test_as_many_as_each_image_needs(anew: bool, blocks: tuple[int, ...], restore: str) -> None:
    policy = preset("svit", sites=at(*blocks), selector={"stages": 1}, reactivate=anew, restore=restore)
    run = check(segmenter(4), policy, dropped)
    assert all(len({len(run.places(image)[site]) for image in range(3)}) > 1 for site in range(len(blocks)))


def test_an_update_is_no_copy() -> None:
    model, x = segmenter(4), images()
    by = {restore: transformed(model, preset("norm", sites=at(1, 2), restore=restore)) for restore in WAYS}
    with torch.no_grad():
        assert difference(by["copy"](x), by["share"](x)) > 1e-2


# --- fuse -------------------------------------------------------------------------------------


def fused(run: Watching, image: int, site: int) -> Callable[[Tokens], Chosen]:
    def choose(tokens: Tokens) -> Chosen:
        places = run.places(image)[site]
        return representing.fuse(tokens, places, places[-1], None)  # the last patch is the mean of all others

    return choose


@pytest.mark.parametrize("restore", WAYS)
@pytest.mark.parametrize("blocks", [(1,), (1, 2)])
def test_fused(blocks: tuple[int, ...], restore: str) -> None:
    check(segmenter(4), preset("pomt", sites=at(*blocks), restore=restore), fused)


def fused_among(run: Watching, image: int, site: int) -> Callable[[Tokens], Chosen]:
    """Where images differ, in the place of the token that stays in the second mask alone."""
    masks = [
        [result for target, result in run.values if target is operation][site][image]
        for operation in (ops.threshold_mask, ops.with_best_dropped)
    ]
    (place,) = (masks[1] & ~masks[0]).nonzero()[:, 0].tolist()
    return lambda tokens: representing.fuse(tokens, run.places(image)[site], place, None)


@pytest.mark.parametrize("restore", WAYS)
def test_fused_where_images_differ(restore: str) -> None:
    changes = {"scorer": {"kind": "norm"}, "selector": {"kind": "threshold"}, "restore": restore}
    check(segmenter(4), preset("pomt", sites=at(1, 2), **changes), fused_among)


# --- merge ------------------------------------------------------------------------------------


def paired(run: Watching, image: int, site: int) -> Callable[[Tokens], Chosen]:
    """Even places are merged into the likest odd ones."""

    def choose(tokens: Tokens) -> Chosen:
        places = run.places(image)[site]
        even, odd = ([row for row in tokens.patches if row % 2 == rest] for rest in (0, 1))
        into = {source: target for _, source, target in methods.match(tokens.keys, even, odd)}
        stands = [places.index(row if row in places else into[row]) for row in range(len(tokens.x))]
        return representing.merge(tokens, places, stands)

    return choose


@pytest.mark.parametrize("restore", WAYS)
def test_merged_in_pairs(restore: str) -> None:
    check(segmenter(3), preset("tome", sites=at(0, 1), selector={"remove": 0.2}, restore=restore), paired)


def merged(run: Watching, image: int, site: int) -> Callable[[Tokens], Chosen]:
    def choose(tokens: Tokens) -> Chosen:
        places = run.places(image)[site]
        stands = representing.likest(tokens, places, representing.alike(tokens.x))
        return representing.merge(tokens, places, stands)

    return choose


@pytest.mark.parametrize("restore", WAYS)
@pytest.mark.parametrize("attention", ["plain", "proportional"])
def test_merged_into_the_likest(attention: str, restore: str) -> None:
    policy = preset("norm", sites=at(1, 2), fate="merge", attention=attention, restore=restore)
    check(segmenter(4), policy, merged)


# --- cover: novelty, merging and sharing, nothing read off the run ------------------------------

MODELS = {"class token": lambda: vit(4), "all tokens": lambda: segmenter(4)}


def covered(
    norm: nn.Module | None, chosen: Callable[[Tensor, Tokens], list[int]]
) -> Callable[[Tokens], Chosen]:
    """Tokens unlike any before them stay; each of the others is merged into the likest of these.

    They are compared by their keys, or as the branch behind the site reads them, through its norm.
    """

    def choose(tokens: Tokens) -> Chosen:
        read = tokens.keys if norm is None else norm(tokens.x)
        assert read is not None
        similar = representing.alike(read, tokens.patches)
        places = chosen(representing.novelty(similar, tokens.patches, representing.golden), tokens)
        return representing.merge(tokens, places, representing.likest(tokens, places, similar))

    return choose


def cover(of: str, where: str, **selector: Any) -> Policy:
    changes = {"sites": {**at(1, 2), "where": where}, "scorer": {"of": of}}
    return preset("cover", **changes, selector={"least": 1, **selector})


def assert_every_mode(
    model: nn.Module, policy: Policy, counts: Callable[..., Any], limit: float = 0.0
) -> None:
    """Every mode gives each image what the reference gives it."""
    x, of, dense = images(), policy.scorer.of or "tokens", recognised(model)
    late, blocks = policy.sites.where == "after_attention", getattr(model, "backbone", model).blocks
    norms = {number: blocks[number].norm2 if late else blocks[number].norm1 for number in (1, 2)}
    choose = {n: covered(None if of == "keys" else norm, counts) for n, norm in norms.items()}
    with torch.no_grad():
        expected = [
            represented(model, image, choose, share=True, late=late, proportional=True) for image in x
        ]
    padded = moding.unfinished(dense, policy)
    for number in range(len(padded.plan.sites) * policy.ragged):
        padded.module.get_buffer(f"prunec.site_{number}.threshold").fill_(limit)
    programs = moding.in_all_modes(padded)
    if not policy.ragged:
        programs["static"] = moding.plain(dense, policy, "static")
    assert set(programs) == set(MODES)
    for mode, program in programs.items():
        batches = x.split(1) if mode == "static" and policy.ragged else [x]
        with torch.no_grad():
            found = torch.cat([program.module(batch)[0] for batch in batches])
        assert difference(found, torch.stack(expected)) < TOLERANCE, mode


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("of", "where"), [("tokens", "before_block"), ("keys", "after_attention"), ("tokens", "after_attention")]
)
def test_cover(of: str, where: str, name: str) -> None:
    def best(score: Tensor, tokens: Tokens) -> list[int]:
        return representing.best(tokens, score, 17 if len(tokens.patches) == 28 else 11)

    policy = cover(of, where, kind="top_k", keep_per_site=0.6)  # 0.6 * 28 = 16.8, and 0.6 * 17 = 10.2
    assert_every_mode(MODELS[name](), policy, best)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("of", "where", "limit"), [("tokens", "before_block", 3.8), ("keys", "after_attention", 0.9)]
)
def test_cover_by_a_threshold(of: str, where: str, limit: float, name: str) -> None:
    found = set()

    def new(score: Tensor, tokens: Tokens) -> list[int]:
        stay = {row for row in tokens.patches if score[row] > limit}
        found.add(len(stay))
        return [row for row in range(len(tokens.x)) if row in stay or row not in tokens.patches]

    assert_every_mode(MODELS[name](), cover(of, where), new, limit)
    assert len(found) > 3
    assert all(count < 28 for count in found)


def test_dynamic() -> None:
    """Cover, with novelty times what a small MLP takes a token to matter, to a power."""
    model, x = segmenter(4), images()
    fast = transformed(model, preset("dynamic", sites=at(1, 2), selector={"least": 1}))
    separate(fast, x)
    counts = set()

    def mattering(own: dict[str, Tensor], limit: float) -> Callable[[Tensor, Tokens], list[int]]:
        def choose(score: Tensor, tokens: Tokens) -> list[int]:
            score = score * (0.25 * methods.svit_gate(tokens.x, own)).exp()
            stay = {row for row in tokens.patches if score[row] > limit}
            counts.add(len(stay))
            return [row for row in range(len(tokens.x)) if row in stay or row not in tokens.patches]

        return choose

    choose = {
        block: covered(model.backbone.blocks[block].norm1, mattering(own, limit))
        for (block, limit), own in zip(thresholds(fast), learned(fast), strict=True)
    }
    with torch.no_grad():
        expected = [represented(model, image, choose, share=True, proportional=True) for image in x]
        assert difference(fast(x), torch.stack(expected)) < TOLERANCE
    assert len(counts) > 2
