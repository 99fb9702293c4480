"""The outlines that scenes draw, as signed distances: negative inside, in units of the surrounding circle."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def circle(x: Tensor, y: Tensor) -> Tensor:
    """A disc."""
    return torch.hypot(x, y) - 0.85


def square(x: Tensor, y: Tensor) -> Tensor:
    """A square, its sides along the axes."""
    return torch.maximum(x.abs(), y.abs()) - 0.72


def triangle(x: Tensor, y: Tensor) -> Tensor:
    """A triangle with equal sides, one corner to the right."""
    slanted = 0.5 * x + math.sqrt(0.75) * y.abs()
    return torch.maximum(-x, slanted) - 0.5


def star(x: Tensor, y: Tensor) -> Tensor:
    """A star with five points."""
    # Fold the plane into one tenth of it, where a five-pointed star is one straight edge from tip to notch.
    tenth = math.pi / 5
    angle = torch.remainder(torch.atan2(y, x) + tenth, 2 * tenth) - tenth
    radius = torch.hypot(x, y)
    notch_x, notch_y = 0.42 * math.cos(tenth), 0.42 * math.sin(tenth)
    length = math.hypot(notch_y, 1 - notch_x)
    normal_x, normal_y = notch_y / length, (1 - notch_x) / length
    return radius * (normal_x * angle.cos() + normal_y * angle.sin().abs()) - normal_x


def ring(x: Tensor, y: Tensor) -> Tensor:
    """A ring."""
    return (torch.hypot(x, y) - 0.72).abs() - 0.22


def cross(x: Tensor, y: Tensor) -> Tensor:
    """A cross of two bars."""
    long, short = torch.maximum(x.abs(), y.abs()), torch.minimum(x.abs(), y.abs())
    return torch.maximum(long - 0.95, short - 0.28)


def crescent(x: Tensor, y: Tensor) -> Tensor:
    """A disc without another disc beside its middle."""
    return torch.maximum(torch.hypot(x, y) - 0.95, 0.75 - torch.hypot(x - 0.5, y))


def bar(x: Tensor, y: Tensor) -> Tensor:
    """A bar along x."""
    return torch.maximum(x.abs() - 0.95, y.abs() - 0.28)


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": circle,
    "square": square,
    "triangle": triangle,
    "star": star,
    "ring": ring,
    "cross": cross,
    "crescent": crescent,
    "bar": bar,
}
