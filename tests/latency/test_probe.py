"""Counts left open: at any count the probe computes what the program made for that count does."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from prunec.ir.program import Program
from prunec.latency.probe import lengths, opened, probe
from prunec.passes import BACK, run_passes
from prunec.policy.lowering import choose
from prunec.policy.policy import Policy, presets
from prunec.policy.site_plan import make_plan
from prunec.schedules.schedule import check_schedulable, scheduled, unprunable
from tests.latency.small import FAMILY, dense_of
from tests.planner.anatomies import anatomy as an_anatomy

PLANNABLE = (
    "ats", "bavit", "cover", "cropr", "cropr-drop", "diffrate", "dynamic", "dynamicvit", "evit", "norm",
    "pomt", "random", "representation-shift", "svit", "tome",
)  # fmt: skip


def compiled(name: str, policy: Policy, schedule: Mapping[int, int]) -> Program:
    """What the compiler makes of the policy with just these counts."""
    dense = dense_of(name)
    exact = scheduled(policy, dense.anatomy, schedule)
    made = run_passes(BACK, dense.planned(make_plan(exact, dense.anatomy)))
    assert {site.block: site.leaves for site in made.plan.sites} == dict(schedule)
    return made


def run(program: Program, *inputs: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(5)  # of random scores
        return tuple(program.module(*inputs))


def assert_equal_at(name: str, policy: Policy, schedules: list[dict[int, int]]) -> None:
    """One probe gives, at the counts of each schedule, what the compiler makes for it."""
    dense, images = dense_of(name), FAMILY[name].images(2, seed=4)
    fixed = unprunable(policy, dense.anatomy)
    blocks = sorted(schedules[0])
    probed = probe(dense, policy, choose(policy), BACK)
    before, seen = str(probed.graph), []
    for schedule in schedules:
        assert sorted(schedule) == blocks
        counts = [schedule[block] - fixed for block in blocks]
        found = run(probed, images, *lengths(counts, images))
        for one, other in zip(found, run(compiled(name, policy, schedule), images), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
        seen.append(found[0])
    assert str(probed.graph) == before
    assert not any(torch.equal(one, seen[0]) for one in seen[1:])


@pytest.mark.parametrize("preset", PLANNABLE)
def test_one_probe_is_every_program_of_its_policy(preset: str) -> None:
    policy = opened(Policy.load(preset), [1, 2])
    assert_equal_at("timm_vit", policy, [{1: 24, 2: 18}, {1: 17, 2: 11}])


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("timm_eva02", "tome"), ("timm_beit", "norm"), ("timm_beit", "dynamic"), ("hf_vit_eager", "evit"),
        ("hf_vit_eager", "tome"), ("hf_yolos", "dynamic"), ("hf_yolos", "norm"),
    ],
)  # fmt: skip
def test_so_it_is_with_tables_masks_and_heads_that_read_every_token(name: str, preset: str) -> None:
    anatomy = dense_of(name).anatomy
    policy = opened(Policy.load(preset), [1, 2])
    whole = anatomy.tokens
    assert_equal_at(name, policy, [{1: whole - 3, 2: whole - 9}, {1: whole - 8, 2: whole - 10}])


@pytest.mark.parametrize("preset", ["dynamic", "ats", "bavit"])
def test_a_threshold_policy_may_give_a_batch_its_count_and_images_their_own(preset: str) -> None:
    policy = opened(Policy.load(preset), [1, 2], of_batch=True)
    assert policy.selector.budget == "batch"
    assert choose(policy).mode == "padded"
    assert_equal_at("timm_vit", policy, [{1: 24, 2: 18}, {1: 17, 2: 11}])


def test_of_batch_is_for_policies_whose_images_differ() -> None:
    assert opened(Policy.load("evit"), [1], of_batch=True).selector.budget == "image"
    assert opened(Policy.load("dynamic"), [1]).selector.budget == "image"


def test_the_compiler_s_symbols_run_the_probe_too() -> None:
    """Two lengths through one compilation: the counts are no constants to it."""
    dense, images = dense_of("timm_vit"), FAMILY["timm_vit"].images(2)
    policy = opened(Policy.load("diffrate"), [1])
    probed = probe(dense, policy, choose(policy), BACK)
    torch._dynamo.reset()
    compiled_probe = torch.compile(probed.module, backend="aot_eager", dynamic=True, fullgraph=True)
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        for count in (20, 15, 9):
            given = (images, *lengths([count], images))
            for one, other in zip(compiled_probe(*given), probed.module(*given), strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("preset", PLANNABLE)
def test_an_opened_policy_is_the_policy_but_for_its_sites_and_counts(preset: str) -> None:
    policy = Policy.load(preset)
    check_schedulable(policy)
    made = opened(policy, [1, 3])
    assert made.sites.blocks == (1, 3)
    assert made.sites.where == policy.sites.where
    assert made.selector.kind == "top_k"
    kept = ("scorer", "fate", "reactivate", "weights", "merge", "attention", "restore", "restored", "name")
    assert {name: getattr(made, name) for name in kept} == {name: getattr(policy, name) for name in kept}
    assert made.then == ()


def test_all_presets_that_can_be_planned_are_tested() -> None:
    unplannable = {"none", "algm", "dtop"}  # no sites; windows and several steps; confidence
    assert set(presets()) == unplannable | set(PLANNABLE)


@pytest.mark.parametrize("preset", ["norm", "evit", "tome"])
@pytest.mark.parametrize("sites", [1, 2, 8, 30])
def test_every_site_of_a_probe_takes_tokens_away(preset: str, sites: int) -> None:
    policy = opened(Policy.load(preset), range(sites))
    plan = make_plan(policy, an_anatomy(depth=31, prefix=1, grid=196))
    lengths_behind = [site.leaves for site in plan.sites]
    assert len(lengths_behind) == sites
    assert all(one > other for one, other in pairwise([197, *lengths_behind]))
