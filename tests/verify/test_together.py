from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from prunec.verify.reference import UnprovenError
from prunec.verify.together import how_shared, together

ONE, OTHER = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 5.0]])


def joined(parts: list[Any], whole: Any, shared: Any = None) -> Any:
    return together([[part] for part in parts], [whole], lambda _: shared)[0]


def test_images_stand_side_by_side() -> None:
    whole = torch.cat([ONE, OTHER])
    assert torch.equal(joined([ONE, OTHER], whole), whole)
    assert torch.equal(joined([ONE.T, OTHER.T], whole.T), whole.T)


def test_what_is_the_same_for_each_stays_so() -> None:
    assert joined([ONE, ONE.clone()], ONE) is ONE
    assert joined([3, 3], 3) == 3


@pytest.mark.parametrize("loss", [torch.mean, torch.sum])
def test_a_loss_is_what_the_dense_graph_makes_of_the_images(loss: Any) -> None:
    parts = [torch.tensor(1.0), torch.tensor(4.0)]
    shared = how_shared(parts, loss(torch.stack(parts)), 0)
    others: list[Tensor] = [torch.tensor(2.0), torch.tensor(5.0)]
    assert joined(others, torch.tensor(0.0), shared) == loss(torch.stack(others))


def test_a_product_of_images_is_neither() -> None:
    with pytest.raises(UnprovenError) as caught:
        how_shared([torch.tensor(2.0), torch.tensor(5.0)], torch.tensor(10.0), 3)
    assert caught.value.reason.startswith("output 3 combines all images, and is neither the mean")
