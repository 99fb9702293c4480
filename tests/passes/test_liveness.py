"""Rows that nobody reads are not computed; every row that is read is what it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunec
from prunec import ops
from prunec.compiler import compile_source, plan
from prunec.frontend import sources
from prunec.ir import graph
from prunec.ir.program import Program
from prunec.measure import figures
from prunec.passes import run_passes
from prunec.passes.controls import RandomScores, Slices
from prunec.passes.liveness import Liveness
from prunec.policy.policy import Policy
from prunec.verify.certificate import certify
from tests import tiny
from tests.tiny import Attention, Block, ViT, counts, pixels, recognised, run

pytestmark = pytest.mark.usefixtures("recognised_once")

DIM, TOKENS = 16, 26
TOP_K = {"scorer": "cls_attention", "where": "after_attention", "fate": "drop"}


def lean(model: nn.Module, **choices: Any) -> tuple[Program, Program]:
    """Dense program, and the same without unread rows; first the proof that no value changed."""
    dense = recognised(model.eval())
    program = run_passes((Liveness(),), tiny.repaired(dense, **{"blocks": [], **choices}))
    certificate = certify(dense, program, (pixels(3),))
    assert max(certificate.identity, certificate.permutation) <= 1e-6
    return dense, program


def stage_notes(program: Program) -> tuple[str, ...]:
    return next(stage.notes for stage in program.stages if stage.name == "liveness")


def heights(program: Program, operator: str) -> list[int | str]:
    """The number of rows in the result of each call of an operator, symbols as text."""
    nodes = [node for node in program.graph.nodes if graph.op(node) == operator]
    sizes = [graph.shape(node)[-2] for node in nodes]
    return [size if isinstance(size, int) else str(size) for size in sizes]


# --- a class token ----------------------------------------------------------------------------


def last_block_by_hand(model: ViT, x: Tensor, rows: Tensor) -> Tensor:
    """The last block with queries, projection and MLP for some rows, keys and values for all."""
    *blocks, last = model.blocks
    x = nn.Sequential(*blocks)(model.embed(x))
    normed = last.norm1(x)
    weights, bias = last.attn.qkv.weight.chunk(3), last.attn.qkv.bias.chunk(3)

    def heads(value: Tensor) -> Tensor:
        return value.unflatten(-1, (2, 8)).transpose(1, 2)

    query = heads(F.linear(normed[:, rows], weights[0], bias[0]))
    key, value = (heads(F.linear(normed, weights[place], bias[place])) for place in (1, 2))
    mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    x = x[:, rows] + last.attn.proj(mixed)
    return x + last.mlp(last.norm2(x))


def test_a_class_token_leaves_one_row_of_the_last_block() -> None:
    model, x = ViT(depth=3).eval(), pixels(3)
    dense, program = lean(model)
    assert stage_notes(program) == ("rows 1 of 26 from block 2",)
    assert heights(program, "layer_norm") == [26, 26, 26, 26, 26, 1, 1]
    # qkv, out, up and down of two blocks, then keys and values, the queries, and the rest of the last one
    assert heights(program, "linear")[:-1] == [26] * 8 + [26, 1, 1, 1, 1]
    with torch.no_grad():
        expected = model.head(model.norm(last_block_by_hand(model, x, torch.tensor([0])))[:, 0])
    torch.testing.assert_close(run(program, x)[0], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(run(program, x)[0], run(dense, x)[0], rtol=0, atol=1e-6)
    rest = TOKENS - 1
    left_out = 2 * rest * DIM * (DIM + DIM + 4 * DIM) + 2 * 2 * rest * TOKENS * DIM
    assert figures.flops(dense) - figures.flops(program) == left_out


def test_weights_are_cut_in_the_graph_and_keep_their_names() -> None:
    model = ViT().eval()
    fast = prunec.transform(model, "none", example=pixels())
    assert list(fast.state_dict()) == list(model.state_dict())
    program = fast.__dict__["program"]
    cuts = [
        (str(node.args[0]), *node.args[1:])
        for node in program.graph.nodes
        if node.target is ops.rows and "qkv_weight" in str(node.args[0])
    ]
    thirds = ((0, 16), (16, 32), (32, 48))  # of queries, keys and values
    assert cuts == [("blocks_1_attn_qkv_weight", 0, *third) for third in thirds]
    fast.load_state_dict({name: value + 0.1 for name, value in model.state_dict().items()})
    x = pixels(2)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=0, atol=1e-5)  # the parameters are shared


def test_a_small_vit_computes_all_that_is_read_and_no_more() -> None:
    program = recognised(timm.create_model("vit_small_patch16_224").eval(), torch.randn(2, 3, 224, 224))
    dense = figures.flops(program)
    made = figures.flops(run_passes((Liveness(),), plan(program, Policy.load("none"))))
    width, tokens = 384, 197
    left_out = 2 * 196 * width * (width + width + 8 * width) + 2 * 2 * 196 * tokens * width
    assert dense - made == left_out
    patches_and_head = 2 * 196 * 768 * width + 2 * width * 1000
    assert left_out / (dense - patches_and_head) > 0.07  # of the blocks; 6.93% of the whole


# --- other readers ----------------------------------------------------------------------------


def test_tokens_at_the_end_are_read_at_the_end_of_a_shortened_stream_too() -> None:
    model = ViT(suffix=3, read=lambda x: x[:, -3:])
    for blocks in ([], [1]):
        dense, program = lean(model, blocks=blocks)
        assert heights(program, "layer_norm")[-2:] == [3, 3]
        same = tiny.pruned(dense, blocks=blocks, keep=1.0)
        x = pixels(3)
        torch.testing.assert_close(run(same, x)[0], run(dense, x)[0], rtol=0, atol=1e-6)


def test_registers_that_nobody_reads_are_keys_and_values_only() -> None:
    _, program = lean(ViT(prefix=5))
    assert stage_notes(program) == ("rows 1 of 30 from block 1",)


def test_two_heads_share_their_rows() -> None:
    _, program = lean(ViT(prefix=2, read=lambda x: x[:, 0] + x[:, 1]))
    assert stage_notes(program) == ("rows 2 of 27 from block 1",)
    assert heights(program, "scaled_dot_product_attention") == [27, 2]


def test_rows_far_apart_are_computed_apart() -> None:
    _, program = lean(ViT(suffix=1, read=lambda x: x[:, 0] + x[:, -1]))
    assert heights(program, "scaled_dot_product_attention") == [27, 1, 1]


class Shift(nn.Module):
    """Looks at its neighbour: no operator along the tokens is local, though no row sees all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(DIM, DIM, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.transpose(1, 2)).transpose(1, 2)


