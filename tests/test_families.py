"""End to end over many families: found as written down, exact at keep=1.0, right with half of the patches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import prunec
from prunec import ops
from prunec.compiler import Compiled, compile_source
from prunec.frontend import sources
from prunec.ir.flops import FlopCounter
from prunec.ir.program import ProgramModule
from prunec.policy.policy import Policy
from tests import references
from tests.families import DEPTH, FAMILIES, Family, difference, expected_flops, tensors
from tests.references import EVIT, NORM, Pruning

pytestmark = pytest.mark.usefixtures("recognised_once")
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Case:
    """A family through the compiler once, for all the tests of it."""

    family: Family
    model: nn.Module
    state: dict[str, Tensor]  # copied before the compiler saw the model
    output: list[Tensor]  # of the model, before
    compiled: Compiled
    pruned: nn.Module
    exact: nn.Module  # policy none

    def run(self, module: nn.Module, images: Tensor) -> Any:
        args, kwargs = self.family.call(images)
        with torch.no_grad():
            return module(*args, **kwargs)


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def case(request: pytest.FixtureRequest) -> Case:
    family: Family = request.param
    model = family.model()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    args, kwargs = family.call(family.images(2))
    with torch.no_grad():
        output = tensors(model(*args, **kwargs))
    policy = Policy.load(family.policy).override(keep_per_site=0.5, blocks=(1, 2), restore="stale")
    compiled = compile_source(sources.from_module(model), policy)
    exact = prunec.transform(model, "none")
    return Case(family, model, state, output, compiled, ProgramModule(compiled.pruned), exact)


class Selections(fx.Interpreter):
    """Runs a program and keeps the rows of every selection, and by how much the last kept patch won."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.rows: list[Tensor] = []
        self.margins: list[float] = []

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        result = super().call_function(target, args, kwargs)
        if target is ops.select:
            score, keep, prefix, suffix = args[:4]
            best = score[:, prefix : score.shape[1] - suffix].sort(dim=1, descending=True).values
            self.rows.append(result)
            self.margins.append(float(((best[:, keep - 1] - best[:, keep]) / best[:, keep - 1]).min()))
        return result


def selections(module: nn.Module, images: Tensor) -> Selections:
    run = Selections(module.program.module)
    with torch.no_grad():
        run.run(images)
    return run


def without_fused(rows: list[int], family: Family, pruning: Pruning) -> list[int]:
    """The rows that go on by themselves: not the place of the extra token, right after the kept patches."""
    place = len(rows) - family.suffix - 1
    return rows[:place] + rows[place + 1 :] if pruning.fate == "fuse" else rows


# --- what is found and done -----------------------------------------------------------------


def test_the_anatomy_is_found_as_written_down(case: Case) -> None:
    family, found = case.family, case.compiled.dense.anatomy
    assert found is not None
    assert (found.depth, found.tokens, found.prefix, found.suffix) == (
        DEPTH, family.tokens, family.prefix, family.suffix,
    )  # fmt: skip
    assert found.class_token == family.class_token
    assert found.head == family.head
    assert found.taps == ()
    assert found.unmatched == ()
    for block in found.blocks:
        assert [branch.kind for branch in block.branches] == ["attention", "mlp"]
        assert [branch.norm for branch in block.branches] == ["pre", "pre"]
        assert [branch.layer_scale for branch in block.branches] == [family.layer_scale] * 2
        assert [branch.activation for branch in block.branches] == [None, family.activation]
        assert [core.form for branch in block.branches for core in branch.cores] == [family.core]


def test_every_stage_does_as_much_as_written_down(case: Case) -> None:
    family = case.family
    counts = {stage.name: dict(stage.counts) for stage in case.compiled.pruned.stages}
    assert counts["normalise"]["masks"] == family.masks
    assert counts["insert sites"] == {"sites": 2}
    assert counts["repair tokens"] == {
        "literals": family.literals,
        "gathered": family.gathered,
        "scatters": family.scatters,
        "region_ends": 0,
    }
    assert counts["liveness"]["cuts"] == family.cuts
    notes = next(stage.notes for stage in case.compiled.pruned.stages if stage.name == "liveness")
    read = [f"rows {family.read} of {family.lengths[2]} from block 3"] if family.read else []
    assert list(notes) == read
    assert counts["fold_key_value"] == {"folded": family.folded}


def test_the_graph_holds_the_operations_of_the_plan_and_no_others(case: Case) -> None:
    family = case.family
    targets = [node.target for node in case.compiled.pruned.graph.nodes if node.target in ops.DIALECT]
    score = {"norm": ops.token_norm, "fused": ops.class_attention, "spelled": ops.class_row}
    expected = {
        score["norm" if family.pruning == NORM else family.core]: 2,
        ops.select: 2,
        ops.fuse if family.pruning == EVIT else ops.gather: 2,
        ops.take: family.takes,
        ops.scatter: family.scatters,
        ops.rows: family.cuts + family.views,
        ops.attend_states: family.folded,
        # Original rows past the second site: a table is gathered by them, a way back goes up step by step.
        ops.compose: 1 if family.takes else 0,
    }
    assert {target: targets.count(target) for target in set(targets)} == {
        target: count for target, count in expected.items() if count
    }


