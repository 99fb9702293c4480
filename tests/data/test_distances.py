from __future__ import annotations

import math

import pytest
import torch

from prunec.data.distances import DISTANCES
from prunec.data.shapes import CLASS_NAMES

SIDE = torch.linspace(-1.25, 1.25, 501)
X, Y = torch.meshgrid(SIDE, SIDE, indexing="xy")

#: What each covers, by hand, in units of the surrounding circle.
TRIANGLE, STAR = 3 * math.sqrt(3) / 4, 10 * 0.5 * 0.42 * math.sin(math.pi / 5)
AREAS = {
    "circle": math.pi * 0.85**2,
    "square": 1.44**2,
    "triangle": TRIANGLE,
    "star": STAR,
    "ring": math.pi * (0.94**2 - 0.5**2),
    "cross": 2 * 1.9 * 0.56 - 0.56**2,
    "bar": 1.9 * 0.56,
}


def test_every_class_has_its_outline() -> None:
    assert tuple(DISTANCES) == CLASS_NAMES


@pytest.mark.parametrize("name", DISTANCES)
def test_an_outline_stays_within_about_the_surrounding_circle(name: str) -> None:
    inside = DISTANCES[name](X, Y) < 0
    assert inside.any()
    assert float(torch.hypot(X, Y)[inside].max()) < 1.05


@pytest.mark.parametrize("name", AREAS)
def test_an_outline_covers_what_it_does_by_hand(name: str) -> None:
    share = float((DISTANCES[name](X, Y) < 0).double().mean())
    assert share * 2.5**2 == pytest.approx(AREAS[name], rel=0.02)


@pytest.mark.parametrize("name", DISTANCES)
def test_a_distance_is_no_longer_than_the_way(name: str) -> None:
    found = DISTANCES[name](X, Y)
    step = float(SIDE[1] - SIDE[0])
    assert float(found.diff(dim=0).abs().max()) <= step * 1.001
    assert float(found.diff(dim=1).abs().max()) <= step * 1.001
