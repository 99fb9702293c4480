"""What every selection must be."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from prunec.errors import VerificationError
from prunec.ir.program import Planned
from prunec.verify import invariants, runs
from prunec.verify.choices import Choice


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
