"""Numbers that follow the token count, behind a site: what a model computes is what it computes by hand."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import prunec
from prunec.compiler import recognise
from prunec.frontend import sources
from prunec.policy.policy import Policy
from tests import moding
from tests.counting.models import (
    ATTENTIONS,
    HEADS,
    POSITIONS,
    TOLERANCE,
    Attending,
    Counting,
    Placed,
    attentions_model,
    check,
    heads_model,
    images,
    pruned,
    ready,
)
from tests.families import difference, randomise
from tests.references import EVIT, NORM, Layer, Pruning, Stream, attend, heads, walk
from tests.tiny import Block, ViT

pytestmark = pytest.mark.usefixtures("recognised_once")


@pytest.mark.parametrize("name", HEADS)
def test_a_head_counts_the_tokens_that_are_left(name: str) -> None:
    check(heads_model, list(HEADS).index(name))


def test_the_last_of_a_cumulative_sum_is_divided_by_the_tokens_that_are_left() -> None:
    # It reads the last row, which is protected for that.
    check(lambda: ready(Counting([lambda x: x.cumsum(1)[:, -1] / x.shape[1]])), 0)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_an_attention_counts_the_tokens_that_are_left(name: str) -> None:
    check(attentions_model, list(ATTENTIONS).index(name))


def placed_model() -> Counting:
    return ready(Counting(attentions=[lambda table=table: Placed(table) for table in POSITIONS.values()]))


@pytest.mark.parametrize("name", POSITIONS)
def test_positions_stay_what_they_were(name: str) -> None:
    check(placed_model, list(POSITIONS).index(name))


def scaled_layer(block: Block) -> Layer:
    def attention(x: Tensor, _rows: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = (heads(part, 2) for part in block.attn.qkv(block.norm1(x)).chunk(3, dim=-1))
        y, weights = attend(q * math.log(len(x)), k, v)
        return block.attn.proj(y), weights

    return Layer(attention, lambda x: block.mlp(block.norm2(x)))


@pytest.mark.parametrize("form", ["scale=log(n) / sqrt(d)", "scores * log(n)"])
@pytest.mark.parametrize(("policy", "pruning"), [("evit", EVIT), ("norm", NORM)])
def test_each_block_counts_what_its_site_left(form: str, policy: str, pruning: Pruning) -> None:
    # evit scores by the attention, of which the scale follows too, and fuses the others into one token.
    ways = ATTENTIONS[form]
    model = randomise(ViT(lambda: Block(attention=lambda: Attending(**ways)), depth=4).eval(), seed=2)
    module = prunec.transform(
        model,
        prunec.Policy.load(policy, keep_per_site=0.5, blocks=(1, 2), restore="stale"),
        example=images(2),
    )
    layers = [scaled_layer(block) for block in model.blocks]
    with torch.no_grad():
        streams = [walk(Stream(model.embed(image[None])[0], prefix=1), layers, pruning) for image in images()]
        expected = model.head(model.norm(torch.stack([stream.x[0] for stream in streams])))
        assert difference(module(images()), expected) <= TOLERANCE
        assert difference(expected, model(images())) > 1e-3


def test_a_pruned_model_compiles_whole() -> None:
    names = ["sum / n", "sum / torch.tensor(n)", "ones(n) / n @ x", "logsumexp - log(n)", "norm / sqrt(n)"]
    module = pruned(heads_model(*names))
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert difference(compiled(images()), module(images())) <= TOLERANCE


#: What needs one number for all images, and what the refusal names beside the line.
ONE_FOR_ALL = {
    "ones(n) / n @ x": "node div",
    "full((1, n), 1 / n) @ x": "node full",
    "x.new_full((n,), 1 / n) @ x": "node new_full",
    "sum / full_like(.., n)": "node full_like",
    "add(.., alpha=1 / n)": "node add_5",
    "scale=log(n) / sqrt(d)": "scale=ways",
    "scale=n ** -0.5": "scale=ways",
    "scale=log_26(n) / sqrt(d)": "scale=ways",
}


@functools.cache
def ragged(make: Callable[[], Counting]) -> tuple[dict[str, Tensor], Tensor]:
    """The outputs in every mode where each image keeps a share of its own, and by hand."""
    model, batch = make(), images(5)
    dense = recognise(sources.from_module(model, images(2)))
    padded = moding.unfinished(dense, Policy.load("norm").override(blocks=(1,)))
    kept = moding.kept_sets(padded, len(batch), least=1)
    programs = moding.in_all_modes(padded)
    with torch.no_grad():
        expected = torch.cat([model.by_hand(image, rows) for image, rows in zip(batch, kept[0], strict=True)])
        return {mode: moding.run(one, (batch,), kept).result[0] for mode, one in programs.items()}, expected


def ragged_heads() -> Counting:
    return heads_model(*(name for name in HEADS if name not in ONE_FOR_ALL))


def ragged_attentions() -> Counting:
    """All but ranks among tokens: where some rows are padding, those get the whole stream, and its count."""
    others = {*ONE_FOR_ALL, "ranks / n"}
    return attentions_model(*(name for name in ATTENTIONS if name not in others))


@pytest.mark.parametrize("mode", ["padded", "packed", "masked"])
@pytest.mark.parametrize("make", [ragged_heads, ragged_attentions])
def test_each_image_counts_its_own_tokens(make: Callable[[], Counting], mode: str) -> None:
    outputs, expected = ragged(make)
    worst = [difference(outputs[mode][:, way], expected[:, way]) for way in range(expected.shape[1])]
    assert max(worst) <= TOLERANCE, worst


@pytest.mark.parametrize("name", ONE_FOR_ALL)
def test_one_number_for_all_images_is_refused_where_they_differ(name: str) -> None:
    model = heads_model(name) if name in HEADS else attentions_model(name)
    with pytest.raises(prunec.PolicyError, match="each image needs its own") as refused:
        pruned(model, mode="padded")
    assert ONE_FOR_ALL[name] in str(refused.value.where)
    assert "counting/models.py" in str(refused.value.where)
    assert "mode static" in str(refused.value.remedy)
