"""The latency table as it is measured, on tiny models and without a compiler."""

from __future__ import annotations

import statistics
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunec.errors import UsageError
from prunec.ir.program import Planned, Program, Recognised
from prunec.latency import latency as module
from prunec.latency.latency import Workload, grid, measure, place_of, work_of
from prunec.latency.table import LatencyTable
from prunec.measure import cost
from prunec.policy.lowering import choose
from prunec.policy.policy import Policy
from prunec.schedules.schedule import shortest
from prunec.targets.eager import Eager
from tests import tiny
from tests.latency.small import FAMILY, dense_of
from tests.planner.anatomies import anatomy

DEVICE = torch.device("cpu")
TARGET = Eager()


@cache
def small(depth: int = 5, odd: int | None = None) -> Program:
    """A ViT of 26 tokens, perhaps with one block that has a wider MLP."""
    numbers = iter(range(depth))
    return tiny.recognised(tiny.ViT(lambda: Odd(next(numbers) == odd), depth=depth))


class Odd(tiny.Block):
    def __init__(self, odd: bool) -> None:
        super().__init__()
        if odd:
            self.mlp.up, self.mlp.down = nn.Linear(16, 400), nn.Linear(400, 16)


def table_of(dense: Recognised, preset: str, images: Tensor, mode: str | None = None) -> LatencyTable:
    policy = Policy.load(preset)
    lowering = choose(policy, mode)
    workload = Workload(dense, policy, lowering, (images,))
    return measure(workload, TARGET, place_of(DEVICE), work_of(workload, "eager"), rounds=5)


# What is measured -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "mode"),
    [("evit", None), ("tome", None), ("cropr", None), ("dynamic", "padded"), ("dynamic", "packed")],
)
def test_a_table_has_every_block_at_every_count(preset: str, mode: str | None) -> None:
    dense = small()
    table = table_of(dense, preset, tiny.pixels(2), mode)
    counts = grid(dense.anatomy, 2)  # type: ignore[arg-type]
    assert table.counts == counts
    assert counts[0] == 26
    assert len(table.blocks) == 5
    assert table.blocks[0] == (0.0,) * len(counts)  # it is in the front, which every schedule has
    assert all(seconds > 0 for row in table.blocks[1:] for seconds in row)
    assert table.blocks[1] == table.blocks[2] == table.blocks[3]  # one kind, one chain
    assert table.fixed > 0
    assert table.dense > 0
    assert not table.estimated
    assert {len(samples) for samples in table.samples.values()} == {5}
    pairs = zip(table.samples["whole"], table.samples["dense"], strict=True)
    whole = statistics.median(one / dense for one, dense in pairs) * table.dense
    assert table.predict((26,) * 5, ()) == pytest.approx(whole)  # pieces are brought to its scale
    assert {"dense", "front", *(f"tail@{n}" for n in counts)} <= set(table.samples)


def test_the_pieces_together_take_about_as_long_as_the_whole() -> None:
    """The fastest samples, and a wide margin: nobody else may have been at work then."""
    table = table_of(dense_of("timm_vit"), "norm", FAMILY["timm_vit"].images(8))
    least = {name.split()[0]: min(samples) for name, samples in table.samples.items() if "@29" in name}
    chain = next(min(samples) for name, samples in table.samples.items() if name.startswith("chain"))
    together = min(table.samples["front"]) + chain + least["tail@29"]
    assert 0.3 < together / min(table.samples["dense"]) < 3


def test_a_table_is_kept_and_read_again(tmp_path: Any) -> None:
    table = table_of(small(), "norm", tiny.pixels(2))
    table.write(tmp_path / "table.json")
    assert LatencyTable.read(tmp_path / "table.json") == table


def test_a_block_of_another_kind_has_a_row_of_its_own() -> None:
    table = table_of(small(6, odd=3), "norm", tiny.pixels(2))
    names = {name.split("@")[0] for name in table.samples if name.startswith("chain")}
    assert len(names) == 2
    assert table.blocks[1] == table.blocks[2] == table.blocks[4]
    assert table.blocks[3] != table.blocks[2]


def test_the_longest_run_of_a_kind_is_timed() -> None:
    assert module._longest(["a", "b", "a", "a", "b"], "a") == range(3, 5)
    assert module._longest(["a", "b", "a", "a", "b"], "b") == range(2, 3)


@pytest.mark.parametrize("depth", [2, 3])
def test_a_model_of_few_blocks_is_refused(depth: int) -> None:
    with pytest.raises(UsageError, match=f"the model has {depth} blocks, and a latency table wants 4"):
        table_of(small(depth), "norm", tiny.pixels(2))


def test_the_steps_are_reported() -> None:
    said: list[str] = []
    policy = Policy.load("norm")
    lowering = choose(policy)
    workload = Workload(small(), policy, lowering, (tiny.pixels(2),))
    measure(workload, TARGET, {}, {}, rounds=5, progress=said.append)
    assert said[:2] == ["cut the model into pieces", "compile the pieces"]
    assert said[2].startswith("time ")


