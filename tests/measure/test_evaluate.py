from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from prunec.compiler import compile_source
from prunec.data.shapes import CLASSIFICATION, HELD_OUT_SEEDS, images, normalize
from prunec.errors import UsageError
from prunec.frontend import sources
from prunec.measure import evaluate
from prunec.measure.evaluate import Judge, compare
from prunec.measure.fidelity import Known
from prunec.passes import run_passes
from prunec.passes.controls import RandomScores
from prunec.policy.policy import Policy


def scores(x: Tensor) -> Tensor:
    """Three classes; the image is its own score."""
    return x


def turned(x: Tensor) -> Tensor:
    return x.roll(1, dims=1)


def chance(x: Tensor) -> Tensor:
    return torch.rand_like(x)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(10, 3)


# --- the figures ------------------------------------------------------------------------------------------


def test_a_model_equals_itself(x: Tensor) -> None:
    found = compare({"dense": scores, "pruned": scores}, x, labels=x.argmax(1))
    assert found.pruned == found.dense
    assert found.dense.as_dict() == pytest.approx(
        {"similarity": 1, "agreement": 1, "divergence": 0, "accuracy": 1, "relative_l2": 0}, abs=1e-6
    )


def test_figures_by_hand() -> None:
    expected = torch.tensor([[0.75, 0.25], [0.5, 0.5], [0.2, 0.8]]).log()
    other = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.2, 0.8]]).log()
    found = evaluate.measures(other, expected, labels=torch.tensor([0, 0, 0]))
    assert found["agreement"].tolist() == [1, 0, 1]  # ties go to the first class
    assert found["accuracy"].tolist() == [1, 0, 0]
    by_hand = [0.75 * math.log(1.5) + 0.25 * math.log(0.5), 0.5 * math.log(2) + 0.5 * math.log(2 / 3), 0]
    assert found["divergence"].tolist() == pytest.approx(by_hand, abs=1e-6)


def test_divergence_is_from_dense_to_the_other() -> None:
    sure, unsure = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    forth = evaluate.measures(unsure, sure)["divergence"].item()
    back = evaluate.measures(sure, unsure)["divergence"].item()
    assert forth == pytest.approx(math.log(2), abs=2e-3)
    assert back > 3


def test_features_have_no_classes() -> None:
    x = torch.randn(4, 5, 6)
    found = compare({"dense": scores, "pruned": torch.neg}, x, labels=torch.zeros(4, dtype=torch.long))
    assert found.pruned.as_dict() == pytest.approx({"similarity": -1, "relative_l2": 2})
    assert str(found.dense) == "similarity 1.0000, relative_l2 0.0000"


@dataclass
class Answer:
    hidden: Tensor


torch.utils._pytree.register_dataclass(Answer)


@pytest.mark.parametrize(
    "wrap",
    [lambda y: y, lambda y: (y.argmax(1), y), lambda y: {"loss": None, "logits": y}, Answer],
    ids=["tensor", "tuple", "dict", "dataclass"],
)
def test_the_first_floating_point_output_counts(x: Tensor, wrap: Callable[[Tensor], Any]) -> None:
    assert torch.equal(evaluate.output(lambda y: wrap(y), x), x)


def test_half_precision_is_compared_in_single(x: Tensor) -> None:
    assert evaluate.output(scores, x.bfloat16()).dtype == torch.float32


# --- batches ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3, 4, 10, 16, None])
def test_the_batch_changes_nothing_but_is_always_full(x: Tensor, batch: int | None) -> None:
    seen: list[int] = []

    def watched(y: Tensor) -> Tensor:
        seen.append(len(y))
        return turned(y)

    labels = torch.arange(10) % 3
    found = compare({"dense": scores, "pruned": watched}, x, labels, batch=batch)
    assert set(seen) == {batch or 10}
    assert sum(seen) >= 10
    whole = {name: value.mean().item() for name, value in evaluate.measures(turned(x), x, labels).items()}
    whole["relative_l2"] = ((turned(x) - x).norm() / x.norm()).item()
    assert found.pruned.as_dict() == pytest.approx(whole, rel=1e-5)


def test_one_image_does() -> None:
    assert compare({"dense": scores, "pruned": turned}, torch.randn(1, 3)).images == 1


# --- the random control -------------------------------------------------------------------------------------


def test_the_control_is_averaged_over_seeds_and_repeatable(x: Tensor) -> None:
    x = x.repeat(20, 1)
    first, second = (
        compare({"dense": scores, "pruned": turned, "random": chance}, x, batch=32) for _ in range(2)
    )
    assert first == second
    assert first.seeds == 5
    assert first.random is not None
    assert first.random.agreement == pytest.approx(1 / 3, abs=0.1)
    assert first.spread is not None
    assert 0 < first.spread.as_dict()["agreement"] < 0.1


def test_batches_of_one_seed_differ(x: Tensor) -> None:
    drawn: list[Tensor] = []

    def kept(y: Tensor) -> Tensor:
        drawn.append(chance(y))
        return drawn[-1]

    compare({"dense": scores, "pruned": scores, "random": kept}, x, batch=2, seeds=3)
    assert len({tuple(one.flatten().tolist()) for one in drawn}) == 15


def test_the_callers_random_numbers_go_on_as_if_nothing_had_happened(x: Tensor) -> None:
    torch.manual_seed(7)
    expected = torch.rand(2)
    torch.manual_seed(7)
    compare({"dense": scores, "pruned": turned, "random": chance}, x)
    assert torch.equal(torch.rand(2), expected)


