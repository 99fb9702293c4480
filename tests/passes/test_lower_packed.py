"""Rows of all images as rows of one: what runs on them, what does not, and that nothing changes."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from prunec import ops
from prunec.errors import UsageError
from prunec.ir import graph
from prunec.ir.program import Planned, Program
from prunec.passes import run_passes
from prunec.passes.lower_packed import LowerPacked
from prunec.policy.lowering import choose
from tests import moding, tiny
from tests.passes.test_ragged import Biased
from tests.tiny import Attention, Block, Mlp, ViT, counts, pixels, recognised

THRESHOLD = {"selector": "threshold", "fate": "preserve", "reactivate": True}
CHANNELWISE = ("linear", "layer_norm", "gelu")


def padded(model: nn.Module, **choices: Any) -> Planned:
    return moding.plain(recognised(model), tiny.policy(**{**THRESHOLD, **choices}))


def packed(program: Program, attention: str = "rows") -> Program:
    lowering = choose(program.plan.rules, "packed")
    program = program.replace(plan=dataclasses.replace(program.plan, lowering=lowering))
    return run_passes((LowerPacked(attention),), program)  # type: ignore[arg-type]


class Shapes(moding.Tracking):
    """The shape of every result, by operator."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes.append((graph.op(n), tuple(result.shape)))
        return result


def shapes(program: Program, images: Tensor, kept: Tensor | None = None) -> list[tuple[str, tuple[int, ...]]]:
    """Every operator that a run met, with the shape of what it made."""
    tracking = Shapes(program, kept)
    tracking.shapes = []  # type: ignore[attr-defined]
    with torch.no_grad():
        tracking.run(images)
    return tracking.shapes  # type: ignore[attr-defined,no-any-return]


def kept_of(program: Program, *sizes: int) -> Tensor:
    """One site, where image n keeps its class token and the first `sizes[n] - 1` patches."""
    return torch.stack([torch.arange(26) < size for size in sizes]).unsqueeze(0)


def assert_same(program: Program, other: Program) -> None:
    kept, images = moding.kept_sets(program, 4), pixels(4)
    moding.assert_modes_agree({"padded": program, "other": other}, lambda x: [x], images, kept)


def test_a_block_behind_one_site() -> None:
    model = ViT(depth=2, read=lambda x: x)
    program = packed(padded(model))
    # the gather; norm, qkv, reshape, permute, unbind and its three, attention, transpose, reshape,
    # projection, add; norm, linear, gelu, linear, add
    assert counts(program, "pack rows") == {"packed": 19, "attention": 1, "picks": 0, "spreads": 0}
    found = Counter(tiny.dialect_of(program))
    expected = {"attend": 1, "rows_of": 1, "slots": 0, "places": 1, "unpad": 1, "put": 1, "valid_mask": 1}
    assert {name: found[name] for name in expected} == expected
    assert not {"gather", "scatter", "key_mask", "pad"} & set(found)
    assert "scaled_dot_product_attention" in tiny.targets_of(program)  # of the block before


def test_what_looks_at_channels_runs_on_as_many_rows_as_are_kept() -> None:
    program = packed(padded(ViT(depth=2, read=lambda x: x)))
    sizes = (26, 3, 9)
    made = shapes(program, pixels(3), kept_of(program, *sizes))
    second = [(op, shape) for op, shape in made if op in CHANNELWISE][-9:-2]  # before the last norm and head
    assert [op for op, _ in second] == [
        "layer_norm", "linear", "linear", "layer_norm", "linear", "gelu", "linear",
    ]  # fmt: skip
    assert {shape[:2] for _, shape in second} == {(1, sum(sizes))}
    assert [shape for op, shape in made if op == "attend"] == [(1, 2, sum(sizes), 8)]
    longest = [shape for op, shape in made if shape[:2] == (3, max(sizes)) and op in CHANNELWISE]
    assert len(longest) == 7 + 2  # block 0, the last norm and the head: nothing is padded


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"fate": "drop", "reactivate": False, "restore": "none", "where": "after_attention", "blocks": [0]},
        {"fate": "fuse", "reactivate": False, "weights": "uniform", "scorer": "norm", "restore": "stale"},
        {"scorer": "mlp", "reactivate": False, "blocks": [1, 2]},
    ],
    ids=["preserve", "drop", "fuse", "twice"],
)
def test_it_computes_what_the_padded_program_does(choices: dict[str, Any]) -> None:
    program = padded(ViT(depth=3), **choices)
    assert_same(program, packed(program))


def test_rows_are_taken_from_rows_that_are_packed_already() -> None:
    model = ViT(depth=3, read=lambda x: x)
    program = packed(padded(model, reactivate=False, blocks=[1, 2], scorer="mlp"))
    found = Counter(tiny.dialect_of(program))
    assert (found["unpad"], found["keep"], found["put_among"], found["put"]) == (1, 1, 1, 1)
    assert counts(program, "pack rows")["attention"] == 2