# The site ---------------------------------------------------------------------------------------------------


def test_the_fit_of_a_site_finds_the_numbers_that_made_it() -> None:
    counts = (197, 160, 128, 96, 64, 16)
    row = [2e-6 * n + 3e-9 * n**2 for n in counts]
    made = (4e-5, 2e-7, 3e-7, 0.35)

    def block(n: int) -> float:
        share = next(i for i in range(5) if counts[i + 1] <= n)
        high, low = counts[share], counts[share + 1]
        return row[share + 1] + (row[share] - row[share + 1]) * (n - low) / (high - low)

    pairs = {
        (n, k): block(n) + block(k) + made[0] + made[1] * n + made[2] * k + made[3] * (block(n) - block(k))
        for n, k in module._pairs(Policy.load("norm"), anatomy(grid=196))
    }
    assert module._site_cost(counts, row, pairs) == pytest.approx(made, rel=1e-5)


@pytest.mark.parametrize("preset", ["norm", "evit", "tome", "dynamic"])
def test_a_site_is_fitted_where_the_policy_can_have_one(preset: str) -> None:
    shape, policy = anatomy(grid=196), Policy.load(preset)
    pairs = set(module._pairs(policy, shape))
    assert len(pairs) >= 6  # four numbers are fitted to them
    assert {n for n, _ in pairs if n == 197}
    assert all(shortest(policy, shape, n) <= k < n <= 197 for n, k in pairs)


# Where, what, and at which lengths --------------------------------------------------------------------------


def work(policy: str = "norm", batch: int = 2, target: str = "eager", **changes: Any) -> dict[str, str | int]:
    loaded = changes.get("loaded") or Policy.load(policy)
    dense = changes.get("dense") or small()
    workload = Workload(dense, loaded, choose(loaded, changes.get("mode")), (tiny.pixels(batch),))
    return work_of(workload, target)


@pytest.mark.parametrize(
    "changes",
    [
        {"batch": 3}, {"policy": "evit"}, {"policy": "random"}, {"target": "inductor"}, {"mode": "padded"},
        {"dense": "deeper"}, {"dense": "odd"}, {"dense": "half"},
    ],
    ids=str,
)  # fmt: skip
def test_other_work_is_reported_apart(changes: dict[str, Any]) -> None:
    others = {"deeper": lambda: small(6), "odd": lambda: small(5, odd=2), "half": half}
    if "dense" in changes:
        changes = {"dense": others[changes["dense"]]()}
    assert work(**changes) != work()


def half() -> Planned:
    return tiny.recognised(tiny.ViT(depth=5).to(torch.bfloat16), tiny.pixels().to(torch.bfloat16))


def test_work_does_not_depend_on_counts_names_weights_or_blocks() -> None:
    policy = Policy.load("norm")
    renamed = Policy.load({**policy.model_dump(), "name": "other", "summary": "Another."})
    assert work(loaded=policy.override(keep=0.3, blocks=[2])) == work(loaded=renamed) == work()
    again = tiny.recognised(tiny.ViT(lambda: Odd(False), depth=5))
    assert work(dense=again) == work()


def test_the_place_tells_threads_and_versions() -> None:
    here = place_of(DEVICE)
    with cost.threads(torch.get_num_threads() + 1):
        assert place_of(DEVICE) != here
    assert place_of(DEVICE) == here
    assert "python" not in here
    assert {"device", "torch", "threads"} <= set(here)


@pytest.mark.parametrize(
    ("patches", "batch", "expected"),
    [
        (196, 8, (197, 192, 176, 160, 144, 128, 112, 96, 80, 64, 48, 32, 16)),
        (196, 1, (197, 192, 176, 160, 144, 128, 112, 96, 80, 64, 48, 32, 16)),
        (81, 1, (82, 80, 72, 64, 56, 48, 40, 32, 24, 16)),
        (48, 2, (49, 48, 44, 40, 36, 32, 28, 24, 20, 16, 12)),
        (25, 2, (26, 24, 22, 20, 18, 16, 14, 12, 10)),
    ],
)
def test_the_grid_has_the_dense_length_and_friendly_ones_below(
    patches: int, batch: int, expected: tuple[int, ...]
) -> None:
    assert grid(anatomy(grid=patches), batch) == expected


@pytest.mark.parametrize("patches", [9, 16, 25, 49, 81, 196, 256, 576, 1024, 4096])
@pytest.mark.parametrize("batch", [1, 8])
def test_no_grid_is_long_and_all_leave_some_patches(patches: int, batch: int) -> None:
    shape = anatomy(grid=patches)
    found = grid(shape, batch)
    assert 3 <= len(found) <= module.MOST_COUNTS + 1
    assert found[0] == shape.tokens
    assert found[-1] > shape.prefix
    assert list(found) == sorted(set(found), reverse=True)
