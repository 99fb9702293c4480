from __future__ import annotations

import pytest

from prunec.calibration.calibrate import calibrate
from prunec.ir.program import Recognised
from tests.calibrating import dense_vit, images, pruned


@pytest.fixture(scope="module")
def dense() -> Recognised:
    return dense_vit()


def test_scorers_predict_tokens_that_they_have_not_seen(dense: Recognised) -> None:
    result = calibrate(dense, pruned(dense), images(32), "images").calibration
    assert min(result.fits) > 0.3
    assert "on 32 images, scorers rank held-out tokens at" in str(result)