def test_what_is_after_the_last_mixing_of_rows_is_cut_and_what_is_before_is_not() -> None:
    class Mixed(ViT):
        def forward(self, pixels: Tensor) -> Tensor:
            return self.head(self.norm(self.shift(self.blocks(self.embed(pixels))))[:, 0])

        def __init__(self) -> None:
            super().__init__()
            self.shift = Shift()

    _, program = lean(Mixed())
    assert counts(program, "liveness") == {"operators": 0, "cuts": 0}


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x,
        lambda x: x.mean(1),
        lambda x: x.amax(1),
        lambda x: x[:, 1:].mean(1),
        lambda x: torch.cat([x[:, 0], x[:, 1:].mean(1)], -1)[:, :DIM] * x.mean(),
        lambda x: x.sort(1).values[:, 0],
        lambda x: x.cumsum(1)[:, -1],
        lambda x: x.flip(1)[:, 0] + x.mean(1),
    ],
    ids=["tokens", "mean", "max", "patch mean", "both", "sort", "sum", "last and mean"],
)
def test_a_head_that_reads_every_row_changes_nothing(read: Callable[[Tensor], Tensor]) -> None:
    dense, program = lean(ViT(read=read))
    assert counts(program, "liveness") == {"operators": 0, "cuts": 0}
    assert stage_notes(program) == ()
    assert [node.name for node in program.graph.nodes] == [node.name for node in dense.graph.nodes]


