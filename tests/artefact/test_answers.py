from __future__ import annotations

import pytest
import torch

from prunec.artefact.answers import Answer, answers, in_words, leaves_of, stacked
from prunec.artefact.spec import OutputRecord, Spec
from prunec.errors import SourceError


def spec(*outputs: OutputRecord) -> Spec:
    return Spec(inputs=(), outputs=outputs)


def words(answer: Answer) -> list[str]:
    return list(in_words(answer))


def test_class_scores() -> None:
    scores = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]])
    record = OutputRecord(name="", sizes=(None, 3), kind="class scores", place=0)
    (first,), (second,) = answers(spec(record), ("cat", "dog"), [scores], 2)
    assert [(one["class"], one["label"]) for one in first["classes"]] == [(1, "dog"), (2, "")]
    assert [one["probability"] for one in first["classes"]] == pytest.approx([0.66524, 0.24473], abs=1e-5)
    assert second["classes"][0]["label"] == "cat"
    assert words(first) == [" 66.52%  dog", " 24.47%  class 2"]


def test_boxes_with_their_classes() -> None:
    logits = torch.tensor(
        [[[9.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 0.0, 9.0], [0.0, 0.0, 9.0], [0.0, 0.0, 9.0]]]
    )
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.4], [0.2, 0.2, 0.2, 0.2], *[[0.5, 0.5, 1.0, 1.0]] * 3]])
    record = OutputRecord(name="pred_boxes", sizes=(None, 5, 4), kind="boxes", place=1, scores=0)
    ((found,),) = answers(spec(record), ("cat", "dog"), [logits, boxes], 5)
    assert [one["label"] for one in found["boxes"]] == ["cat", "dog"]  # the last class is nothing
    assert found["boxes"][0]["box"] == pytest.approx([0.4, 0.3, 0.6, 0.7])
    assert words(found)[0] == "pred_boxes:  99.98%  cat  box 0.400, 0.300, 0.600, 0.700"
    ((none,),) = answers(spec(record), (), [torch.zeros(1, 5, 3), boxes], 5)
    assert words(none) == ["pred_boxes: nothing found"]


def test_a_class_map() -> None:
    planes = torch.zeros(1, 3, 2, 2)
    planes[0, 2] = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    record = OutputRecord(name="logits", sizes=(None, 3, 2, 2), kind="class map", place=0)
    ((found,),) = answers(spec(record), ("sky", "road", "tree"), [planes], 5)
    assert found["classes"] == [
        {"class": 2, "label": "tree", "share": 0.75},
        {"class": 0, "label": "sky", "share": 0.25},
    ]
    assert words(found) == ["logits:  75.00%  tree", "logits:  25.00%  sky"]


def test_features_are_summed_up() -> None:
    record = OutputRecord(name="last", sizes=(None, 2, 2), kind="features", place=0)
    ((found,),) = answers(spec(record), (), [torch.tensor([[[1.0, 2.0], [3.0, 6.0]]])], 5)
    assert found == {
        "output": "last", "kind": "features", "sizes": [2, 2], "least": 1.0, "mean": 3.0, "largest": 6.0,
    }  # fmt: skip
    assert words(found) == ["last: features [2 x 2], 1 to 6, mean 3"]


def test_outputs_that_are_missing() -> None:
    record = OutputRecord(name="", sizes=(None, 3), kind="class scores", place=1)
    with pytest.raises(SourceError, match="the model gives 1 outputs, and its spec describes 2"):
        answers(spec(record), (), [torch.zeros(1, 3)], 5)


def test_leaves_in_order_and_side_by_side() -> None:
    one, other = torch.zeros(2, 3), torch.ones(2, 1)
    found = leaves_of({"a": one, "b": [torch.tensor([1, 2]), (other, None, torch.tensor(1.0))]})
    assert [leaf is expected for leaf, expected in zip(found, (one, other), strict=True)] == [True, True]
    record = OutputRecord(name="scores", sizes=(None, 1), kind="features", place=1)
    files = stacked([[one, other], [one, other]], spec(record))
    assert {name: tuple(tensor.shape) for name, tensor in files.items()} == {
        "output_0": (4, 3),
        "scores": (4, 1),
    }