def test_the_plan_has_the_lengths_written_down(case: Case) -> None:
    plan = case.compiled.pruned.plan
    assert [site.block for site in plan.sites] == [1, 2]
    assert {site.where for site in plan.sites} == {case.family.pruning.where}
    assert [site.tokens for site in plan.sites] == list(case.family.lengths[:2])
    assert [site.leaves for site in plan.sites] == list(case.family.lengths[1:])


# --- exactness ------------------------------------------------------------------------------


def test_the_certificate_holds(case: Case) -> None:
    assert case.compiled.certificate.identity <= TOLERANCE
    assert case.compiled.certificate.permutation <= TOLERANCE


def test_keeping_everything_equals_the_original(case: Case) -> None:
    same = prunec.transform(case.model, prunec.Policy.load(case.family.policy, keep=1.0))
    images = case.family.images(3)
    assert difference(case.run(same, images), case.run(case.model, images)) <= TOLERANCE


def test_without_sites_the_outputs_are_those_of_the_original(case: Case) -> None:
    images = case.family.images(3)
    assert difference(case.run(case.exact, images), case.run(case.model, images)) <= 1e-6


def test_pruning_changes_the_output(case: Case) -> None:
    # Or the models would be too dull for any comparison here to mean something.
    images = case.family.images(3)
    assert difference(case.run(case.pruned, images), case.run(case.model, images)) > 0.01


# --- numbers --------------------------------------------------------------------------------


@pytest.mark.parametrize("made", ["model", "exact", "pruned"])
def test_the_work_is_what_the_schedule_implies(case: Case, made: str) -> None:
    family = case.family
    lengths = family.lengths if made == "pruned" else (family.tokens,) * 3
    args, kwargs = family.call(family.images(2))
    with FlopCounter() as counter, torch.no_grad():
        getattr(case, made)(*args, **kwargs)
    assert counter.total == 2 * expected_flops(family, lengths, original=made == "model")


def test_an_image_does_not_depend_on_its_batch(case: Case) -> None:
    images = case.family.images(7)
    whole = tensors(case.run(case.pruned, images))
    pair = tensors(case.run(case.pruned, images[4:6]))
    for number in range(7):
        alone = tensors(case.run(case.pruned, images[number : number + 1]))
        assert difference([out[number : number + 1] for out in whole], alone) <= TOLERANCE
        if number in (4, 5):
            assert difference([out[number - 4 : number - 3] for out in pair], alone) <= TOLERANCE


def test_images_are_pruned_differently(case: Case) -> None:
    for rows in selections(case.pruned, case.family.images(7)).rows:
        assert len({tuple(image) for image in rows.tolist()}) == 7


def test_protected_rows_stay_in_place_and_patches_ascend(case: Case) -> None:
    family = case.family
    found = selections(case.pruned, family.images(7))
    for tokens, leaves, rows in zip(family.lengths, family.lengths[1:], found.rows, strict=False):
        assert rows.shape == (7, leaves)
        for image in rows.tolist():
            assert image[: family.prefix] == list(range(family.prefix))
            assert image[len(image) - family.suffix :] == list(range(tokens - family.suffix, tokens))
            alone = without_fused(image, family, family.pruning)
            assert alone == sorted(set(alone))


def agree(family: Family, model: nn.Module, pruned: nn.Module, pruning: Pruning) -> None:
    """Rows and outputs equal those of the independent implementation."""
    assert family.reference is not None
    images = family.images(4)
    found = selections(pruned, images)
    assert min(found.margins) > 1e-5  # else rounding might decide which patch stays
    args, kwargs = family.call(images)
    with torch.no_grad():
        output = tensors(pruned(*args, **kwargs))[0]
        expected = [family.reference(model, image, pruning) for image in images]
    for number, (_, kept) in enumerate(expected):
        rows = [without_fused(site[number].tolist(), family, pruning) for site in found.rows]
        assert rows == kept
    assert difference(output, torch.stack([value for value, _ in expected])) <= TOLERANCE


def test_rows_and_outputs_equal_an_independent_implementation(case: Case) -> None:
    if case.family.reference is None:
        assert case.family.name in WITHOUT_REFERENCE
        return
    agree(case.family, case.model, case.pruned, case.family.pruning)


WITHOUT_REFERENCE = {"hf_vit_eager", "hf_deit", "hf_dinov3", "hf_siglip", "hf_clip", "hf_yolos"}

