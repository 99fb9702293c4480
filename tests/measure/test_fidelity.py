"""What kind an output is, near misses among them, and the figures of each kind by hand."""

from __future__ import annotations

import math

import pytest
import torch

from prunec.measure.fidelity import FIGURES, Known, Output, averaged, figures, kept, outputs_of

VIT = Known(width=16, tokens=(26, 25), picture=(20, 20))
NAMED = Known({7: "the model names 7 classes"}, 16, (26, 25), (20, 20))
HEADLESS = Known({0: "the model has no classes"}, 16, (26, 25), (20, 20))


@pytest.mark.parametrize(
    ("name", "sizes", "known", "kind"),
    [
        # one row of numbers
        ("", (7,), VIT, "class scores"),
        ("", (16,), VIT, "features"),  # as wide as the tokens
        ("", (16,), Known({16: "so many folders"}, 16), "class scores"),
        ("logits", (16,), VIT, "class scores"),
        ("pooler_output", (7,), VIT, "features"),
        ("image_embeds", (7,), VIT, "features"),
        ("image_embeds", (7,), NAMED, "class scores"),  # what the model says of itself comes first
        ("", (7,), HEADLESS, "features"),
        ("", (1,), VIT, "numbers"),  # one class would always be the best
        ("logits", (1,), VIT, "numbers"),
        ("", (), VIT, "numbers"),
        # rows
        ("", (26, 8), VIT, "features"),
        ("", (25, 8), VIT, "features"),
        ("last_hidden_state", (10, 16), VIT, "features"),
        ("", (20, 20), VIT, "map"),
        ("", (10, 10), VIT, "map"),
        ("", (20, 10), VIT, "features"),
        ("", (25, 25), VIT, "features"),  # of the picture's shape too, and a row for each token
        ("predicted_depth", (14, 30), VIT, "map"),
        # planes
        ("", (1, 20, 20), VIT, "map"),
        ("logits", (7, 5, 5), VIT, "class map"),
        ("", (7, 5, 5), VIT, "class map"),
        ("", (16, 5, 5), VIT, "features"),
        ("", (5, 5, 16), VIT, "features"),  # channels last
        ("masks_queries_logits", (7, 5, 5), VIT, "map"),
        ("masks_queries_logits", (7, 5, 5), NAMED, "class map"),
        ("feature_maps[0]", (7, 5, 5), VIT, "features"),
        ("heatmaps", (17, 5, 5), VIT, "map"),
        ("out", (7, 5, 5), VIT, "map"),  # a name that says nothing of classes
        ("", (2, 3, 4, 5), VIT, "features"),
    ],
)
def test_the_kind_of_an_output(name: str, sizes: tuple[int, ...], known: Known, kind: str) -> None:
    (output,) = outputs_of([(name, sizes)], known)
    assert output.kind == kind
    assert output.why
    assert output.main == FIGURES[output.kind][0]


def test_a_guess_is_called_one() -> None:
    assert outputs_of([("", (7,))], VIT)[0].why.startswith("a guess")
    assert outputs_of([("", (16,))], VIT)[0].why.startswith("a guess")
    assert not outputs_of([("logits", (7,))], VIT)[0].why.startswith("a guess")
    assert not outputs_of([("", (7,))], NAMED)[0].why.startswith("a guess")
    labelled = Known(width=16, labelled=7)
    assert not outputs_of([("", (7,))], labelled)[0].why.startswith("a guess")
    assert outputs_of([("", (6,))], labelled)[0].why.startswith("a guess")  # too few for these labels


@pytest.mark.parametrize(
    ("leaves", "kinds"),
    [
        ([("logits", (9, 5)), ("pred_boxes", (9, 4))], ["boxes", "features"]),
        ([("[0]", (9, 5)), ("[1]", (9, 4))], ["boxes", "features"]),  # four numbers beside scores
        ([("logits", (9, 5)), ("pred_boxes", (8, 4))], ["features", "features"]),  # of other rows
        ([("pred_boxes", (9, 4))], ["features"]),  # without scores
        ([("[0]", (26, 5)), ("[1]", (26, 4))], ["features", "features"]),  # a row for each token
        ([("[0]", (9, 5)), ("[1]", (9, 3))], ["features", "features"]),
    ],
)
def test_boxes_have_scores_beside_them(leaves: list[tuple[str, tuple[int, ...]]], kinds: list[str]) -> None:
    assert [output.kind for output in outputs_of(leaves, VIT)] == kinds


def test_boxes_are_the_main_output_and_know_their_scores() -> None:
    boxes, _ = outputs_of([("logits", (9, 5)), ("pred_boxes", (9, 4)), ("last_hidden_state", (9, 16))], VIT)[
        :2
    ]
    assert (boxes.place, boxes.scores) == (1, 0)
    assert str(boxes) == "boxes pred_boxes [B, 9, 4]"


# Figures ----------------------------------------------------------------------------------------------------


def output(kind: str, sizes: tuple[int, ...]) -> Output:
    return Output(0, "", sizes, kind, "said")  # type: ignore[arg-type]


def test_a_class_map_agrees_in_a_share_of_its_pixels() -> None:
    expected = torch.zeros(2, 3, 2, 2)
    expected[:, 1] = 1
    found = expected.clone()
    found[0, 2, 0, 0] = 2
    assert figures("class map", found, expected)["agreement"].tolist() == [0.75, 1]


def test_maps_correlate_whatever_their_level() -> None:
    expected = torch.randn(3, 4, 4)
    assert figures("map", 2 * expected + 5, expected)["correlation"].tolist() == pytest.approx(
        [1] * 3, abs=1e-5
    )
    assert figures("map", -expected, expected)["correlation"].tolist() == pytest.approx([-1] * 3, abs=1e-5)
    flat = torch.full((1, 4, 4), 2.0)
    assert figures("map", flat, flat)["correlation"].item() == 1
    assert figures("map", flat, expected[:1])["correlation"].item() == pytest.approx(0, abs=1e-5)


def test_zeros_equal_zeros() -> None:
    zeros = torch.zeros(2, 3)
    assert figures("features", zeros, zeros)["similarity"].tolist() == [1, 1]


def l2(found: list[list[float]], expected: list[list[float]]) -> float:
    one, other = (torch.tensor(each, dtype=torch.float32) for each in (found, expected))
    features = output("features", (2,))
    batches = [kept(features, [a[None]], [b[None]]) for a, b in zip(one, other, strict=True)]
    return averaged(batches)["relative_l2"]


def test_relative_l2() -> None:
    assert l2([[3, 0], [0, 0]], [[3, 0], [0, 4]]) == pytest.approx(0.8)
    assert l2([[0, 0], [0, 0]], [[3, 0], [0, 4]]) == 1
    assert l2([[0, 0]], [[0, 0]]) == 0
    assert l2([[1, 0]], [[0, 0]]) == math.inf


def test_infinities_that_are_the_same_do_not_differ_and_nan_is_told() -> None:
    assert l2([[-math.inf, 1]], [[-math.inf, 2]]) == 0.5
    assert l2([[2, 1]], [[-math.inf, 1]]) == math.inf
    assert math.isnan(l2([[math.nan, 1]], [[1, 1]]))
