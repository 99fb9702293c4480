from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from prunec.scorers import fitting


def test_rank_correlation() -> None:
    x = torch.tensor([3.0, 1.0, 2.0, 9.0])
    assert fitting.rank_correlation(x, x.exp()) == pytest.approx(1.0)
    assert fitting.rank_correlation(x, -x) == pytest.approx(-1.0)


def test_importance_counts_by_its_place_between_the_median_and_the_most_of_its_image() -> None:
    image = torch.tensor([1.0, 2.0, 4.0, 8.0, 64.0])
    found = fitting.on_one_scale(torch.stack([image, 100 * image, image**3, torch.ones(5)]))
    expected = torch.tensor([-0.5, -0.25, 0.0, 0.25, 1.0])
    expected = torch.stack([expected, expected, expected, torch.zeros(5)])
    torch.testing.assert_close(found, (expected - expected.mean()) / expected.std())


def test_logs_of_importance_are_0_on_average_over_an_image() -> None:
    image = torch.tensor([1.0, torch.e, torch.e**2])
    found = fitting.logs(torch.stack([image, 100 * image, torch.zeros(3)]))
    expected = torch.tensor([-1.0, 0.0, 1.0])
    torch.testing.assert_close(found, torch.stack([expected, expected, torch.zeros(3)]))


def linear(context: bool = False) -> nn.Module:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.context, self.layer = context, nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)[..., 0]

    return Linear()


@pytest.mark.parametrize("context", [False, True])
def test_a_scorer_learns_what_can_be_read_off_a_state(context: bool) -> None:
    states = torch.randn(16, 12, 4)
    importance = (states @ torch.tensor([1.0, -2.0, 0.5, 0.0])).exp()
    gate = linear(context)
    with torch.no_grad():
        before = fitting.rank_correlation(gate(states).flatten(), importance.flatten())
    assert fitting.fit(gate, states, fitting.on_one_scale(importance)) > max(
        0.7, before + 0.3
    )  # on images that it has not seen


def test_noise_is_not_predicted() -> None:
    assert abs(fitting.fit(linear(), torch.randn(16, 12, 4), torch.rand(16, 12))) < 0.5


def test_a_scorer_without_parameters_is_only_judged() -> None:
    class First(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[..., 0]

    states = torch.randn(8, 12, 4)
    assert fitting.fit(First(), states, states[..., 0].exp()) > 0.9


def test_a_grader_learns_the_models_own_classes() -> None:
    states = torch.randn(16, 12, 4)
    grades = states @ torch.randn(4, 3) * 4
    gate = nn.Linear(4, 3)
    with torch.no_grad():
        same = gate(states).argmax(dim=-1) == grades.argmax(dim=-1)
    before = float(same.float().mean())
    assert fitting.fit_grader(gate, states, grades) > before + 0.2
