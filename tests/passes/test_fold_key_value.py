"""Few queries attend to the states themselves; what comes out is what it was."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunec
from prunec import ops
from prunec.ir import graph
from prunec.ir.arguments import bind
from prunec.ir.flops import FlopCounter
from prunec.ir.program import Program
from prunec.measure import figures
from prunec.passes import run_passes
from prunec.passes.controls import RandomScores, Slices
from prunec.passes.fold_key_value import FoldKeyValue
from prunec.passes.liveness import Liveness
from prunec.verify.certificate import certify
from tests import tiny
from tests.tiny import Attention, Block, ViT, counts, pixels, recognised, run

pytestmark = pytest.mark.usefixtures("recognised_once")

DIM, HEADS, TOKENS = 16, 2, 26
TOP_K = {"scorer": "cls_attention", "where": "after_attention", "fate": "drop"}


def passed(model: nn.Module, **choices: Any) -> tuple[Program, Program]:
    """The program before and after the pass; first the proof that no value changed."""
    dense = recognised(model.eval())
    before = run_passes((Liveness(),), tiny.repaired(dense, **{"blocks": [], **choices}))
    after = run_passes((FoldKeyValue(),), before)
    certificate = certify(dense, after, (pixels(3),))
    assert max(certificate.identity, certificate.permutation) <= 1e-6
    return before, after


def folded(model: nn.Module, **choices: Any) -> int:
    return counts(passed(model, **choices)[1], "fold_key_value")["folded"]


def notes(program: Program) -> tuple[str, ...]:
    return next(stage.notes for stage in program.stages if stage.name == "fold_key_value")


def cores(program: Program) -> list[str]:
    """The attention cores in order."""
    kinds = ("scaled_dot_product_attention", "attend_states")
    return [graph.op(node) for node in program.graph.nodes if graph.op(node) in kinds]


def with_keys(tokens: int, rows: int) -> int:
    """Operations of the layers and the attention of `rows` queries to states [tokens, DIM]."""
    return 2 * tokens * DIM * 2 * DIM + 2 * 2 * rows * tokens * DIM


def without(tokens: int, rows: int) -> int:
    """The same where the queries go through the layers."""
    return 2 * rows * DIM * 2 * DIM + 2 * 2 * rows * HEADS * tokens * DIM


def saved(tokens: int, rows: int = 1) -> int:
    """What is left out of the work of one image."""
    return with_keys(tokens, rows) - without(tokens, rows)


# --- the operation ----------------------------------------------------------------------------


def by_hand(q: Tensor, x: Tensor, keys: nn.Linear, values: nn.Linear, scale: float, bias: Tensor) -> Tensor:
    """Attention, image by image and head by head, with its keys and values; `bias` [B, h, m, n]."""
    images = []
    for image in range(len(q)):
        key, value, heads = keys(x[image]), values(x[image]), []
        for head in range(q.shape[1]):
            part = slice(head * q.shape[3], (head + 1) * q.shape[3])
            scores = scale * (q[image, head] @ key[:, part].T) + bias[image, head]
            heads.append(scores.softmax(-1) @ value[:, part])
        images.append(torch.stack(heads))
    return torch.stack(images)


def operands() -> tuple[Tensor, Tensor, nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    keys, values = nn.Linear(12, 8).double(), nn.Linear(12, 8).double()
    return torch.randn(3, 2, 4, 4).double(), torch.randn(3, 7, 12).double(), keys, values


MASKS: dict[str, Callable[[], Tensor]] = {
    "keys": lambda: torch.rand(3, 1, 1, 7) > 0.3,
    "all": lambda: torch.rand(3, 2, 4, 7) > 0.3,
    "queries": lambda: torch.rand(4, 7) > 0.3,
    "heads": lambda: torch.randn(1, 2, 1, 7).double(),
    "bias": lambda: torch.randn(2, 4, 7).double(),
    "hidden": lambda: torch.randn(3, 1, 1, 7).double().masked_fill(torch.rand(3, 1, 1, 7) > 0.7, -math.inf),
}


@pytest.mark.parametrize("mask", [None, *MASKS])
@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_the_operation_is_attention_to_the_last_digits(mask: str | None, scale: float) -> None:
    q, x, keys, values = operands()
    given = MASKS[mask]() if mask else None
    bias = torch.zeros(3, 2, 4, 7).double()
    if given is not None:
        bias = bias.masked_fill(~given, -math.inf) if given.dtype == torch.bool else bias + given
    expected = by_hand(q, x, keys, values, scale, bias)
    found = ops.attend_states(q, x, (keys.weight, None), (values.weight, values.bias), scale, given)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [torch.bool, torch.float64])
def test_a_query_that_may_look_at_nothing_gets_zero_as_in_fused_attention(kind: torch.dtype) -> None:
    q, x, keys, values = operands()
    mask = torch.rand(3, 1, 4, 7) > 0.3
    mask[1, 0, 2] = False
    if kind != torch.bool:
        mask = torch.zeros(3, 1, 4, 7).double().masked_fill(~mask, -math.inf)
    key, value = (layer(x).unflatten(2, (2, 4)).transpose(1, 2) for layer in (keys, values))
    expected = F.scaled_dot_product_attention(q, key, value, attn_mask=mask, scale=0.5)
    found = ops.attend_states(q, x, (keys.weight, None), (values.weight, values.bias), 0.5, mask)
    assert not found[1, :, 2].any()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_gradients_are_those_of_attention() -> None:
    q, x, keys, values = operands()
    q.requires_grad_()
    x.requires_grad_()
    weights = (q, x, keys.weight, values.weight, values.bias)
    by = torch.randn(3, 2, 4, 4).double()
    expected = torch.autograd.grad(by_hand(q, x, keys, values, 0.5, torch.zeros(3, 2, 4, 7)), weights, by)
    folded = ops.attend_states(q, x, (keys.weight, None), (values.weight, values.bias), 0.5)
    found = torch.autograd.grad(folded, weights, by)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


# --- a class token, a pooling head ------------------------------------------------------------


def test_a_class_token_attends_to_the_states_of_the_last_block() -> None:
    model, x = ViT(depth=3).eval(), pixels(3)
    before, after = passed(model)
    assert counts(after, "fold_key_value") == {"folded": 1}
    assert notes(after) == ("keys and values of block 2 are never made",)
    assert cores(after) == ["scaled_dot_product_attention"] * 2 + ["attend_states"]
    # qkv, out, up and down of two blocks; then the query, out, up and down of one row, and the head
    heights = [graph.shape(node)[-2] for node in after.graph.nodes if graph.op(node) == "linear"]
    assert heights[:-1] == [26] * 8 + [1] * 4
    (node,) = [node for node in after.graph.nodes if node.target is ops.attend_states]
    queries, width = graph.shape(node.args[0])[1:], DIM // HEADS
    assert (queries, graph.shape(node)[1:], bind(node)["scale"]) == (
        (HEADS, 1, width),
        (HEADS, 1, width),
        width**-0.5,
    )
    assert figures.flops(before) - figures.flops(after) == saved(TOKENS)
    torch.testing.assert_close(run(after, x)[0], run(before, x)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["vit_small_patch16_224", "vit_base_patch16_224"])
def test_a_twelfth_less_work_in_a_model_of_twelve_blocks(name: str) -> None:
    model, x = timm.create_model(name).eval(), torch.randn(2, 3, 224, 224)

    def work(module: nn.Module) -> int:
        with FlopCounter() as counter, torch.no_grad():
            module(x)
        return counter.total

    fast = prunec.transform(model, "none")
    assert counts(fast.__dict__["program"], "fold_key_value") == {"folded": 1}
    assert 1 - work(fast) / work(model) > 0.081


def test_a_double_precision_model_is_exact_to_the_last_digits() -> None:
    model, x = ViT(depth=3).double().eval(), pixels(2).double()
    fast = prunec.transform(model, "none", example=x)
    assert counts(fast.__dict__["program"], "fold_key_value") == {"folded": 1}
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_a_half_precision_model_is_certified(kind: torch.dtype) -> None:
    fast = prunec.transform(ViT(depth=3).to(kind).eval(), "none", example=pixels(2).to(kind))
    assert counts(fast.__dict__["program"], "fold_key_value") == {"folded": 1}


def test_the_weights_stay_the_models_own_and_learn() -> None:
    model, x = ViT(depth=3).eval(), pixels(2)
    fast = prunec.transform(model, "none", example=x)
    assert list(fast.state_dict()) == list(model.state_dict())
    expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    found = torch.autograd.grad(fast(x).square().sum(), list(fast.parameters()))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_any_batch_compiled_and_exported() -> None:
    model = ViT(depth=3).eval()
    fast = prunec.transform(model, "none", example=pixels())
    again = torch.export.export(fast, (pixels(3),), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch.no_grad():
        for batch in (1, 2, 5):
            x = pixels(batch)
            for made in (fast, compiled) if batch == 1 else (fast, compiled, again):
                torch.testing.assert_close(made(x), model(x), rtol=0, atol=1e-6)


class Pooled(ViT):
    """One learned query reads all tokens; keys and values by layers of their own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.probe = nn.Parameter(torch.randn(1, 1, DIM))
        self.keys, self.values = nn.Linear(DIM, DIM, bias=False), nn.Linear(DIM, DIM, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.norm(self.blocks(self.embed(pixels)))
        layers = (self.probe.expand(x.shape[0], -1, -1), self.keys(x), self.values(x))
        query, key, value = (made.unflatten(2, (HEADS, -1)).transpose(1, 2) for made in layers)
        return self.head(F.scaled_dot_product_attention(query, key, value, scale=0.3).flatten(1))


def test_a_pooling_head_attends_to_the_last_states() -> None:
    before, after = passed(Pooled())
    assert notes(after)[0].endswith("are never made")
    assert "block" not in notes(after)[0]
    assert cores(after) == ["scaled_dot_product_attention"] * 2 + ["attend_states"]
    assert figures.flops(before) - figures.flops(after) == saved(TOKENS)


class Apart(Attention):
    """Each head's query, key and value lie together in the layer."""

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(2, (HEADS, -1)).chunk(3, dim=-1)
        out = F.scaled_dot_product_attention(*(made.transpose(1, 2) for made in (query, key, value)))
        return self.proj(out.transpose(1, 2).flatten(2))


class Swapped(Attention):
    """Values, then keys, cut out by hand."""

    def forward(self, x: Tensor) -> Tensor:
        value, key, query = self.qkv(x).split(DIM, dim=-1)
        heads = (made.unflatten(2, (HEADS, -1)).permute(0, 2, 1, 3) for made in (query, key, value))
        out = F.scaled_dot_product_attention(*(made.contiguous() for made in heads))
        return self.proj(out.transpose(1, 2).flatten(2))


def test_channels_are_found_where_they_lie() -> None:
    assert folded(ViT(lambda: Block(Swapped))) == 1


# --- selections -------------------------------------------------------------------------------


@pytest.mark.parametrize("choices", [{}, TOP_K, {"fate": "fuse"}], ids=["norm", "top k", "fuse"])
def test_a_shortened_stream_is_attended_to_as_well(choices: dict[str, Any]) -> None:
    model, x = ViT(depth=3).eval(), pixels(3)
    before, after = passed(model, **choices, blocks=[1])
    assert notes(after) == ("keys and values of block 2 are never made",)
    torch.testing.assert_close(run(after, x)[0], run(before, x)[0], rtol=0, atol=1e-6)
    kept = 15 if "fate" in choices and choices["fate"] == "fuse" else 14
    assert figures.flops(before) - figures.flops(after) == saved(kept)
    ideal, random = (run_passes((control(),), after) for control in (Slices, RandomScores))
    assert cores(ideal) == cores(random) == cores(after)
    assert run(ideal, x)[0].shape == run(random, x)[0].shape == (3, 7)


def test_images_that_keep_different_numbers_of_tokens_hide_their_padding() -> None:
    model, x = ViT(depth=3).eval(), pixels(3)
    choices = {"selector": "threshold", "blocks": [1]}
    before, after = passed(model, **choices)
    (node,) = [node for node in after.graph.nodes if node.target is ops.attend_states]
    assert bind(node)["mask"].target is ops.key_mask
    torch.testing.assert_close(run(after, x)[0], run(before, x)[0], rtol=0, atol=1e-6)
    ideal = run_passes((Slices(),), after)
    assert run(ideal, x)[0].shape == (3, 7)


class Masked(Attention):
    """A mask that all images share, one row for each query."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.rand(TOKENS, TOKENS) > 0.2)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=self.mask)
        return self.proj(out.transpose(1, 2).flatten(2))


class Biased(Attention):
    """A bias for each head and each pair of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(1, HEADS, TOKENS, TOKENS))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(query, key, value, self.bias, scale=0.7)
        return self.proj(out.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("attention", [Masked, Biased])
@pytest.mark.parametrize("choices", [{}, {"blocks": [0]}], ids=["none", "norm"])
def test_masks_and_biases_are_kept(attention: type[Attention], choices: dict[str, Any]) -> None:
    _, after = passed(ViT(lambda: Block(attention)), **choices)
    assert cores(after)[-1] == "attend_states"


# --- left alone -------------------------------------------------------------------------------


class Normed(Attention):
    """Keys are normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(DIM // HEADS)

    def keys(self, key: Tensor) -> Tensor:
        return self.norm(key)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(query, self.keys(key), value, **self.options())
        return self.proj(out.transpose(1, 2).flatten(2))

    def options(self) -> dict[str, Any]:
        return {}


class Rotary(Normed):
    """Keys are turned by their place."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(TOKENS, DIM // HEADS))

    def keys(self, key: Tensor) -> Tensor:
        return key * self.table


class Clipped(Normed):
    """Keys are bounded: by one operand less than a norm."""

    def keys(self, key: Tensor) -> Tensor:
        return key.clamp(-100, 100)


class Turned(Normed):
    """Keys stand in another order than their tokens."""

    def keys(self, key: Tensor) -> Tensor:
        return key.flip(2)


class Sorted(Normed):
    """The channels of a key in the order of their numbers."""

    def keys(self, key: Tensor) -> Tensor:
        return key.sort(dim=-1).values


class Dropped(Normed):
    """Some weights are dropped, whatever the mode."""

    def keys(self, key: Tensor) -> Tensor:
        return key

    def options(self) -> dict[str, Any]:
        return {"dropout_p": 1e-9}


class Plain(Normed):
    """What the others differ from."""

    def keys(self, key: Tensor) -> Tensor:
        return key


@pytest.mark.parametrize(
    ("attention", "expected"),
    [(Plain, 1), (Normed, 0), (Rotary, 0), (Clipped, 0), (Turned, 0), (Sorted, 0), (Apart, 0)],
)
def test_keys_that_are_more_than_a_layer_are_made(attention: type[Attention], expected: int) -> None:
    before, after = passed(ViT(lambda: Block(attention)))
    assert counts(after, "fold_key_value") == {"folded": expected}
    if not expected:
        assert [node.name for node in after.graph.nodes] == [node.name for node in before.graph.nodes]


def test_attention_with_dropout_is_left_alone() -> None:
    before = run_passes(
        (Liveness(),), tiny.repaired(recognised(ViT(lambda: Block(Dropped)).eval()), blocks=[])
    )
    assert counts(run_passes((FoldKeyValue(),), before), "fold_key_value") == {"folded": 0}


def test_attention_that_is_spelled_out_is_left_alone() -> None:
    assert folded(ViT(lambda: Block(lambda: Attention(form="spelled")))) == 0


def test_keys_that_score_are_made() -> None:
    before, after = passed(ViT(depth=3).eval(), **TOP_K, blocks=[1], keep=0.05)
    (score,) = [node for node in after.graph.nodes if node.target is ops.class_attention]
    assert graph.shape(score.args[1])[2] == TOKENS
    assert cores(before) == ["scaled_dot_product_attention"] * 3
    assert cores(after) == ["scaled_dot_product_attention"] * 2 + ["attend_states"]
    # Nothing else speaks for them: the few queries that are kept would do without.
    queries = before.plan.sites[0].leaves if before.plan else 0
    assert queries == 3
    assert without(TOKENS, queries) < with_keys(TOKENS, queries) / 2


@pytest.mark.parametrize("read", [lambda x: x.mean(1), lambda x: x], ids=["mean", "tokens"])
def test_as_many_queries_as_keys_have_keys_and_values(read: Callable[[Tensor], Tensor]) -> None:
    assert folded(ViT(read=read)) == 0


@pytest.mark.parametrize(("queries", "expected"), [(1, 1), (2, 1), (3, 1), (4, 0), (12, 0)])
def test_it_is_done_where_it_saves_half_of_the_operations(queries: int, expected: int) -> None:
    tokens = TOKENS + queries
    assert (without(tokens, queries) <= with_keys(tokens, queries) / 2) == bool(expected)
    before, after = passed(ViT(suffix=queries, read=lambda x: x[:, -queries:]))
    assert counts(after, "fold_key_value") == {"folded": expected}
    assert figures.flops(before) - figures.flops(after) == expected * saved(tokens, queries)


class Twice(Pooled):
    """Its keys are an output as well."""

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x = self.norm(self.blocks(self.embed(pixels)))
        layers = (self.probe.expand(x.shape[0], -1, -1), self.keys(x), self.values(x))
        query, key, value = (made.unflatten(2, (HEADS, -1)).transpose(1, 2) for made in layers)
        return self.head(F.scaled_dot_product_attention(query, key, value).flatten(1)), key


class Unlike(Pooled):
    """Keys are made of other states than values."""

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.norm(self.blocks(self.embed(pixels)))
        layers = (self.probe.expand(x.shape[0], -1, -1), self.keys(x.sin()), self.values(x))
        query, key, value = (made.unflatten(2, (HEADS, -1)).transpose(1, 2) for made in layers)
        return self.head(F.scaled_dot_product_attention(query, key, value).flatten(1))


@pytest.mark.parametrize("model", [Twice, Unlike])
def test_keys_of_their_own_are_made(model: type[nn.Module]) -> None:
    assert folded(model()) == 0


@pytest.mark.parametrize(("mode", "expected"), [("static", 1), ("padded", 1), ("packed", 0), ("masked", 0)])
def test_modes_with_attention_of_their_own_have_keys(mode: str, expected: int) -> None:
    model, x = ViT(depth=3).eval(), pixels(2)
    fast = prunec.transform(model, prunec.Policy.load("norm", keep_per_site=0.5), mode=mode, example=x)
    assert counts(fast.__dict__["program"], "fold_key_value") == {"folded": expected}
    same = prunec.transform(model, prunec.Policy.load("norm", keep=1.0), mode=mode, example=x)
    with torch.no_grad():
        torch.testing.assert_close(same(x), model(x), rtol=0, atol=1e-5)
