"""Wrong rewrites are caught: those of a few programs here, all of them by `make mutants`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prunec import ops
from prunec.verify.certificate import certify
from tests.mutants import MUTANTS, SCORING
from tests.mutants.judge import changes_something, judge
from tests.mutants.planting import planted
from tests.mutants.subjects import SUBJECTS, dense, lowered, plain

HERE = (
    "class token, drop",
    "class token, fuse",
    "mean head, drop",
    "dense output, stale",
    "merging pairs",
    "packed, dense output",
)
CASES = [
    pytest.param(mutant, subject, id=f"{mutant.name} ({subject})")
    for mutant in MUTANTS
    for subject in [next((each for each in mutant.subjects if each in HERE), None)]
    if subject is not None
]
TABLE = Path(__file__).parent.parent / "docs" / "mutants.md"


@pytest.mark.parametrize("subject", HERE)
def test_without_a_mistake_a_program_passes(subject: str) -> None:
    certificate = certify(dense(SUBJECTS[subject].model), plain(subject))
    assert certificate.unproven is None
    assert certificate.own_counts is not None
    assert certificate.own_counts < 1e-6
    lowered(subject)


@pytest.mark.parametrize(("mutant", "subject"), CASES)
def test_a_mistake_is_caught(mutant, subject: str) -> None:
    assert judge(mutant, subject).caught_by


def test_a_wrong_score_is_the_policys_business() -> None:
    for mutant in SCORING:
        (subject,) = mutant.subjects
        lowered(subject)
        assert changes_something(mutant, subject)
        assert judge(mutant, subject).caught_by is None


def test_an_operation_is_itself_again_when_the_mistake_is_taken_out() -> None:
    x, index = torch.randn(1, 4, 2), torch.tensor([[2, 3]])
    with planted(ops.gather, lambda original, x, index: original(x, index) + 1):
        assert torch.equal(ops.gather(x, index), x[:, 2:] + 1)
    assert torch.equal(ops.gather(x, index, 1), x[:, 2:])


def test_the_page_lists_every_mistake_and_none_that_lives() -> None:
    page = TABLE.read_text(encoding="utf-8")
    names = {mutant.name for mutant in (*MUTANTS, *SCORING)}
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    assert names <= {row[0].removeprefix("| ") for row in rows}
    assert "UNEXPECTED" not in page
    assert len(MUTANTS) >= 60
