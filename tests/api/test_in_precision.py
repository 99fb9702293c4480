"""Another precision, from `optimize` to an artefact and back."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import prunec
from prunec.api.results import Result
from prunec.api.verifying import verify
from prunec.errors import TargetError, UsageError
from prunec.measure import cost
from prunec.measure.cost import Timing
from prunec.targets.precision import BOUNDS
from tests.api.making import EVIT, images, vit
from tests.targets.cases import difference

MEASURED = cost.measure


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """An artefact of a machine on which bf16 is fast."""

    def measured(calls: dict[str, Any], **how: Any) -> dict[str, Timing]:
        found = MEASURED(calls, **how)
        shares = {name: 0.01 if name.endswith(" bf16") else 1.0 for name in found}
        return {
            name: Timing(name, tuple(shares[name] * each for each in timing.samples))
            for name, timing in found.items()
        }

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(cost, "measure", measured)
        how = prunec.Measure(target="eager", batch=2, rounds=5, precision="bf16")
        result = prunec.optimize(vit(), prunec.Policy.load("evit", **EVIT), measure=how)
    return result.save(tmp_path_factory.mktemp("artefacts") / "out"), result


def test_the_report_says_what_was_taken_and_what_is_lost(taken: tuple[Path, Result]) -> None:
    report = taken[1].report
    assert (report.target, report.precision) == ("eager", "bf16")
    assert report.parity is not None
    assert 1e-5 < report.parity.largest < report.parity.tolerance == BOUNDS["bf16"]
    assert report.targets is not None
    assert report.targets.taken == report.targets.fastest_dense == "eager bf16"
    text = report.text()
    assert "target eager in bf16" in text
    assert "eager bf16 dense" in text
    assert not any("asked for" in note for note in report.notes)


def test_it_takes_and_gives_single_precision(taken: tuple[Path, Result]) -> None:
    x = images(3)
    exact = prunec.transform(vit(), prunec.Policy.load("evit", **EVIT))(x)
    found = taken[1].module(x)
    assert found.dtype == torch.float32
    assert 1e-5 < difference(found, exact) < BOUNDS["bf16"]
    assert {each.dtype for each in taken[1].module.state_dict().values()} == {torch.float32}


def test_an_artefact_keeps_the_precision_in_the_models_own_file_too(taken: tuple[Path, Result]) -> None:
    folder, result = taken
    x = images(3)
    assert torch.equal(prunec.load(folder)(x), result.module(x))
    assert torch.equal(prunec.load(folder, model=vit())(x), result.module(x))
    with torch.no_grad():
        file = torch.export.load(folder / "model.pt2")
        assert torch.equal(file.module()(x), result.module(x))
    assert {each.dtype for each in file.state_dict.values()} == {torch.bfloat16}
    assert not [row for row in verify(folder, rebuild=False) if row.verdict == "failed"]


def test_what_cannot_be_is_refused_before_a_model_is_read() -> None:
    with pytest.raises(TargetError, match="not in int8"):
        prunec.optimize("no:such", "evit", measure=prunec.Measure(target="pt2", precision="int8"))
    with pytest.raises(UsageError, match="unknown precision 'int4'; nearest: int8"):
        prunec.Measure(precision="int4")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="precision has no effect here"):
        prunec.plan("no:such", "evit", prunec.Goal(latency=0.5), measure=prunec.Measure(precision="bf16"))
