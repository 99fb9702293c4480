"""DToP: tokens whose class is sure exit, and METHODS 4.7, against plain loops."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunec import ops
from tests import methods
from tests.families import difference, randomise
from tests.watching import (
    GRID,
    TOLERANCE,
    check,
    images,
    learned,
    preset,
    segmenter,
    separate,
    sites,
    threshold,
    thresholds,
    transformed,
    vit,
    watch,
)

NUMBER = 6  # of classes


class Convolved(methods.Segmenter):
    """The class scores through a 1 x 1 convolution: [B, K, h, w]."""

    def forward(self, x: Tensor) -> Tensor:
        patches = self.backbone.forward_features(x)[:, 1:].transpose(1, 2).unflatten(2, GRID)
        logits = F.conv2d(patches, self.head.weight[:, :, None, None], self.head.bias)
        return F.interpolate(logits, size=x.shape[-2:], mode="bilinear", align_corners=False)


class Listed(methods.Segmenter):
    """The class scores as they are: [B, N, K]."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone.forward_features(x)[:, 1:])


@functools.cache
def built(kind: type[methods.Segmenter]) -> methods.Segmenter:
    model = kind(vit(4), NUMBER).eval()
    randomise(model.head, seed=2)
    return model


def dtop(model: nn.Module, spare: int = 2, share: float = 0.4) -> nn.Module:
    """Two sites, and thresholds that less than half of the tokens are under."""
    fast = transformed(model, preset("dtop", sites={"depths": (0.5, 0.75)}, selector={"spare": spare}))
    separate(fast, images(), share)
    return fast


def reference_of(
    fast: nn.Module, model: methods.Segmenter, spare: int = 2
) -> Callable[[Tensor], tuple[Tensor, list[list[int]], list[Tensor]]]:
    confidences = [(block, -value) for block, value in thresholds(fast)]
    return lambda image: methods.dtop(model, image, sites=confidences, parameters=learned(fast), spare=spare)


@pytest.mark.parametrize("kind", [methods.Segmenter, Convolved])
@pytest.mark.parametrize("spare", [0, 2])
def test_dtop(kind: type[methods.Segmenter], spare: int) -> None:
    model = built(kind)
    fast = dtop(model, spare, share=0.4 if spare else 0.7)
    assert [site.block for site in sites(fast)] == [2, 3]
    chosen = check(fast, reference_of(fast, model, spare))
    assert len({len(rows[-1]) for rows in chosen}) > 1


def test_dtop_with_class_scores_in_a_list() -> None:
    model = built(Listed)
    fast = dtop(model)
    reference = reference_of(fast, model)
    x = images()
    with torch.no_grad():
        found = fast(x).unflatten(1, GRID).movedim(-1, 1)
        found = F.interpolate(found, size=x.shape[-2:], mode="bilinear", align_corners=False)
        expected = torch.stack([reference(image)[0] for image in x])
    assert difference(found, expected) < TOLERANCE


# --- METHODS 4.7 ----------------------------------------------------------------------------


def test_a_confidence_1_is_the_dense_model() -> None:
    model, x = segmenter(4), images()
    fast = transformed(model, preset("dtop", selector={"at": 1.0}))
    assert sites(fast) == ()
    with torch.no_grad():
        assert difference(fast(x), model(x)) < TOLERANCE


def test_a_so_is_a_confidence_that_nothing_reaches() -> None:
    model, x = segmenter(4), images()
    fast = transformed(model, preset("dtop", sites={"depths": (0.5, 0.75)}, selector={"at": 0.999}))
    for number in range(2):
        threshold(fast, number).fill_(-1.0)
    assert {len(rows) for rows in watch(fast, x).rows(0)} == {29}
    with torch.no_grad():
        assert difference(fast(x), model(x)) < TOLERANCE


def test_b_what_has_exited_is_final() -> None:
    model, x = segmenter(4), images()
    fast = dtop(model)
    run = watch(fast, x)
    scattered = [result for target, result in run.values if target is ops.scatter]
    painted = [result for result in scattered if result.shape[1:] == (29, NUMBER)]
    assert len(painted) == 1  # by the second site, over what the first one said
    reference = reference_of(fast, model)
    for number, image in enumerate(x):
        with torch.no_grad():
            _, rows, canvases = reference(image)
        first = [row - 1 for row in range(1, 29) if row not in rows[0]]
        second = [row - 1 for row in range(1, 29) if row not in rows[1]]
        assert first
        assert set(first) < set(second)
        assert torch.equal(canvases[1][first], canvases[0][first])
        found = painted[0][number, 1:]
        torch.testing.assert_close(found[second], canvases[1][second], rtol=0, atol=1e-4)
        assert set(run.rows(number)[1]) < set(run.rows(number)[0])


def test_c_the_surest_of_each_class_stay_as_context_even_where_all_are_sure() -> None:
    model, x = segmenter(4), images()
    fast = transformed(model, preset("dtop"))  # spares five, as its paper does
    assert [site.block for site in sites(fast)] == [2]
    threshold(fast, 0).fill_(-0.01)  # below 1 / 6
    chosen = check(fast, reference_of(fast, model, spare=5))
    for rows, image in zip(chosen, x, strict=True):
        with torch.no_grad():
            parts = methods.take_apart(model, image)
            tokens = methods.model.run(parts.layers[1], methods.model.run(parts.layers[0], parts.tokens))
            labels = methods.dtop_grader(tokens[1:], learned(fast)[0]).argmax(dim=-1).tolist()
        for label in set(labels):
            members = [row for row, other in enumerate(labels, 1) if other == label]
            assert sum(row in rows[0] for row in members) == min(5, len(members))


def test_d_what_stands_at_the_place_of_a_token_that_has_exited_is_never_read() -> None:
    model, x = segmenter(4), images()
    fast = dtop(model)
    plain = watch(fast, x)
    changed = []

    def spoil(target: Any, result: Any) -> Any:
        """Other values for rows that are gone, where all rows are put together again."""
        if target is not ops.scatter or result.shape[1:] != (29, 48):
            return result
        gone = torch.ones(result.shape[:2], dtype=torch.bool)
        for image in range(3):
            gone[image, plain.rows(image)[-1]] = False
        changed.append(int(gone.sum()))
        return torch.where(gone.unsqueeze(-1), result + 100.0, result)

    spoilt = watch(fast, x, spoil)
    assert len(changed) == 1
    assert changed[0] > 0
    assert difference(spoilt.result, plain.result) < TOLERANCE
    assert [spoilt.rows(image) for image in range(3)] == [plain.rows(image) for image in range(3)]


def test_tokens_that_have_exited_are_not_put_together_with_the_others_to_choose_again() -> None:
    fast = dtop(segmenter(4))
    wide = [result for target, result in watch(fast, images()).values if target is ops.scatter]
    states = [result for result in wide if result.shape[-1] == 48]
    assert sum(result.shape[1] == 29 for result in states) == 1  # for the head; none between the sites