def test_a_comparison_becomes_json(x: Tensor) -> None:
    found = compare({"dense": scores, "pruned": turned, "random": chance}, x, seeds=2).as_dict()
    assert list(found) == ["images", "seeds", "dense", "pruned", "random", "spread", "outputs"]
    assert json.loads(json.dumps(found)) == found


# --- all outputs --------------------------------------------------------------------------------------------


def two(x: Tensor) -> dict[str, Any]:
    return {"loss": x.sum(), "logits": x, "states": [x[:, None].repeat(1, 4, 1), x.argmax(1)]}


def test_all_outputs_count_that_have_a_number_for_each_image(x: Tensor) -> None:
    def other(y: Tensor) -> dict[str, Any]:
        found = two(y)
        return {**found, "states": [3 * found["states"][0], found["states"][1]]}

    found = compare({"dense": two, "pruned": other}, x, x.argmax(1))
    logits, states = found.outputs
    assert (logits.output.name, logits.output.kind) == ("logits", "class scores")
    assert (states.output.name, states.output.kind) == ("states[0]", "features")
    assert found.pruned == logits.scores["pruned"]
    assert found.pruned.accuracy == 1
    assert states.scores["pruned"].relative_l2 == pytest.approx(2)
    assert states.scores["pruned"].accuracy is None


def test_relative_l2_is_over_all_images_and_not_a_mean_of_ratios() -> None:
    x = torch.tensor([[3.0, 0], [0, 4], [0.001, 0]])
    found = compare({"dense": scores, "pruned": lambda y: y + torch.tensor([0.0, 1.0])}, x, batch=2)
    assert found.pruned.relative_l2 == pytest.approx(3**0.5 / 5, rel=1e-5)


def test_what_is_known_decides_the_kind(x: Tensor) -> None:
    known = Known(width=3)
    found = compare({"dense": scores, "pruned": turned}, x, judge=Judge(known))
    assert found.pruned.agreement is None
    assert found.outputs[0].output.kind == "features"


def test_a_smaller_picture_is_a_control_like_others(x: Tensor) -> None:
    found = compare({"dense": scores, "pruned": turned, "resize": scores}, x)
    assert found.resize == found.dense


# --- a metric of one's own ----------------------------------------------------------------------------------


def test_a_metric_gets_the_output_as_it_is_and_the_labels(x: Tensor) -> None:
    seen: list[tuple[list[int], Any]] = []

    def metric(output: Any, labels: Tensor | None) -> Tensor:
        seen.append((list(output["logits"].shape), None if labels is None else labels.tolist()))
        return output["logits"][:, 0]

    labels = torch.arange(10) % 3
    found = compare({"dense": two, "pruned": two}, x, labels, batch=4, judge=Judge(metric=metric))
    assert found.metric == "metric"
    assert found.dense.metric == pytest.approx(x[:, 0].mean().item(), rel=1e-5)
    assert found.pruned.metric == found.dense.metric
    assert seen[-1] == ([2, 3], [2, 0])  # what only fills up the last batch is not shown to it
    compare({"dense": two, "pruned": two}, x, judge=Judge(metric=metric))
    assert seen[-1][1] is None


def test_a_metric_of_one_number_counts_for_each_image_of_its_batch(x: Tensor) -> None:
    found = compare(
        {"dense": scores, "pruned": scores, "random": chance}, x, batch=8,
        judge=Judge(metric=lambda output, labels: len(output)),
    )  # fmt: skip
    assert found.dense.metric == pytest.approx((8 * 8 + 2 * 2) / 10)
    assert found.random is not None
    assert found.random.metric == found.dense.metric


# --- what does not fit --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": torch.zeros(0, 3)}, "there are no images"),
        ({"labels": torch.zeros(4)}, r"10 images have labels of the shape \[4\]"),
        ({"labels": torch.full((10,), 3)}, "the labels run from 3 to 3, the model has 3 classes"),
        ({"seeds": 0}, "seeds is 0"),
        ({"batch": 0}, "batch is 0"),
        ({"pruned": lambda y: y[:, :2]}, r"the shapes \[10, 3\] and \[10, 2\]"),
        ({"pruned": lambda y: y.argmax(1)}, "no floating-point tensor"),
    ],
)
def test_what_does_not_fit_is_refused(x: Tensor, change: dict[str, Any], said: str) -> None:
    pruned = change.pop("pruned", scores)
    given = {"models": {"dense": scores, "pruned": pruned}, "images": x, **change}
    with pytest.raises(UsageError, match=said):
        compare(**given)


# --- a trained model ----------------------------------------------------------------------------------------


def test_attention_chooses_better_than_chance_on_shapes() -> None:
    source = sources.load("shapes")
    compiled = compile_source(source, Policy.load("evit").override(keep_per_site=0.5))
    control = run_passes((RandomScores(),), compiled.pruned)
    image, label = images(CLASSIFICATION, HELD_OUT_SEEDS[2], 0, 96)
    found = compare(
        {"dense": source.module, "pruned": compiled.pruned.module, "random": control.module},
        normalize(image),
        label,
        seeds=2,
    )
    assert found.dense.accuracy is not None
    assert found.dense.accuracy > 0.9
    assert found.random is not None
    pruned, random = found.pruned.as_dict(), found.random.as_dict()
    assert pruned["agreement"] > random["agreement"] + 0.05
    assert pruned["accuracy"] > random["accuracy"] + 0.05
    assert pruned["divergence"] < random["divergence"]
