"""Estimated tables: what operators take by hand, and near what this machine takes."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from prunec.compiler import recognise
from prunec.frontend.sources import from_module
from prunec.ir.program import Recognised
from prunec.latency.latency import Workload, grid, place_of, work_of
from prunec.latency.roofline import ERROR, Ceilings, _Roofline, ceilings_here, estimate
from prunec.latency.table import LatencyTable
from prunec.measure import cost
from prunec.policy.lowering import choose
from prunec.policy.policy import Policy

SLOW = Ceilings(flops=1e9, bytes=1e30, launch=0.0)  # only arithmetic takes time
NARROW = Ceilings(flops=1e30, bytes=1e6, launch=0.0)  # only memory
LATE = Ceilings(flops=1e30, bytes=1e30, launch=1.0)  # only launches
IMAGES = torch.randn(4, 3, 112, 112, generator=torch.Generator().manual_seed(0))


@cache
def dense() -> Recognised:
    model = timm.create_model("vit_small_patch16_224", img_size=112, depth=5).eval()
    return recognise(from_module(model, (IMAGES,)))


@cache
def table(preset: str, ceilings: Ceilings) -> LatencyTable:
    policy = Policy.load(preset)
    lowering = choose(policy)
    workload = Workload(dense(), policy, lowering, (IMAGES,))
    place, work = place_of(torch.device("cpu")), work_of(workload, "eager")
    return estimate(workload, ceilings, place, work)


def seconds(ceilings: Ceilings, call: object) -> float:
    roofline = _Roofline(ceilings)
    with torch.no_grad(), roofline:
        call()  # type: ignore[operator]
    return roofline.total()


# Operators --------------------------------------------------------------------------------------------------

A, B = torch.randn(20, 30), torch.randn(30, 40)
X = torch.randn(10, 10)


def test_a_product_takes_its_arithmetic_or_its_memory_or_a_launch() -> None:
    assert seconds(SLOW, lambda: A @ B) == pytest.approx(2 * 20 * 30 * 40 / 1e9)
    assert seconds(NARROW, lambda: A @ B) == pytest.approx(4 * (20 * 30 + 30 * 40 + 20 * 40) / 1e6)
    assert seconds(LATE, lambda: A @ B) == 1


def test_pointwise_operators_in_a_row_are_one_kernel() -> None:
    assert seconds(LATE, lambda: F.gelu(X + 1) * X) == 1
    assert seconds(NARROW, lambda: F.gelu(X + 1) * X) == pytest.approx(4 * 2 * 100 / 1e6)


def test_a_product_between_them_ends_the_row() -> None:
    assert seconds(LATE, lambda: ((X + 1) @ X) * 2) == 3


def test_views_take_nothing_and_end_no_row() -> None:
    assert seconds(LATE, lambda: X.t().reshape(100)) == 1  # the reshape must copy
    assert seconds(LATE, lambda: X.view(4, 25).unsqueeze(0)) == 0
    assert seconds(LATE, lambda: (X + 1).view(100) * 2) == 1


def test_the_last_wave_takes_as_long_as_a_full_one() -> None:
    wide = torch.randn(3 * 128, 16), torch.randn(16, 128)  # three tiles
    whole = seconds(SLOW, lambda: wide[0] @ wide[1])
    for processors, waves in ((1, 1.0), (3, 1.0), (2, 4 / 3), (12, 4.0)):
        ceilings = Ceilings(1e9, 1e30, 0.0, processors)
        assert seconds(ceilings, lambda: wide[0] @ wide[1]) == pytest.approx(whole * waves)


def test_attention_has_its_arithmetic() -> None:
    q = torch.randn(2, 3, 20, 16)
    found = seconds(SLOW, lambda: F.scaled_dot_product_attention(q, q, q))
    assert found == pytest.approx(4 * 2 * 3 * 20 * 20 * 16 / 1e9)


# Tables -----------------------------------------------------------------------------------------------------


def test_an_estimated_table_says_so() -> None:
    made = table("norm", SLOW)
    assert made.estimated
    assert made.error == ERROR == 0.3
    assert made.samples == {}
    assert made.counts == grid(dense().anatomy, 4)  # type: ignore[arg-type]
    assert len(made.blocks) == 5
    assert made.blocks[0] == (0.0,) * len(made.counts)


def test_a_block_takes_the_arithmetic_that_is_counted_by_hand() -> None:
    made = table("norm", SLOW)
    for place, n in enumerate(made.counts):
        flops = 4 * (24 * n * 384**2 + 4 * n**2 * 384)
        assert made.blocks[2][place] == pytest.approx(flops / 1e9, rel=1e-6)


@pytest.mark.parametrize(
    ("preset", "ceilings"),
    [
        *((preset, Ceilings(1e11, 1e10)) for preset in ("norm", "evit", "tome", "dynamic")),
        ("norm", SLOW),
        ("norm", NARROW),
    ],
)
def test_fewer_tokens_never_take_longer(preset: str, ceilings: Ceilings) -> None:
    for row in table(preset, ceilings).blocks[1:]:
        assert all(longer >= shorter > 0 for longer, shorter in pairwise(row))
        assert row[0] > row[-1]


def test_where_launches_are_all_nothing_is_gained() -> None:
    rows = table("norm", LATE).blocks[1:]
    assert all(len(set(row)) == 1 for row in rows)


def test_a_table_that_was_estimated_is_kept_and_read_again(tmp_path: object) -> None:
    file = tmp_path / "table.json"  # type: ignore[operator]
    table("norm", SLOW).write(file)
    assert LatencyTable.read(file) == table("norm", SLOW)


def test_the_estimate_is_near_what_this_machine_takes() -> None:
    ceilings = ceilings_here(torch.device("cpu"))
    module = dense().module

    def forward() -> Tensor:
        return module(IMAGES)  # type: ignore[no-any-return]

    timing = cost.measure({"dense": forward}, device=torch.device("cpu"), rounds=10)["dense"]
    ratio = table("norm", ceilings).dense / min(timing.samples)
    assert 0.4 < ratio < 2.5  # within 30% on a quiet machine, which this need not be