def test_a_row_that_moved_is_followed() -> None:
    _, program = lean(ViT(read=lambda x: x.flip(1)[:, 0]))
    assert stage_notes(program) == ("rows 1 of 26 from block 1",)


def test_a_tap_in_the_middle_keeps_its_rows() -> None:
    class Tapped(ViT):
        def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
            x = self.blocks[0](self.embed(pixels))
            return self.head(self.norm(self.blocks[1](x))[:, 0]), x

    _, program = lean(Tapped())
    assert heights(program, "scaled_dot_product_attention") == [26, 1]


# --- operands that are indexed by token -------------------------------------------------------


class Tables(Attention):
    """A bias for each pair of tokens, a mask of the same shape, a table for queries and keys."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(2, TOKENS, TOKENS))
        self.turn = nn.Parameter(torch.randn(TOKENS, 8))
        self.register_buffer("mask", torch.rand(TOKENS, TOKENS) > 0.2)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        scores = (query * self.turn) @ (key * self.turn).mT + self.bias
        scores = scores.masked_fill(~self.mask, -1e4)
        return self.proj((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))


class Masked(Attention):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.rand(TOKENS, TOKENS) > 0.2)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=self.mask)
        return self.proj(out.transpose(1, 2).flatten(2))


class Rotary(Attention):
    """A table without rows for the class token: the stream is taken apart and put together again."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(TOKENS - 1, 8))

    def turn(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :, :1], x[:, :, 1:] * self.table], dim=2)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(self.turn(query), self.turn(key), value)
        return self.proj(out.transpose(1, 2).flatten(2))


