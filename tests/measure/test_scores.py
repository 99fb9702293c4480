from __future__ import annotations

import json

from prunec.measure.fidelity import outputs_of
from prunec.measure.scores import Compared, Comparison, Score


def test_a_score_has_the_figures_that_apply() -> None:
    score = Score(0.5, agreement=0.25)
    assert score.as_dict() == {"similarity": 0.5, "agreement": 0.25}
    assert str(score) == "similarity 0.5000, agreement 0.2500"


def test_a_bare_comparison_as_data() -> None:
    plain = Comparison(images=1, seeds=0, dense=Score(1.0), pruned=Score(0.5))
    assert plain.as_dict() == {
        "images": 1,
        "seeds": 0,
        "dense": {"similarity": 1.0},
        "pruned": {"similarity": 0.5},
    }


def test_a_whole_comparison_as_data() -> None:
    (output,) = outputs_of([("logits", (7,))])
    scores = {"dense": Score(1.0), "pruned": Score(0.5), "resize": Score(0.75)}
    found = Comparison(
        2, 0, **scores, outputs=(Compared(output, scores),), metric="mine", resized="on 8 x 8 pixels"
    ).as_dict()
    assert (found["metric"], found["resized"]) == ("mine", "on 8 x 8 pixels")
    (compared,) = found["outputs"]
    assert compared == {
        "name": "logits", "kind": "class scores", "why": "it is called logits", "main": "agreement",
        "dense": {"similarity": 1.0}, "pruned": {"similarity": 0.5}, "resize": {"similarity": 0.75},
    }  # fmt: skip


def test_what_is_not_finite_is_null_in_json() -> None:
    score = Score(float("nan"), relative_l2=float("inf"))
    found = Comparison(1, 0, dense=Score(1.0), pruned=score).as_dict()
    assert json.loads(json.dumps(found, allow_nan=False))["pruned"] == {
        "similarity": None,
        "relative_l2": None,
    }
