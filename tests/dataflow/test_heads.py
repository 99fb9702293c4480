from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunec.dataflow.heads import ClassScores, class_scores
from prunec.structure import NoMatch
from tests.tiny import ViT, recognised


def scores_of(model: nn.Module) -> ClassScores | NoMatch:
    return class_scores(recognised(model))


class Segmenter(ViT):
    """Scores of each patch, and whatever comes after them."""

    def __init__(self, after: Callable[[Tensor], Any] = lambda x: x, **options: Any) -> None:
        super().__init__(**{"read": lambda x: x[:, 1:], **options})
        self.after = after

    def forward(self, pixels: Tensor) -> Any:
        return self.after(super().forward(pixels))


def upsampled(x: Tensor) -> Tensor:
    grid = x.transpose(1, 2).unflatten(2, (5, 5))
    return nn.functional.interpolate(grid, scale_factor=4.0, mode="bilinear")


@pytest.mark.parametrize("after", [lambda x: x, upsampled, lambda x: x.softmax(dim=-1)])
def test_one_vector_for_each_patch_whatever_comes_after_without_weights(
    after: Callable[[Tensor], Any],
) -> None:
    found = scores_of(Segmenter(after))
    assert isinstance(found, ClassScores)
    assert (found.axis, found.classes, found.all_tokens) == (2, 7, False)


def test_of_all_tokens_protected_ones_included() -> None:
    found = scores_of(Segmenter(read=lambda x: x))
    assert isinstance(found, ClassScores)
    assert found.all_tokens


def test_classes_may_come_first() -> None:
    class Grid(ViT):
        def __init__(self) -> None:
            super().__init__()
            self.scores = nn.Conv2d(16, 7, 1)

        def forward(self, pixels: Tensor) -> Tensor:
            x = self.norm(self.blocks(self.embed(pixels)))
            return self.scores(x[:, 1:].transpose(1, 2).unflatten(2, (5, 5)))

    found = scores_of(Grid())
    assert isinstance(found, ClassScores)
    assert (found.axis, found.classes, found.all_tokens) == (1, 7, False)


class Mixing(ViT):
    """A head in which patches look at their neighbours before they are scored."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(16, 7, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.norm(self.blocks(self.embed(pixels)))
        return self.mix(x[:, 1:].transpose(1, 2).unflatten(2, (5, 5)))


NONE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "one vector for the image": (ViT, "not one vector for each token"),
    "neighbours": (Mixing, "not one vector for each token"),
    "no layer": (lambda: Headless(), "no layer"),
}


class Headless(ViT):
    def forward(self, pixels: Tensor) -> Tensor:
        return self.norm(self.blocks(self.embed(pixels)))


@pytest.mark.parametrize("name", NONE)
def test_a_head_without_scores_of_each_token_says_why(name: str) -> None:
    make, words = NONE[name]
    torch.manual_seed(0)
    found = scores_of(make())
    assert isinstance(found, NoMatch)
    assert words in found.reason