class Normalised(Attention):
    """Weights that are made to sum to one again: an operator that drops the axis of the keys."""

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        weights = (query @ key.mT).softmax(-1) * 0.5
        weights = weights / weights.sum(-1).unsqueeze(-1)
        return self.proj((weights @ value).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("attention", [Tables, Masked, Rotary, Normalised])
@pytest.mark.parametrize(
    "choices", [{}, {"blocks": [1]}, {**TOP_K, "blocks": [0]}], ids=["none", "norm", "top k"]
)
def test_tables_and_masks_are_cut_to_the_rows_that_are_read(
    attention: type[Attention], choices: dict[str, Any]
) -> None:
    _, program = lean(ViT(lambda: Block(attention)), **choices)
    assert heights(program, "gelu")[-1] == 1


# --- selections -------------------------------------------------------------------------------


def test_the_queries_of_a_site_are_gathered_before_its_attention() -> None:
    model, x = ViT(depth=3).eval(), pixels(3)
    dense, program = lean(model, **TOP_K, blocks=[1])
    assert stage_notes(program) == ("rows 14 of 26 from block 1", "rows 1 of 14 from block 2")
    late = tiny.repaired(dense, **TOP_K, blocks=[1])  # all queries, then the gather
    torch.testing.assert_close(run(program, x)[0], run(late, x)[0], rtol=0, atol=1e-6)
    attention = [node for node in program.graph.nodes if graph.op(node) == "scaled_dot_product_attention"]
    queries, keys = ([str(graph.shape(node.args[place])[2]) for node in attention] for place in (0, 1))
    kept = str(graph.shape(graph.by_name(program.graph)["select_0"])[1])
    assert queries == ["26", kept, "1"]
    assert keys == ["26", "26", kept]


@pytest.mark.parametrize(("keep", "kept", "split"), [(0.5, 14, False), (0.25, 8, True)])
def test_the_work_of_a_site_is_that_of_its_kept_queries(keep: float, kept: int, split: bool) -> None:
    dense, program = lean(ViT(depth=3), **TOP_K, blocks=[1], keep=keep)
    late = tiny.repaired(dense, **TOP_K, blocks=[1], keep=keep)
    dropped, last = TOKENS - kept, kept - 1
    at_the_site = 2 * dropped * DIM * DIM + 2 * 2 * dropped * TOKENS * DIM  # projection, K x N attention
    if split:  # where it pays, the queries have a product of their own; the score needs one more row
        at_the_site += 2 * (dropped - 1) * DIM * DIM
    at_the_end = 2 * last * DIM * (DIM + DIM + 4 * DIM) + 2 * 2 * last * kept * DIM
    assert figures.flops(late) - figures.flops(program) == at_the_site + at_the_end


def test_dropped_tokens_that_come_back_are_computed() -> None:
    class Dense(ViT):
        def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
            x = self.norm(self.blocks(self.embed(pixels)))
            return self.head(x[:, 0]), x

    _, program = lean(Dense(depth=3), **TOP_K, blocks=[1])
    assert counts(program, "liveness") == {"operators": 0, "cuts": 0}


def test_a_fused_token_reads_every_row() -> None:
    _, program = lean(ViT(depth=3), fate="fuse", where="after_attention", blocks=[1])
    assert stage_notes(program) == ("rows 1 of 15 from block 2",)


def test_a_score_that_reads_every_row_leaves_its_block_alone() -> None:
    _, program = lean(ViT(depth=3), where="after_attention", blocks=[1])
    assert stage_notes(program) == ("rows 1 of 14 from block 2",)


@pytest.mark.parametrize("row", [0, 1])
def test_the_row_that_scores_is_found_where_it_stands(row: int) -> None:
    _, program = lean(ViT(depth=3, prefix=2, read=lambda x: x[:, row]), **TOP_K, blocks=[1])
    (score,) = [node for node in program.graph.nodes if node.target is ops.class_attention]
    assert graph.shape(score.args[0])[2] == 1
    assert score.args[2] == 0  # the only row that is left


def test_controls_get_the_same_rows() -> None:
    dense, program = lean(ViT(depth=3), **TOP_K, blocks=[1])
    ideal = run_passes((Slices(),), program)
    score = 2 * TOKENS * DIM  # the attention of one row
    assert figures.flops(program) - figures.flops(ideal) == score
    random = run_passes((RandomScores(),), program)
    x = pixels(3)
    assert run(random, x)[0].shape == run(dense, x)[0].shape
    assert not any(node.target is ops.class_attention for node in random.graph.nodes)


# --- batches and targets ----------------------------------------------------------------------


def test_any_batch_and_one_image() -> None:
    dense, program = lean(ViT(depth=3), **TOP_K, blocks=[1], keep=1.0)
    for batch in (1, 2, 5):
        x = pixels(batch)
        torch.testing.assert_close(run(program, x)[0], run(dense, x)[0], rtol=0, atol=1e-6)


def test_a_double_precision_model_is_exact_to_the_last_digits() -> None:
    model = ViT(depth=3).double().eval()
    x = pixels(2).double()
    fast = prunec.transform(model, "none", example=x)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=0, atol=1e-14)


def test_a_half_precision_model_is_watched_too() -> None:
    model = ViT(depth=3).to(torch.bfloat16).eval()
    fast = prunec.transform(model, "none", example=pixels(2).bfloat16())
    assert stage_notes(fast.__dict__["program"]) == ("rows 1 of 26 from block 2",)


def test_policy_none_is_the_default_passes_without_sites() -> None:
    compiled = compile_source(sources.from_module(ViT().eval(), pixels()), Policy.load("none"))
    assert compiled.pruned.plan.sites == ()
    assert compiled.certificate.identity <= 1e-6
    assert figures.flops(compiled.pruned) < figures.flops(compiled.dense)
