"""The estimate of losses from one dense pass: its ranking, its scale, its shape."""

from __future__ import annotations

import math

import pytest
import torch

from prunec.compiler import recognise
from prunec.frontend import sources
from prunec.latency import fast, losses
from prunec.latency.losses import Losses, Trial
from prunec.policy.policy import Policy
from prunec.scorers.fitting import rank_correlation

COUNTS = (82, 64, 48, 32, 24, 16)
BLOCKS = (3, 6, 8, 10)


@pytest.fixture(scope="module")
def trial() -> Trial:
    source = sources.load("shapes")
    images = source.calibration_images(16)
    assert images is not None
    return Trial(recognise(source), Policy.load("norm"), images.images)


@pytest.fixture(scope="module")
def measured(trial: Trial) -> Losses:
    return losses.measure(trial, COUNTS, BLOCKS, "images")


@pytest.fixture(scope="module")
def estimated(trial: Trial) -> Losses:
    return fast.estimate(trial, COUNTS, BLOCKS, "images")


def test_it_ranks_blocks_and_lengths_as_measuring_does(measured: Losses, estimated: Losses) -> None:
    pairs = [
        (measured.behind[block][place], estimated.behind[block][place])
        for block in BLOCKS
        for place in range(1, len(COUNTS))
    ]
    real, guessed = torch.tensor(pairs).T
    assert rank_correlation(guessed, real) > 0.85


def test_it_is_on_the_scale_of_what_was_measured(measured: Losses, estimated: Losses) -> None:
    assert estimated.spread is not None
    assert measured.spread is None
    apart = [
        abs(math.log(estimated.behind[block][place] / measured.behind[block][place]))
        for block in BLOCKS
        for place in range(1, len(COUNTS))
    ]
    assert sum(apart) / len(apart) < 1.5  # a wrong power or factor would be off by several


def test_it_has_the_shape_of_measured_losses(measured: Losses, estimated: Losses) -> None:
    assert estimated.counts == measured.counts
    assert estimated.kind == measured.kind
    assert len(estimated.behind) == len(measured.behind)
    for row in estimated.behind:
        assert row[0] == 0.0
        assert list(row[1:]) == sorted(row[1:])
    assert estimated.behind[0] == estimated.behind[BLOCKS[0]]  # blocks that were not tried follow the next
    assert set(estimated.behind[11]) == {0.0}


def test_a_policy_that_fuses_is_scored_with_nothing_leaving(trial: Trial) -> None:
    fusing = Trial(trial.dense, Policy.load("evit"), trial.batches[0][:8])
    found = fast.estimate(fusing, COUNTS, BLOCKS, "images")
    assert all(value > 0 for block in BLOCKS for value in found.behind[block][1:])