OTHERS = {
    "cls before, drop": Pruning("before_block", "cls_attention", "drop"),
    "cls before, fuse": Pruning("before_block", "cls_attention", "fuse"),
    "cls after, drop": Pruning("after_attention", "cls_attention", "drop"),
    "norm after, drop": Pruning("after_attention", "norm", "drop"),
    "norm before, a third, blocks 0 and 3": Pruning(
        "before_block", "norm", "drop", blocks=(0, 3), keep=1 / 3
    ),
    "cls after, fuse, all blocks but the last": Pruning(
        "after_attention", "cls_attention", "fuse", (0, 1, 2), keep=0.8
    ),
}


@pytest.mark.parametrize("name", ["timm_dinov2_registers", "hf_dinov2"])
@pytest.mark.parametrize("pruning", OTHERS.values(), ids=OTHERS)
def test_other_points_of_the_policy_space_equal_it_too(name: str, pruning: Pruning) -> None:
    family = next(family for family in FAMILIES if family.name == name)
    model = family.model()
    policy = {
        "version": 1,
        "name": "point",
        "summary": "a point of the space",
        "sites": {"where": pruning.where, "blocks": list(pruning.blocks)},
        "scorer": {"kind": pruning.scorer},
        "selector": {"kind": "top_k", "keep_per_site": pruning.keep},
        "fate": pruning.fate,
        "restore": "stale",
    }
    agree(family, model, prunec.transform(model, policy), pruning)


@pytest.mark.parametrize("name", ["timm_eva02", "timm_dinov3", "timm_beit", "hf_vit"])
def test_tables_move_with_tokens_at_sites_after_attention(name: str) -> None:
    family = next(family for family in FAMILIES if family.name == name)
    model = family.model()
    policy = Policy.load("norm").model_dump()
    policy["sites"] = {"where": "after_attention", "blocks": [0, 2]}
    pruned = prunec.transform(model, prunec.Policy.load(policy, keep_per_site=0.3, restore="stale"))
    agree(family, model, pruned, replace(NORM, where="after_attention", blocks=(0, 2), keep=0.3))


def test_the_references_equal_the_models_when_nothing_is_pruned() -> None:
    assert {family.name for family in FAMILIES if family.reference is None} == WITHOUT_REFERENCE
    for family in FAMILIES:
        if family.reference is None:
            continue
        model, images = family.model(), family.images(1)
        args, kwargs = family.call(images)
        with torch.no_grad():
            expected = tensors(model(*args, **kwargs))[0]
            found, kept = family.reference(model, images[0], replace(NORM, blocks=()))
        assert kept == []
        assert difference(found[None], expected) <= TOLERANCE


def test_stale_tokens_keep_what_they_were_at_their_site() -> None:
    # hf_vit returns every token: those dropped before block 1 are what block 0 made, normalised.
    family = next(family for family in FAMILIES if family.reference is references.hf_vit)
    model, images = family.model(), family.images(1)
    pruned = prunec.transform(model, prunec.Policy.load("norm", keep=0.5, blocks=(1,), restore="stale"))
    rows = selections(pruned, images).rows[0][0].tolist()
    dropped = sorted(set(range(family.tokens)) - set(rows))
    assert len(dropped) == 12
    with torch.no_grad():
        after_block_0 = model(pixel_values=images, output_hidden_states=True).hidden_states[1]
        expected = model.layernorm(after_block_0)
        found = pruned(pixel_values=images).last_hidden_state
    assert difference(found[:, dropped], expected[:, dropped]) <= TOLERANCE
    assert difference(found[:, rows], expected[:, rows]) > 0.1


# --- the face of the result -----------------------------------------------------------------


def test_outputs_have_the_type_and_shapes_of_the_original(case: Case) -> None:
    images = case.family.images(3)
    found, expected = case.run(case.pruned, images), case.run(case.model, images)
    assert type(found) is type(expected)
    assert [out.shape for out in tensors(found)] == [out.shape for out in tensors(expected)]
    if case.family.name.startswith("hf"):
        assert list(found) == list(expected)
        by_position = case.pruned(images)
        assert torch.equal(tensors(by_position)[0], tensors(found)[0])


def test_parameters_are_those_of_the_original(case: Case) -> None:
    found, expected = case.pruned.state_dict(), case.model.state_dict()
    assert list(found) == list(expected)
    assert all(found[name].data_ptr() == expected[name].data_ptr() for name in expected)
    shared = dict(case.pruned.named_parameters())
    assert all(shared[name] is parameter for name, parameter in case.model.named_parameters())


def test_the_original_is_unchanged(case: Case) -> None:
    after = case.model.state_dict()
    assert list(after) == list(case.state)
    assert all(torch.equal(after[name], tensor) for name, tensor in case.state.items())
    output = tensors(case.run(case.model, case.family.images(2)))
    assert all(torch.equal(one, other) for one, other in zip(output, case.output, strict=True))
    assert not any(part.training for part in case.model.modules())
