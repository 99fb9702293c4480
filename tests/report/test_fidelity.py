from __future__ import annotations

import dataclasses

from prunec.measure.fidelity import outputs_of
from prunec.measure.scores import Compared, Comparison, Score
from prunec.report.fidelity import rows_of

SCORE = Score(similarity=0.9, agreement=0.8, divergence=0.1, relative_l2=0.3)
SPREAD = Score(similarity=0, agreement=0.02, divergence=0.01, relative_l2=0.01)
LOGITS, STATES = outputs_of([("logits", (7,)), ("last_hidden_state", (26, 16))])
SCORES = {"dense": SCORE, "pruned": SCORE, "random": SCORE, "spread": SPREAD}
FOUND = Comparison(
    100, 5, SCORE, SCORE, SCORE, SPREAD, outputs=(Compared(LOGITS, SCORES), Compared(STATES, SCORES))
)


def test_every_output_stands_beside_its_control() -> None:
    assert list(rows_of(FOUND, "images of here")) == [
        (
            "fidelity",
            "outputs agree with the dense model's, on 100 images of here: class scores logits [B, 7] "
            "(it is called logits)",
        ),
        ("", "pruned   same best class 80.0%, KL 0.1000, relative L2 0.300"),
        (
            "",
            "random   same best class 80.0% ± 2.0%, KL 0.1000, relative L2 0.300 (the same counts, 5 seeds)",
        ),
        ("", "features last_hidden_state [B, 26, 16] (a guess: rows of numbers)"),
        ("", "pruned   cosine 0.9000, relative L2 0.300"),
        ("", "random   cosine 0.9000 ± 0.0000, relative L2 0.300 (the same counts, 5 seeds)"),
    ]


def test_a_smaller_picture_or_why_there_is_none() -> None:
    none = dataclasses.replace(FOUND, resized="left out: it takes one size")
    assert list(rows_of(none, ""))[-1] == ("", "resize   left out: it takes one size")
    main = Compared(LOGITS, {**SCORES, "resize": SCORE})
    some = dataclasses.replace(FOUND, resize=SCORE, resized="on 8 x 8 pixels", outputs=(main,))
    assert list(rows_of(some, ""))[-1] == (
        "", "resize   same best class 80.0%, KL 0.1000, relative L2 0.300 (on 8 x 8 pixels)",
    )  # fmt: skip


def test_labels_and_a_metric_of_ones_own_are_of_the_dense_model_too() -> None:
    dense, pruned, spread = (
        dataclasses.replace(score, accuracy=value, metric=10 * value)
        for score, value in ((SCORE, 0.99), (SCORE, 0.75), (SPREAD, 0.02))
    )
    found = dataclasses.replace(
        FOUND, dense=dense, pruned=pruned, random=pruned, spread=spread, metric="mine"
    )
    rows = list(rows_of(found, "images of here"))
    assert rows[:4] == [
        ("accuracy", "on 100 images of here"),
        ("", "dense     99.00%"),
        ("", "pruned    75.00%"),
        ("", "random    75.00% ± 2.00 (the same counts, 5 seeds)"),
    ]
    assert rows[-4:] == [
        ("metric", "mine"),
        ("", "dense        9.9"),
        ("", "pruned       7.5"),
        ("", "random       7.5 ± 0.2 (the same counts, 5 seeds)"),
    ]
