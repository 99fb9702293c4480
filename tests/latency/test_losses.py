"""What shortening costs: beside a plain loop over compiled programs, and by hand."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from prunec.compiler import compile_recognised
from prunec.ir.program import Program
from prunec.latency import losses as module
from prunec.latency.losses import Losses, Trial, measure
from prunec.latency.probe import opened
from prunec.passes import BACK, run_passes
from prunec.policy.lowering import Lowering, choose
from prunec.policy.policy import Policy
from prunec.policy.site_plan import make_plan
from prunec.schedules.schedule import last_block, scheduled, shortest
from tests.latency.small import FAMILY, dense_of, model_of

VIT, MEAN, DETECTOR = "timm_vit", "timm_beit", "hf_yolos"
IMAGES = 8


@cache
def trial_of(name: str, preset: str) -> Trial:
    """Eight images, in batches of two, for the examples have two."""
    return Trial(dense_of(name), Policy.load(preset), FAMILY[name].images(IMAGES, seed=7), batch=2)


def divergence(expected: Tensor, found: Tensor) -> float:
    """KL(expected || found) of class probabilities, averaged over the images: sum p log(p / q)."""
    p, q = expected.double().softmax(1), found.double().softmax(1)
    return float((p * (p / q).log()).sum(1).mean())


def distance(expected: Tensor, found: Tensor) -> float:
    """One minus the cosine of the outputs, averaged over the images."""
    one, other = expected.double().flatten(1), found.double().flatten(1)
    cosine = (one * other).sum(1) / (one.norm(dim=1) * other.norm(dim=1))
    return float((1 - cosine).mean())


def outputs(name: str, program: Program | None, images: Tensor) -> Tensor:
    """The first output, image by image; of the model itself where there is no program."""
    found = []
    for image in images.split(2):
        args, kwargs = FAMILY[name].call(image)
        with torch.no_grad():
            made = model_of(name)(*args, **kwargs) if program is None else program.module(image)
        found.append(made if isinstance(made, Tensor) else made[0])
    return torch.cat(found)


def by_hand(name: str, policy: Policy, schedule: dict[int, int]) -> float:
    """The loss of one schedule: compile it, run it, compare it with the model."""
    dense, images = dense_of(name), FAMILY[name].images(IMAGES, seed=7)
    exact = scheduled(policy, dense.anatomy, schedule)
    made = compile_recognised(model_of(name), dense, exact, calibrate=False).pruned
    expected, found = outputs(name, None, images), outputs(name, made, images)
    return divergence(expected, found) if expected.dim() == 2 else distance(expected, found)


# One schedule -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "preset", "block", "length"),
    [
        (VIT, "evit", 1, 12), (VIT, "evit", 2, 20), (VIT, "norm", 3, 9), (VIT, "tome", 1, 18),
        (MEAN, "norm", 1, 10), (MEAN, "tome", 2, 16), (DETECTOR, "norm", 2, 20),
    ],
)  # fmt: skip
def test_a_loss_is_what_the_compiled_program_loses(name: str, preset: str, block: int, length: int) -> None:
    trial = trial_of(name, preset)
    expected = by_hand(name, trial.policy, {block: length})
    found = trial.losses([block], [(length + 2,), (length,)])[1]
    assert expected > 1e-6
    assert found == pytest.approx(expected, rel=1e-3)
    assert trial.shortened(block, [length])[0] == pytest.approx(expected, rel=1e-3)


def test_several_sites_lose_what_the_compiled_program_with_them_loses() -> None:
    trial, schedules = trial_of(VIT, "evit"), [{1: 20, 2: 9}, {1: 14, 2: 13}]
    found = trial.losses([1, 2], [tuple(schedule.values()) for schedule in schedules])
    assert found == pytest.approx([by_hand(VIT, trial.policy, one) for one in schedules], rel=1e-3)


def test_whole_programs_lose_what_a_loop_over_the_images_says() -> None:
    trial = trial_of(VIT, "evit")
    made = []
    for schedule in ({1: 20}, {2: 9}):
        exact = scheduled(trial.policy, trial.anatomy, schedule)
        made.append(compile_recognised(model_of(VIT), dense_of(VIT), exact, calibrate=False).plain)
    expected = [by_hand(VIT, trial.policy, schedule) for schedule in ({1: 20}, {2: 9})]
    assert trial.losses_of(made) == pytest.approx(expected, rel=1e-3)


def test_the_dense_program_loses_nothing() -> None:
    assert trial_of(VIT, "evit").losses_of([dense_of(VIT)]) == [pytest.approx(0, abs=1e-6)]


def test_images_that_fill_no_batch_are_left_out() -> None:
    images = FAMILY[VIT].images(5, seed=7)
    trial = Trial(dense_of(VIT), Policy.load("norm"), images, batch=2)
    assert trial.images == 4
    assert [len(part) for part in trial.batches] == [2, 2]


def test_losses_are_a_mean_over_images_however_they_are_batched() -> None:
    images = FAMILY[VIT].images(6, seed=7)
    one, other = (Trial(dense_of(VIT), Policy.load("evit"), images, batch=size) for size in (2, 3))
    assert one.losses([2], [(12,)]) == pytest.approx(other.losses([2], [(12,)]), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "kind"), [(VIT, "divergence"), (DETECTOR, "distance"), ("hf_vit", "distance")]
)
def test_outputs_that_are_no_class_scores_are_compared_by_their_direction(name: str, kind: str) -> None:
    assert Trial(dense_of(name), Policy.load("norm"), FAMILY[name].images(2)).kind == kind


def test_random_scores_are_the_same_ones_each_time() -> None:
    trial = trial_of(VIT, "random")
    state = torch.get_rng_state()
    first = trial.losses([1, 2], [(20, 12)])
    torch.rand(7)
    assert trial.losses([1, 2], [(20, 12)]) == first
    torch.set_rng_state(state)
    trial.losses([1, 2], [(20, 12)])
    assert torch.equal(torch.get_rng_state(), state)


# Tokens that come back, and pairs ---------------------------------------------------------------------------


def test_where_tokens_come_back_every_later_block_has_a_site() -> None:
    trial = trial_of(VIT, "svit")
    assert set(trial.gates) == {1, 2, 3}
    found = trial.shortened(2, [15, 9])
    assert found == pytest.approx(trial.losses([2, 3], [(15, 15), (9, 9)]), rel=1e-6)
    # By hand: a batch of two shares its budget, and each site has the gate that was fitted to its block.
    policy = scheduled(opened(trial.policy, [2, 3], of_batch=True), trial.anatomy, {2: 9, 3: 9})
    made = run_passes(BACK, dense_of(VIT).planned(make_plan(policy, trial.anatomy)))
    for number, block in enumerate((2, 3)):
        made.module.get_submodule(f"prunec.site_{number}.gate").load_state_dict(trial.gates[block])
    images = FAMILY[VIT].images(IMAGES, seed=7)
    expected = divergence(outputs(VIT, None, images), outputs(VIT, made, images))
    assert found[1] == pytest.approx(expected, rel=1e-3)


def test_pairs_take_several_sites_to_go_below_one_half(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = trial_of(VIT, "tome")  # 29 tokens: one site leaves 15 or more, two 8 or more
    asked: list[tuple[list[int], list[list[int]]]] = []
    monkeypatch.setattr(
        Trial,
        "losses",
        lambda _, blocks, cases: (
            asked.append((list(blocks), [list(case) for case in cases])) or [0.0] * len(cases)
        ),
    )
    trial.shortened(2, [28, 15, 14, 8, 6])
    assert asked == [
        ([2], [[28], [15]]),
        ([1, 2], [[15, 14], [15, 8]]),
        ([0, 1, 2], [[15, 8, 6]]),
    ]
    asked.clear()
    trial.shortened(0, [20, 6])  # there is no block before it: as short as one site makes it
    assert asked == [([0], [[20], [15]])]
    asked.clear()
    trial.behind(0, 20, (20, 14, 8), range(1, 3))
    assert asked == [
        ([0], [[20]]),
        ([0, 1], [[20, 14], [20, 11]]),
        ([0, 2], [[20, 14]]),
        ([0, 1, 2], [[20, 11, 8]]),
    ]


def test_streams_of_every_length_are_run_with_pairs() -> None:
    trial = trial_of(VIT, "tome")
    found = trial.shortened(2, [20, 12, 5])
    assert found[0] < found[2]
    assert all(map(math.isfinite, trial.shortened(0, [20, 5])))


# The table --------------------------------------------------------------------------------------------------

COUNTS = (29, 24, 20, 16, 12, 10, 8, 6)


@cache
def table_of(preset: str) -> Losses:
    trial = trial_of(VIT, preset)
    return measure(trial, COUNTS, range(1, last_block(trial.policy, trial.anatomy) + 1), "eight random ones")


@pytest.mark.parametrize("preset", ["evit", "dynamic", "cropr", "tome"])
def test_fewer_tokens_never_lose_less(preset: str) -> None:
    table = table_of(preset)
    assert len(table.behind) == 4
    for row in table.behind:
        assert row[0] == 0
        assert all(one <= other for one, other in pairwise(row))
    assert table.behind[0] == table.behind[1]  # which has the first site
    assert max(max(row) for row in table.behind) > 0


@pytest.mark.parametrize("preset", ["evit", "norm", "tome"])
def test_what_each_block_loses_adds_up_to_what_all_lose(preset: str) -> None:
    table = table_of(preset)
    rows = table.rows()
    for block in range(4):
        for place in range(len(COUNTS)):
            assert rows[block][place] >= 0
            lost = sum(row[place] for row in rows[block:])
            assert lost == pytest.approx(max(row[place] for row in table.behind[block:]))


def test_what_was_measured_stands_in_the_table() -> None:
    table, trial = table_of("evit"), trial_of(VIT, "evit")
    assert len(set(module._some(COUNTS[1:]))) == module.MOST_MEASURED
    for n in module._some(COUNTS[1:]):
        assert table.behind[2][COUNTS.index(n)] == pytest.approx(
            trial.losses([2], [(n,)])[0], rel=1e-5
        ) or any(
            table.behind[2][place] == table.behind[2][COUNTS.index(n)] for place in range(COUNTS.index(n))
        )
    assert (table.counts, table.kind, table.images, table.name) == (
        COUNTS,
        "divergence",
        8,
        "eight random ones",
    )
    assert table.longest == ()
    assert table.as_dict()["behind"] == table.behind


def test_a_block_where_no_site_may_be_loses_nothing_by_itself() -> None:
    rows = table_of("evit").rows()
    assert rows[0] == rows[3] == (0.0,) * len(COUNTS)  # before the first, and behind the last attention


def test_one_that_loses_less_than_those_behind_it_loses_nothing_alone() -> None:
    table = Losses((4, 2), ((0.0, 0.3), (0.0, 0.5), (0.0, 0.2)), "divergence", 1, "", 0.0)
    assert table.rows() == ((0.0, 0.0), (0.0, pytest.approx(0.3)), (0.0, 0.2))


def test_images_that_differ_have_longer_streams_than_their_mean() -> None:
    table = table_of("dynamic")
    for row in table.longest[1:]:
        assert row[0] == 29
        assert all(n <= length <= 29 for n, length in zip(COUNTS, row, strict=True))
    assert any(length > n for n, length in zip(COUNTS, table.longest[1], strict=True))
    policy = Policy.load("dynamic")
    padded, packed = choose(policy, "padded"), choose(policy, "packed")
    assert table.longest_of(1, 12, padded) == round(table.longest[1][COUNTS.index(12)])
    assert table.longest_of(1, 12, packed) == 12
    assert table_of("evit").longest_of(1, 12, Lowering("padded")) == 12


# Behind a site ----------------------------------------------------------------------------------------------


def test_losses_behind_a_site_are_measured_behind_it() -> None:
    trial = trial_of(VIT, "norm")
    counts = (20, 12, 6)
    rows = trial.behind(1, 20, counts, range(2, 4))
    assert len(rows) == 2
    alone = by_hand(VIT, trial.policy, {1: 20})
    for place, n in ((1, 12), (2, 6)):
        two = {block: by_hand(VIT, trial.policy, {1: 20, block: n}) - alone for block in (2, 3)}
        behind = {block: max(0.0, lost) for block, lost in two.items()}
        assert rows[1][place] == pytest.approx(behind[3], rel=5e-3, abs=1e-7)
        assert rows[0][place] + rows[1][place] == pytest.approx(max(behind.values()), rel=5e-3, abs=1e-7)
        assert rows[0][0] == rows[1][0] == 0


def test_behind_the_shortest_stream_nothing_is_left_to_lose() -> None:
    assert trial_of(VIT, "norm").behind(1, 6, (6,), range(2, 4)) == ((0.0,), (0.0,))


def test_behind_the_last_block_there_is_none() -> None:
    assert trial_of(VIT, "norm").behind(3, 12, (12, 6), range(4, 4)) == ()


# Between what was measured ----------------------------------------------------------------------------------


def test_between_measured_lengths_losses_grow_by_a_factor() -> None:
    found = module._filled((32, 24, 16, 12, 8), {24: 0.01, 8: 0.16})
    assert found == pytest.approx([0, 0.01, 0.04, 0.08, 0.16])


def test_a_length_that_lost_less_than_a_longer_one_loses_as_much() -> None:
    assert module._filled((9, 6, 4, 2), {6: 0.5, 4: 0.2, 2: 0.7}) == pytest.approx([0, 0.5, 0.5, 0.7])


def test_where_nothing_is_lost_nothing_is_made_up() -> None:
    assert module._filled((9, 6, 4), {6: 0.0, 4: 0.0}) == [0, 0, 0]


def test_some_lengths_have_both_ends_among_them() -> None:
    assert module._some((9, 8)) == (9, 8)
    some = module._some(tuple(range(40, 0, -1)))
    assert (some[0], some[-1], len(some)) == (40, 1, 6)
    assert shortest(Policy.load("tome"), trial_of(VIT, "tome").anatomy, 29) == 15
