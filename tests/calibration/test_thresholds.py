from __future__ import annotations

import pytest

from prunec.calibration.calibrate import calibrate
from prunec.ir.program import Recognised
from tests.calibrating import counts, dense_vit, images, pruned


@pytest.fixture(scope="module")
def dense() -> Recognised:
    return dense_vit()


@pytest.mark.parametrize("scorer", ["mlp", "norm"])
@pytest.mark.parametrize("reactivate", [True, False])
def test_the_mean_over_the_images_is_what_was_asked_for_and_images_differ(
    dense: Recognised, scorer: str, reactivate: bool
) -> None:
    program = pruned(dense, scorer=scorer, reactivate=reactivate, keep=0.4)
    x = images()
    fitted = calibrate(dense, program, x, "images")
    result, program = fitted.calibration, fitted.put_into(program)
    asked = [site.keep for site in program.plan.sites]
    found = counts(program, x)
    assert [float(kept.double().mean()) for kept in found] == pytest.approx(asked, abs=1 / len(x))
    assert all(len(set(kept.tolist())) > 1 for kept in found)
    assert [share for share, _ in result.shares] == [keep / 25 for keep in asked]
    assert all(met == pytest.approx(share, abs=0.01) for share, met in result.shares)
    assert len(result.fits) == (2 if scorer == "mlp" else 0)
