from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from prunec import ops
from prunec.errors import UsageError
from prunec.ir import graph
from prunec.ir.program import Program
from tests import moding, tiny
from tests.passes.packing import (
    THRESHOLD,
    assert_same,
    packed,
    padded,
)
from tests.tiny import ViT, counts, pixels, recognised

CHANNELWISE = ("linear", "layer_norm", "gelu")


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


def test_a_fixed_batch_is_refused_and_other_modes_are_named() -> None:
    program = padded(ViT(depth=2))
    fixed = program.replace(interface=dataclasses.replace(program.interface, batch=None))
    with pytest.raises(UsageError, match="fixes the batch") as caught:
        packed(fixed)
    assert caught.value.remedy == "modes that can: static, padded, masked"


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