def test_padded_attention_gives_what_rows_give() -> None:
    program = padded(ViT(depth=2, read=lambda x: x))
    rows, other = packed(program), packed(program, "padded")
    assert counts(other, "pack rows")["attention"] == 0
    assert counts(other, "pack rows")["spreads"] > counts(rows, "pack rows")["spreads"]
    assert ops.attend not in {node.target for node in other.graph.nodes}
    assert_same(rows, other)
    assert_same(program, other)


# --- near misses: what stays padded -----------------------------------------------------------


def packed_ops(program: Program) -> set[str]:
    """Operators whose result is packed rows, as the types have it."""
    (rows,) = (node for node in program.graph.nodes if node.target is ops.rows_of)
    total = rows.meta["val"].shape[1]
    return {
        graph.op(node)
        for node in program.graph.nodes
        if isinstance(node.meta.get("val"), Tensor)
        and any(size is total or str(size) == str(total) for size in node.meta["val"].shape)
    }


def last_block(mlp: type[nn.Module], attention: type[nn.Module] = Attention) -> ViT:
    """Two blocks, the second one with parts of its own."""
    model = ViT(depth=2, read=lambda x: x)
    model.blocks[1] = Block(attention, mlp)
    return model.eval()


class Overwriting(Mlp):
    """The first row is a parameter's, wherever it came from."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(1, 1, 16))

    def forward(self, x: Tensor) -> Tensor:
        first = self.first.expand(x.shape[0], -1, -1)
        return self.down(F.gelu(self.up(torch.slice_scatter(x, first, 1, 0, 1))))


class Prepending(Mlp):
    """The same by cutting the row off and putting another one in front."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(1, 1, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(torch.cat([self.first.expand(x.shape[0], -1, -1), x[:, 1:]], dim=1))))


class Summing(Mlp):
    """Every row sees those before it: rows meet."""

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x).cumsum(dim=1) / 10))


@pytest.mark.parametrize(
    ("mlp", "operator"), [(Overwriting, "slice_scatter"), (Prepending, "cat"), (Summing, "cumsum")]
)
def test_what_depends_on_places_or_lets_rows_meet_is_not_packed(mlp: type[nn.Module], operator: str) -> None:
    model = last_block(mlp)
    program = padded(model)
    made = packed(program)
    assert operator in tiny.targets_of(made)
    assert operator not in packed_ops(made)
    assert "gelu" in packed_ops(packed(padded(last_block(Mlp))))
    kept, images = moding.kept_sets(program, 4), pixels(4)
    with torch.no_grad():
        one, other = (moding.run(each, [images], kept).result[0] for each in (program, made))
    assert moding.difference(one, other) < moding.TOLERANCE


class Softmaxed(Attention):
    """Weights of keys, converted between softmax and values: they are padded, and hold zeros there."""

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        query, key, value = self.qkv(x).reshape(b, t, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (query @ key.mT).softmax(dim=-1, dtype=torch.float64).to(x.dtype)
        return self.proj((weights @ value).transpose(1, 2).reshape(b, t, c))


@pytest.mark.parametrize("attention", [Softmaxed, Biased])
def test_attention_that_is_spelled_out_or_has_a_mask_of_its_own_stays_padded(
    attention: type[nn.Module],
) -> None:
    program = padded(last_block(Mlp, attention))
    made = packed(program)
    assert counts(made, "pack rows")["attention"] == 0
    assert {"softmax", "matmul"}.isdisjoint(packed_ops(made))
    assert {"gelu", "linear"} <= packed_ops(made)
    assert_same(program, made)


def test_a_fixed_batch_is_refused_and_other_modes_are_named() -> None:
    program = padded(ViT(depth=2))
    fixed = program.replace(interface=dataclasses.replace(program.interface, batch=None))
    with pytest.raises(UsageError, match="fixes the batch") as caught:
        packed(fixed)
    assert caught.value.remedy == "modes that can: static, padded, masked"


# --- gradients --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["padded", "packed"])
def test_gradients_are_those_of_each_image_by_itself(mode: str) -> None:
    model = ViT(depth=2, read=lambda x: x.mean(dim=1)).double()
    program = moding.unfinished(recognised(model, pixels().double()), tiny.policy(**THRESHOLD))
    programs, images = moding.in_all_modes(program), pixels(3).double()
    kept = moding.kept_sets(program, 3, least=1)
    weights = list(model.parameters())

    def gradients(program: Program, x: Tensor, kept: Tensor) -> tuple[Tensor, ...]:
        (out,) = moding.Tracking(program, kept).run(x)
        return torch.autograd.grad(out.square().sum(), weights)

    apart = [gradients(programs["static"], images[[n]], kept[:, [n]]) for n in range(3)]
    expected = [sum(parts) for parts in zip(*apart, strict=True)]
    for one, other in zip(gradients(programs[mode], images, kept), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)
