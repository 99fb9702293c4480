"""When outputs are warned of, and when they are useless: each threshold from both sides."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from prunec.measure.fidelity import outputs_of
from prunec.measure.scores import Compared, Comparison, Score
from prunec.measure.verdict import FAR, ZEROS, judged, no_better

LEAVES: dict[str, tuple[str, tuple[int, ...]]] = {
    "agreement": ("logits", (7,)),
    "similarity": ("last_hidden_state", (26, 16)),
    "correlation": ("predicted_depth", (20, 20)),
    "relative_l2": ("", (1,)),
}


def score(**figures: float) -> Score:
    return Score(**{"similarity": 0.9, "divergence": 0.1, "relative_l2": 0.1, **figures})


def compared(main: str = "agreement", **scores: dict[str, float]) -> Compared:
    (output,) = outputs_of([LEAVES[main]])
    assert output.main == main
    return Compared(output, {name: score(**figures) for name, figures in scores.items()})


def comparison(*outputs: Compared, images: int = 32) -> Comparison:
    main: dict[str, Any] = {name: outputs[0].scores.get(name) for name in ("pruned", "random", "spread")}
    return Comparison(images, 5, dense=score(similarity=1), **main, outputs=outputs)


def beside(pruned: float, random: float, spread: float, main: str = "agreement", **more: float) -> Comparison:
    return comparison(
        compared(
            main,
            pruned={main: pruned, **more},
            random={main: random, "relative_l2": 0.3} if main != "relative_l2" else {main: random},
            spread={main: spread},
        )
    )


def test_better_than_chance() -> None:
    found = judged(beside(0.9, 0.7, 0.05))
    assert (found.warnings, found.short, found.useless) == ((), (), "")
    assert found.said == "same best class as the dense model 90.0% (random tokens 70.0% ± 5.0%) on 32 images"


@pytest.mark.parametrize(
    ("pruned", "random", "spread", "warned"),
    [
        (0.9, 0.89, 0.02, True),  # within the spread of the seeds
        (0.9, 0.87, 0.02, False),
        (0.8, 0.9, 0.02, True),
        (0.9, 0.9, 0.0, True),
        (math.nan, 0.9, 0.0, True),
    ],
)
@pytest.mark.parametrize("main", ["agreement", "similarity", "correlation"])
def test_no_better_than_random(pruned: float, random: float, spread: float, warned: bool, main: str) -> None:
    found = judged(beside(pruned, random, spread, main))
    assert (found.short == ("no better than random tokens",)) is warned
    assert bool(found.warnings) is warned
    assert found.useless == ""
    if warned:
        assert "no better than random tokens" in found.warnings[0]
        assert "32 images" in found.warnings[0]


def test_of_distances_less_is_better() -> None:
    assert judged(beside(0.1, 0.2, 0.01, "relative_l2")).short == ()
    assert judged(beside(0.2, 0.1, 0.01, "relative_l2")).short == ("no better than random tokens",)


@pytest.mark.parametrize(
    ("pruned", "random", "resize", "short"),
    [
        (0.8, 0.7, 0.9, ("worse than a smaller picture",)),
        (0.89, 0.7, 0.9, ()),  # within the spread of the seeds
        (0.9, 0.7, 0.8, ()),
        (0.8, 0.8, 0.9, ("no better than random tokens",)),  # the stronger warning alone
        (1.0, 0.7, 1.0, ()),
        (0.8, 0.7, math.nan, ()),
    ],
)
def test_a_smaller_picture_may_do_better(
    pruned: float, random: float, resize: float, short: tuple[str, ...]
) -> None:
    named = {"pruned": pruned, "random": random, "spread": 0.02, "resize": resize}
    distances = {"random": 0.3}
    figures = {
        name: {"similarity": value, "relative_l2": distances.get(name, 0.1)} for name, value in named.items()
    }
    output = compared("similarity", **figures)
    found = judged(dataclasses.replace(comparison(output), resized="the same model on 32 x 32 pixels"))
    assert found.short == short
    if "worse than a smaller picture" in short:
        assert found.warnings[0].startswith(
            "worse than a smaller picture (the same model on 32 x 32 pixels): cosine"
        )


def test_where_the_main_figure_cannot_be_improved_the_next_one_tells() -> None:
    def perfect(divergence: float) -> Compared:
        return compared(
            pruned={"agreement": 1, "divergence": divergence},
            random={"agreement": 1, "divergence": 0.2},
            spread={"agreement": 0, "divergence": 0.01},
        )

    assert no_better(perfect(0.1)) == ""
    assert no_better(perfect(0.3)) == "divergence"
    assert "KL 0.3000 (random tokens 0.2000 ± 0.0100)" in judged(comparison(perfect(0.3))).warnings[0]


def test_what_changes_nothing_is_no_worse_than_chance() -> None:
    same = {"agreement": 1.0, "divergence": 0.0, "relative_l2": 0.0}
    found = compared(pruned=same, random=same, spread={"agreement": 0, "divergence": 0, "relative_l2": 0})
    assert no_better(found) == ""


def test_few_images_or_no_choice_tell_nothing_of_chance() -> None:
    output = beside(0.8, 0.9, 0.02).outputs[0]
    assert judged(comparison(output, images=8)).short
    assert not judged(comparison(output, images=7)).short
    assert not judged(comparison(output), chosen=False).short


def test_without_a_control_nothing_is_said_of_one() -> None:
    found = judged(comparison(compared(pruned={"agreement": 0.9})))
    assert found.said == "same best class as the dense model 90.0% on 32 images"
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("distance", "short", "useless"),
    [
        (FAR, "", False),
        (FAR + 0.01, "far", False),
        (ZEROS, "far", False),
        (ZEROS + 0.01, "zeros", True),
        (math.inf, "zeros", True),
        (math.nan, "zeros", True),
    ],
)
def test_how_far_from_the_dense_models(distance: float, short: str, useless: bool) -> None:
    found = judged(beside(0.9, 0.7, 0.05, relative_l2=distance))
    assert (short in " ".join(found.short)) if short else not found.short
    assert len(found.warnings) == bool(short)
    assert bool(found.useless) is useless


def test_the_furthest_output_counts_whichever_it_is_and_is_named() -> None:
    near = compared(pruned={"agreement": 0.9})
    far = compared("similarity", pruned={"relative_l2": 1.5})
    found = judged(comparison(near, far))
    assert "last_hidden_state" in found.useless
    assert "1.50" in found.useless
    assert judged(comparison(near)).useless == ""


def test_several_warnings_stand_beside_each_other() -> None:
    found = judged(beside(0.7, 0.8, 0.01, relative_l2=1.2))
    assert len(found.warnings) == len(found.short) == 2


def test_nothing_is_said_of_nothing() -> None:
    empty = Comparison(4, 0, dense=Score(1), pruned=Score(0.1, relative_l2=9))
    assert (judged(empty).said, judged(empty).warnings) == ("", ())
