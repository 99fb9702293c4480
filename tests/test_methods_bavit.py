"""BAViT: a pre-net in front of the model finds the background, against plain loops, and METHODS 3.7."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from tests import methods
from tests.families import HF, difference, randomise
from tests.watching import (
    TOLERANCE,
    check,
    counts,
    images,
    learned,
    preset,
    separate,
    sites,
    threshold,
    thresholds,
    transformed,
    vit,
    watch,
)

HEADS = 1  # of the pre-net: one for every 64 channels, and there are 48


@functools.cache
def yolos() -> nn.Module:
    """Six detection tokens at the end, positions added again between the blocks."""
    torch.manual_seed(0)
    config = transformers.YolosConfig(
        **{**HF, "image_size": [64, 112], "num_hidden_layers": 3},
        num_detection_tokens=6,
        use_mid_position_embeddings=True,
        num_labels=5,
    )
    return randomise(transformers.YolosForObjectDetection(config).eval(), seed=1)


def detections(output: Any) -> Tensor:
    """Class scores and boxes side by side, as the reference gives them."""
    return torch.cat([output.logits, output.pred_boxes], dim=-1)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], Tensor]]] = {
    "class token": (lambda: vit(3), lambda output: output),
    "detection tokens": (yolos, detections),
}


def bavit(model: nn.Module, embedding: str = "shared", **selector: Any) -> nn.Module:
    scorer = {"embedding": embedding}
    return transformed(model, preset("bavit", scorer=scorer, selector={"least": 4, **selector}))


def reference_of(fast: nn.Module, model: nn.Module) -> Callable[[Tensor], tuple[Tensor, list[list[int]]]]:
    return lambda image: methods.bavit(
        model, image, sites=thresholds(fast), parameters=learned(fast), number_of_heads=HEADS
    )


@pytest.mark.parametrize("embedding", ["shared", "own"])
@pytest.mark.parametrize("name", MODELS)
def test_bavit(name: str, embedding: str) -> None:
    build, read = MODELS[name]
    model, x = build(), images()
    fast = bavit(model, embedding)
    assert counts(fast) == [(0, 21)]  # 0.75 * 28
    assert ("embed.weight" in learned(fast)[0]) == (embedding == "own")
    separate(fast, x)
    chosen = check(fast, reference_of(fast, model), read=read)
    assert len({len(rows[0]) for rows in chosen}) > 1


# --- METHODS 3.7 ----------------------------------------------------------------------------


def test_some_patches_stay_in_any_case() -> None:
    model, x = vit(3), images()
    fast = bavit(model)
    threshold(fast, 0).fill_(1e9)
    run, output = watch(fast, x), None
    assert [len(run.rows(image)[0]) for image in range(3)] == [5, 5, 5]
    score = run.passing[0][0][:, 1:].sort(dim=1, descending=True).values  # [B, N]
    with torch.no_grad():
        output = fast(x)
        for number, image in enumerate(x):
            threshold(fast, 0).fill_(float(score[number, 3] + score[number, 4]) / 2)
            expected, _ = reference_of(fast, model)(image)
            assert difference(output[number], expected) < TOLERANCE


def test_a_fixed_number_of_foreground_patches() -> None:
    model, x = yolos(), images()
    fast = bavit(model, kind="top_k", keep_per_site=0.5)
    assert counts(fast) == [(0, 14)]
    assert not sites(fast)[0].ragged
    run = watch(fast, x)
    with torch.no_grad():
        output = detections(fast(pixel_values=x))
        for number, image in enumerate(x):
            parts = methods.take_apart(model, image)
            score = methods.bavit_scores(parts.tokens[1:29], learned(fast)[0], HEADS)
            fourteenth = score.sort(descending=True).values[13:15].mean()
            sites_ = [(0, float(fourteenth))]
            expected, rows = methods.bavit(
                model, image, sites=sites_, parameters=learned(fast), number_of_heads=HEADS
            )
            assert rows == run.rows(number)
            assert len(rows[0]) == 1 + 14 + 6
            assert difference(output[number], expected) < TOLERANCE
