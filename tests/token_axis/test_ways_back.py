"""How a pruned stream becomes whole again: up one selection at a time, each dropped group written once.

The reference holds every token of one image in a buffer, and writes only the rows that go on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx

from prunec import ops
from prunec.ir.arguments import bind, operand
from prunec.ir.program import Program
from prunec.passes import run_passes
from prunec.passes.controls import Slices
from prunec.verify.certificate import certify
from tests import tiny
from tests.tiny import Attention, Block, ViT, dialect_of, pixels, recognised, run

Choose = Callable[[int, Tensor, Tensor], Tensor]  # site, stream [T, C], rows that are left -> rows that go on

RAGGED = {"selector": "threshold"}
LIMITS = (4.2, 4.4, 4.6)


class Taps(ViT):
    """The states behind some blocks, and then a head that reads every token."""

    def __init__(self, *taps: int, **options: Any) -> None:
        super().__init__(depth=4, **options)
        self.taps = taps

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        x, taken = self.embed(pixels), []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in self.taps:
                taken.append(self.norm(x))
        return *taken, self.head(self.norm(x))


class TokensFirst(Attention):
    def forward(self, x: Tensor) -> Tensor:
        t, b, c = x.shape
        query, key, value = self.qkv(x).reshape(t, b, 3, 2, c // 2).permute(2, 1, 3, 0, 4).unbind(0)
        out = F.scaled_dot_product_attention(query, key, value)
        return self.proj(out.permute(2, 0, 1, 3).reshape(t, b, c))


class TokensFirstViT(ViT):
    """States of [T, B, C]."""

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.embed(pixels).transpose(0, 1).contiguous()
        return self.head(self.norm(self.blocks(x))).transpose(0, 1)


def program_of(model: ViT, **choices: Any) -> Program:
    """The model with its sites, every way back in place and no other pass; certified."""
    dense = recognised(model)
    program = tiny.repaired(dense, **choices)
    for number, site in enumerate(program.plan.sites):
        if site.ragged:
            program.module.get_buffer(f"prunec.site_{number}.threshold").fill_(LIMITS[number])
    certify(dense, program, (pixels(3),))
    return program


def chosen(program: Program) -> Choose:
    """The selection of each site, written anew: by the norm of each token behind the first."""

    def choose(number: int, x: Tensor, rows: Tensor) -> Tensor:
        site, norms = program.plan.sites[number], x[rows][1:].norm(dim=-1)
        if site.ragged:
            kept = norms > program.module.get_buffer(f"prunec.site_{number}.threshold")
            kept[norms.argmax()] = True
            best = kept.nonzero()[:, 0]
        else:
            best = norms.topk(site.keep).indices.sort().values
        return rows[torch.cat([torch.tensor([0]), best + 1])]

    return choose


def states(model: ViT, program: Program, image: Tensor) -> tuple[list[Tensor], list[int]]:
    """Of one image: all tokens behind each block, and how many go on at each site."""
    choose, dim, late = (
        chosen(program),
        program.anatomy.token_dim,
        program.plan.sites[0].where != "before_block",
    )
    sites = [site.block for site in program.plan.sites]
    x = model.embed(image[None])[0]
    every = rows = torch.arange(len(x))
    found, counts = [], []

    def select(block: int) -> None:
        nonlocal rows
        if block in sites:
            rows = choose(sites.index(block), x, rows)
            counts.append(len(rows))

    def add(x: Tensor, norm: Any, branch: Any) -> Tensor:
        alone = x[rows].unsqueeze(1 - dim)
        return x.index_add(0, rows, branch(norm(alone)).squeeze(1 - dim))

    for number, block in enumerate(model.blocks):
        rows = every if number == program.plan.rejoin else rows
        _ = late or select(number)
        x = add(x, block.norm1, block.attn)
        _ = late and select(number)
        x = add(x, block.norm2, block.mlp)
        found.append(x)
    return found, counts


def check(model: ViT, program: Program, images: Tensor) -> list[tuple[int, ...]]:
    """Every output is what the reference says; how many rows of each image go on at each site."""
    with torch.no_grad():
        found = [states(model, program, image) for image in images]
        stream = [torch.stack(same) for same in zip(*(each for each, _ in found), strict=True)]
        taps = [model.norm(stream[number]) for number in getattr(model, "taps", ())]
        expected = [*taps, model.head(model.norm(stream[-1]))]
    for one, other in zip(run(program, images), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    return [tuple(counts) for _, counts in found]


def ways(program: Program, operator: Callable[..., Any] = ops.scatter) -> list[fx.Node]:
    return [node for node in program.graph.nodes if node.target is operator]


def lengths(program: Program, operator: Callable[..., Any]) -> list[int]:
    """How many rows each call of an operator yields."""
    found: list[int] = []

    class Watching(fx.Interpreter):
        def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
            result = super().call_function(target, args, kwargs)
            if target is operator:
                found.append(result.shape[1])
            return result

    with torch.no_grad():
        Watching(program.module).run(pixels(2))
    return found


# --- counts and structure ---------------------------------------------------------------------


@pytest.mark.parametrize("where", ["before_block", "after_attention"])
@pytest.mark.parametrize(("sites", "expected"), [([1], [26]), ([1, 2], [14, 26]), ([1, 2, 3], [8, 14, 26])])
def test_one_step_for_each_selection_and_only_the_last_is_full(
    sites: list[int], expected: list[int], where: str
) -> None:
    program = program_of(Taps(), blocks=sites, where=where)
    assert tiny.counts(program, "repair tokens")["scatters"] == len(sites)
    assert lengths(program, ops.scatter) == expected
    assert dialect_of(program) == ["token_norm", "select", "gather"] * len(sites) + ["scatter"] * len(sites)
    x = None
    for number, step in zip(reversed(range(len(sites))), ways(program), strict=True):
        base, short, rows, dim = step.args
        (gather,) = [user for user in rows.users if user.target is ops.gather]
        assert (rows.name, dim) == (f"select_{number}", 1)
        assert base is gather.args[0]  # the stream from which the selection took its rows
        assert x is None or short is x
        x = step


def test_the_ideal_control_takes_the_same_steps() -> None:
    program = run_passes((Slices(),), program_of(Taps(), blocks=[1, 2, 3]))
    assert set(dialect_of(program)) == {"put_first"}
    assert lengths(program, ops.put_first) == [8, 14, 26]
    assert run(program, pixels(3))[0].shape == (3, 26, 7)


def test_each_tap_is_written_at_full_length_once() -> None:
    program = program_of(Taps(1, 2, 3), blocks=[1, 2, 3], where="after_attention")
    # behind block 1, behind block 2, and behind block 3, which two outputs share
    assert lengths(program, ops.scatter) == [26, 14, 26, 8, 14, 26]


def test_a_stream_that_is_whole_already_is_where_the_next_one_is_written() -> None:
    program = program_of(Taps(1, 2), blocks=[1, 2, 3])
    first, second, third = ways(program)
    assert lengths(program, ops.scatter) == [26, 26, 26]
    assert (second.args[0], third.args[0]) == (first, second)
    assert [step.args[2].name for step in (first, second, third)] == ["select_0", "origin_1", "origin_2"]


def test_all_come_back_before_the_last_block() -> None:
    program = program_of(Taps(), blocks=[1, 2], fate="preserve", restore="rejoin")
    assert lengths(program, ops.scatter) == [14, 26]
    assert program.plan.rejoin == 3


@pytest.mark.parametrize("fate", ["drop", "merge"])
def test_copies_go_all_the_way_at_once(fate: str) -> None:
    program = program_of(Taps(), blocks=[1, 2], fate=fate, restore="copy")
    (copied,) = [node for node in program.graph.nodes if node.target is ops.share]
    assert (bind(copied)["base"], bind(copied)["at"]) == (None, None)
    assert operand(copied, "group").target is ops.compose
    assert lengths(program, ops.share) == [26]
    assert "scatter" not in dialect_of(program)


@pytest.mark.parametrize("fate", ["drop", "merge"])
def test_updates_go_up_one_selection_at_a_time(fate: str) -> None:
    program = program_of(Taps(), blocks=[1, 2], fate=fate, restore="share")
    assert lengths(program, ops.share) == [14, 26]
    assert "scatter" not in dialect_of(program)
    for step, number in zip(ways(program, ops.share), (1, 0), strict=True):
        group, base, at = (operand(step, name) for name in ("group", "base", "at"))
        assert operand(group, "index").name == f"select_{number}"
        assert at.target is (ops.pool if fate == "merge" else ops.gather)
        assert operand(at, "x") is base  # the stream from which the selection took its rows


@pytest.mark.parametrize("restore", ["copy", "share"])
def test_who_stands_for_a_token_is_said_once_for_all_taps(restore: str) -> None:
    program = program_of(Taps(1, 2), blocks=[1, 2], restore=restore)
    assert [dialect_of(program).count(name) for name in ("similarities", "nearest", "assign")] == [2, 2, 2]


# --- numerics ---------------------------------------------------------------------------------

KINDS: dict[str, dict[str, Any]] = {
    "drop": {},
    "preserve": {"fate": "preserve"},
    "drop, each image as many as it needs": RAGGED,
    "preserve, each image as many as it needs": {"fate": "preserve", **RAGGED},
}


@pytest.mark.parametrize("taps", [(), (0, 1, 2)])
@pytest.mark.parametrize("where", ["before_block", "after_attention"])
@pytest.mark.parametrize("sites", [[1], [1, 2, 3]])
@pytest.mark.parametrize("kind", KINDS)
def test_every_token_is_as_it_was_when_it_was_left_out(
    kind: str, sites: list[int], where: str, taps: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    model = Taps(*taps).eval()
    program = program_of(model, blocks=sites, where=where, **KINDS[kind])
    counts = check(model, program, pixels(4) * torch.linspace(0.2, 3, 4).view(4, 1, 1, 1))
    ragged = "selector" in KINDS[kind]
    assert all((len(set(column)) > 1) == ragged for column in zip(*counts, strict=True))  # there is padding


@pytest.mark.parametrize("choices", [{}, {"fate": "preserve", **RAGGED}])
def test_tokens_may_come_first(choices: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = TokensFirstViT(lambda: Block(TokensFirst), depth=4).eval()
    program = program_of(model, blocks=[1, 2, 3], **choices)
    assert program.anatomy.token_dim == 0
    assert len(ways(program)) == 3
    check(model, program, pixels(4) * torch.linspace(0.2, 3, 4).view(4, 1, 1, 1))


@pytest.mark.parametrize("choices", [{}, RAGGED])
def test_tokens_that_rejoin_are_as_they_were(choices: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = Taps().eval()
    program = program_of(model, blocks=[1, 2], fate="preserve", restore="rejoin", **choices)
    check(model, program, pixels(4) * torch.linspace(0.2, 3, 4).view(4, 1, 1, 1))


@functools.cache
def ragged() -> tuple[ViT, Program]:
    torch.manual_seed(0)
    model = Taps(1).eval()
    return model, program_of(model, blocks=[1, 2, 3], **RAGGED)


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.sampled_from([0.0, 3.0, 4.0, 4.5, 5.0, 6.0, 99.0]), min_size=3, max_size=3),
    st.lists(st.sampled_from([0.1, 0.5, 1.0, 2.0, 4.0]), min_size=1, max_size=5),
)
def test_whatever_the_images_keep(limits: list[float], loudness: list[float]) -> None:
    model, program = ragged()
    for number, limit in enumerate(limits):
        program.module.get_buffer(f"prunec.site_{number}.threshold").fill_(limit)
    check(model, program, pixels(len(loudness)) * torch.tensor(loudness).view(-1, 1, 1, 1))
