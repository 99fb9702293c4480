from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunec import ops
from prunec.ir.program import Program
from prunec.passes import run_passes
from prunec.passes.controls import RandomScores, Slices
from tests.tiny import Attention, Block, ViT, counts, dialect_of, pixels, pruned, recognised, run


class Again(ViT):
    """Positions are added again before each block, and the head reads every token."""

    def __init__(self, **options: Any) -> None:
        super().__init__(read=lambda x: x, **options)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.embed(pixels)
        for block in self.blocks:
            x = block(x) + self.embed.position
        return self.head(self.read(self.norm(x)))


def ideal(program: Program) -> Program:
    return run_passes((Slices(),), program)


def sliced(model: ViT, x: Tensor, lengths: dict[int, int]) -> Tensor:
    """The model with x[:, :n] before some blocks, in plain PyTorch."""
    x = model.embed(x)
    for number, block in enumerate(model.blocks):
        x = block(x[:, : lengths.get(number, x.shape[1])])
    return model.head(model.norm(x)[:, 0])


@pytest.mark.parametrize("scorer", ["norm", "cls_attention"])
def test_slices_are_the_model_on_the_first_rows(scorer: str) -> None:
    model, x = ViT(depth=3).eval(), pixels(3)
    program = ideal(pruned(recognised(model), blocks=[1, 2], scorer=scorer))
    assert counts(program, "ideal slices")["replaced"] >= 3  # two gathers, a length
    # What nobody reads is left out here too, and so are keys and values of the last block.
    assert set(dialect_of(program)) == {"rows", "attend_states"}
    torch.testing.assert_close(run(program, x)[0], sliced(model, x, {1: 14, 2: 8}), rtol=0, atol=1e-6)


def test_a_fused_token_becomes_one_more_row() -> None:
    model, x = ViT().eval(), pixels(3)
    program = ideal(pruned(recognised(model), fate="fuse"))
    assert set(dialect_of(program)) == {"rows", "attend_states"}
    torch.testing.assert_close(run(program, x)[0], sliced(model, x, {1: 15}), rtol=0, atol=1e-6)


def test_tables_are_sliced_and_the_way_back_is_a_concatenation() -> None:
    model, x = Again(depth=3).eval(), pixels(3)
    program = ideal(pruned(recognised(model), blocks=[1, 2]))
    assert set(dialect_of(program)) == {"put_first"}
    with torch.no_grad():
        first = model.blocks[0](model.embed(x)) + model.embed.position
        second = model.blocks[1](first[:, :14]) + model.embed.position[:, :14]
        third = model.blocks[2](second[:, :8])
        third = third + model.embed.position[:, :8]  # those that sat a block out have had theirs
        whole = torch.cat([third, second[:, 8:], first[:, 14:]], dim=1)
        expected = model.head(model.norm(whole))
    torch.testing.assert_close(run(program, x)[0], expected, rtol=0, atol=1e-6)


class TableOfPatches(Attention):
    """A table that has no row for the class token."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(25, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x[:, :1], x[:, 1:] * self.table], dim=1)
        return super().forward(x)


def test_a_table_without_the_protected_rows_is_sliced_shorter() -> None:
    program = ideal(pruned(recognised(ViT(lambda: Block(TableOfPatches)))))
    narrow = [node for node in program.graph.nodes if node.target is torch.ops.aten.narrow.default]
    assert sorted(node.args[3] for node in narrow if isinstance(node.args[3], int))[-2:] == [13, 14]
    assert run(program, pixels(3))[0].shape == (3, 7)


@pytest.mark.parametrize("fate", ["drop", "fuse"])
def test_random_scores_change_the_scores_only(fate: str) -> None:
    half = pruned(recognised(ViT(depth=3)), blocks=[1, 2], scorer="cls_attention", fate=fate)
    program = run_passes((RandomScores(),), half)
    assert counts(program, "random control") == {"scores": 2}
    word = "fuse" if fate == "fuse" else "gather"
    weights = ["class_attention"] if fate == "fuse" else []
    found = [name for name in dialect_of(program) if name not in ("rows", "take", "attend_states")]
    assert found == [*weights, "random_score", "select", word] * 2
    selections = [
        [node.args[1:] for node in one.graph.nodes if node.target is ops.select] for one in (half, program)
    ]
    assert selections[0] == selections[1]
    assert program.plan is half.plan
    x = pixels(3)
    assert run(program, x)[0].shape == (3, 7)
    assert not torch.equal(run(program, x)[0], run(program, x)[0])


def test_a_fused_token_keeps_its_weights_which_must_be_shares_of_attention() -> None:
    half = pruned(recognised(ViT()), fate="fuse")
    program = run_passes((RandomScores(),), half)
    (fuse,) = [node for node in program.graph.nodes if node.target is ops.fuse]
    assert fuse.args[1].args[0].target is ops.random_score
    assert fuse.args[2].target is ops.class_attention


def test_the_controls_leave_the_program_they_are_made_from() -> None:
    half = pruned(recognised(ViT()))
    text = str(half.graph)
    ideal(half)
    run_passes((RandomScores(),), half)
    assert str(half.graph) == text
