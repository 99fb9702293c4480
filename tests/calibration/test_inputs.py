from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prunec.calibration.inputs import batch_of, call_on, fitting_batches
from prunec.errors import CalibrationError
from prunec.ir.program import Recognised
from tests.calibrating import dense_vit, images
from tests.tiny import ViT, recognised


@pytest.fixture(scope="module")
def dense() -> Recognised:
    return dense_vit()


def test_images_of_another_kind_are_refused_with_the_kind_that_is_wanted(dense: Recognised) -> None:
    for wrong in (images().double(), images()[..., :16]):
        with pytest.raises(CalibrationError, match=r"the model takes torch.float32\['n', 3, 20, 20\]"):
            fitting_batches(dense, wrong)


def test_a_model_that_fixes_its_batch_is_calibrated_at_that_batch() -> None:
    class Fixed(ViT):
        def forward(self, pixels: Tensor) -> Tensor:
            return super().forward(pixels.reshape(2, 3, 20, 20))

    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="the batch is fixed at 2"):
        dense = recognised(Fixed(depth=3))
    assert len(fitting_batches(dense, images(17))) == 16
    assert batch_of(dense) == 2


def test_too_few_images(dense: Recognised) -> None:
    with pytest.raises(CalibrationError, match="7 images are too few") as caught:
        fitting_batches(dense, images(7))
    assert "8 or more" in str(caught.value.remedy)


def test_images_stand_in_the_place_of_the_example(dense: Recognised) -> None:
    x = images(3)
    (given,) = call_on(dense, x)
    assert given is x
