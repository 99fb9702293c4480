"""A program at its own counts: what has a reference, what has none, and what every selection must be."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from prunec import ops
from prunec.errors import VerificationError
from prunec.ir import graph
from prunec.ir.program import Planned, Program, Recognised
from prunec.verify import invariants, runs
from prunec.verify.certificate import certify
from prunec.verify.choices import Choice, choices, sites_of
from tests.tiny import Attention, Block, ViT, pixels, pruned, recognised


@pytest.fixture(scope="module")
def dense() -> Recognised:
    torch.manual_seed(1)
    return recognised(ViT(depth=3, read=lambda x: x))


@pytest.fixture(scope="module")
def half(dense: Recognised) -> Planned:
    return pruned(dense, blocks=[1, 2])


def test_what_each_site_chose_is_read_off_the_run(half: Planned) -> None:
    with torch.no_grad():
        found = runs.run(half, half.interface.example)
    (index,) = (node for node in half.graph.nodes if node.name == "select_0")
    recorder = graph.Recorder(half.module, {index.name, "select_1"})
    recorder.run(*half.interface.example)
    first, second = found.chosen
    original = recorder.values[index.name].gather(1, recorder.values["select_1"])
    assert [choice.rows.tolist() for choice in first] == recorder.values[index.name].tolist()
    assert [choice.rows.tolist() for choice in second] == original.tolist()
    assert [int(choice.kept.sum()) for choice in (*first, *second)] == [14, 14, 8, 8]
    assert torch.equal(second[0].entering, first[0].alive)
    assert not found.idle


def test_thresholds_that_let_everything_pass_are_proved_on_other_sets(dense: Recognised) -> None:
    program = pruned(dense, blocks=[1, 2], selector="threshold")  # at 0, and a norm is more
    with torch.no_grad():
        assert runs.run(program, program.interface.example).idle
        assert not runs.run(program, program.interface.example, scattered=True).idle
    certificate = certify(dense, program)
    assert certificate.own_counts is not None
    assert 0 < certificate.own_counts < 1e-6


def test_the_first_state_that_differs_is_named(dense: Recognised, half: Planned) -> None:
    program = half.replace(module=graph.copy(half.module))
    hidden = [node for node in program.graph.nodes if graph.op(node) == "gelu"][1]
    index = next(node for node in program.graph.nodes if node.name == "select_0")
    with program.graph.inserting_after(hidden):
        made = program.graph.call_function(shrunk, (hidden, index))
    hidden.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)
    graph.tidy(program.module)
    with pytest.raises(VerificationError, match="at its own counts differs from the dense graph") as caught:
        certify(dense, program)
    assert "blocks.1" in str(caught.value.where)


def shrunk(x: Tensor, index: Tensor) -> Tensor:
    return x * (index.shape[1] / 26)


# --- no reference -------------------------------------------------------------------------------------


class Noisy(ViT):
    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(pixels + torch.rand_like(pixels))


class Paired(ViT):
    """A model that wants two images."""

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.embed(pixels)
        assert x.shape[0] == 2
        return self.head(self.norm(self.blocks(x))[:, 0])


def assert_unproven(program: Program, reason: str) -> None:
    certificate = certify(program, pruned(program))
    assert certificate.own_counts is None
    assert str(certificate.unproven).startswith(reason)
    assert f"not proven at its own counts: {reason}" in str(certificate)


def test_a_model_that_draws_random_numbers_has_no_reference() -> None:
    assert_unproven(recognised(Noisy()), "the model draws random numbers: node rand_like")


def test_nor_has_one_whose_images_cannot_run_by_themselves() -> None:
    with pytest.warns(UserWarning, match="the batch is fixed at 2"):
        program = recognised(Paired())
    assert_unproven(program, "the model's own code fixes the batch")


# --- invariants ---------------------------------------------------------------------------------------


def chosen(half: Planned) -> list[Choice]:
    with torch.no_grad():
        return runs.run(half, half.interface.example).chosen[0]


def changed(choice: Choice, rows: list[int]) -> Choice:
    kept = torch.zeros_like(choice.kept).index_fill(0, torch.tensor(rows), True)
    return dataclasses.replace(choice, rows=torch.tensor(rows), kept=kept)


def test_what_must_be_true_of_a_selection(half: Planned) -> None:
    site, (choice, other) = half.plan.sites[0], chosen(half)
    rows = choice.rows.tolist()
    left = (~choice.kept).nonzero()[:, 0].tolist()
    wrong = {
        "do not begin with 1": rows[1:],
        "are not in order": [0, *rows[:0:-1]],
        "are 12 patches, planned are 13": rows[:-1],
        "one that leaves": sorted([*rows[:-1], left[0]]),
    }
    for words, those in wrong.items():
        with pytest.raises(VerificationError, match=words):
            invariants.check(site, half.plan, [changed(choice, those), other], (1, 0))
    invariants.check(site, half.plan, [choice, other], (1, 0))


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (torch.tensor([[0, 1], [0, 26]]), "are 0 to 26 of 26"),
        (torch.tensor([[0, 1], [3, 3]]), "are not all different"),
        (torch.tensor([[0, 1]]), "expected int64"),
        (torch.tensor([[0.0, 1.0], [0.0, 1.0]]), "expected int64"),
    ],
)
def test_an_index_is_one(half: Planned, index: Tensor, words: str) -> None:
    sites = sites_of(half)
    values = {sites[0].index.name: index, sites[0].score.name: torch.rand(2, 26)}
    with pytest.raises(VerificationError, match=words):
        choices(half, sites, values)


def test_a_class_token_that_was_taken_for_a_patch_is_refused(dense: Recognised) -> None:
    wrong = dense.replace(anatomy=dataclasses.replace(dense.anatomy, prefix=0))
    with pytest.raises(VerificationError, match="no pixel reaches the first 1 and the last 0 rows"):
        certify(wrong, pruned(wrong))


def test_as_many_selections_as_sites(half: Planned) -> None:
    program = half.replace(module=graph.copy(half.module))
    node = next(node for node in program.graph.nodes if node.target is ops.select)
    node.target = torch.topk
    with pytest.raises(VerificationError, match="the plan has 2 sites, the rewritten graph selects 1 times"):
        sites_of(program)


def test_a_block_that_is_spelled_out_has_a_reference_too() -> None:
    program = recognised(ViT(lambda: Block(lambda: Attention(form="spelled"))), pixels(3))
    certificate = certify(program, pruned(program))
    assert certificate.own_counts is not None
    assert certificate.own_counts < 1e-6
