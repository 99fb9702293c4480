from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunec.compiler import Compiled, compile_source
from prunec.frontend.sources import ImageSet, from_module
from prunec.ir.program import Program
from prunec.measure import figures
from prunec.measure.fidelity import Known
from prunec.targets.eager import Eager
from tests import tiny

pytestmark = pytest.mark.usefixtures("recognised_once")

PATCHES, DIM, HEADS, PIXELS, CLASSES = 25, 16, 2, 3 * 4 * 4, 7


class Fixed(tiny.ViT):
    def forward(self, pixels: Tensor) -> Tensor:
        assert pixels.shape[0] == 3
        return super().forward(pixels)


def compiled(model: nn.Module | None = None, batch: int = 2, **choices: Any) -> Compiled:
    source = from_module((model or tiny.ViT()).eval(), tiny.pixels(batch))
    return compile_source(source, tiny.policy(**choices))


@pytest.fixture(scope="module")
def norm() -> Compiled:
    torch.manual_seed(0)
    return compiled()


@pytest.fixture(scope="module")
def fixed() -> Compiled:
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="the batch is fixed at 3"):
        return compiled(Fixed(), batch=3)


def attention(tokens: int) -> int:
    projections = 2 * tokens * DIM * (3 * DIM + DIM)
    return projections + 2 * (2 * tokens * tokens * DIM)  # scores, then values, over all heads


def mlp(tokens: int) -> int:
    return 2 * tokens * (2 * DIM * 2 * DIM)


def last_block(tokens: int, rows: int) -> int:
    """What the rows need that the head reads: their queries attend to the states, each head by itself."""
    keys_and_values = 2 * rows * DIM * 2 * DIM
    scores_and_values = 2 * (2 * rows * HEADS * tokens * DIM)
    return keys_and_values + scores_and_values + 2 * rows * DIM * 2 * DIM + mlp(rows)


ENDS = 2 * PATCHES * PIXELS * DIM + 2 * DIM * CLASSES  # patches in, one row out


def lengths(program: Program) -> list[int]:
    """How many tokens each norm sees, in the order of the graph."""
    seen: list[int] = []

    class Watch(torch.fx.Interpreter):
        def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
            if target is torch.ops.aten.layer_norm.default:
                seen.append(args[0].shape[1])
            return super().call_function(target, args, kwargs)

    with torch.no_grad():
        Watch(program.module).run(*program.interface.example)
    return seen


# --- FLOPs ------------------------------------------------------------------------------------


def test_flops_are_those_of_one_image(norm: Compiled) -> None:
    assert figures.flops(norm.dense) == ENDS + 2 * (attention(26) + mlp(26))
    assert figures.flops(norm.pruned) == ENDS + attention(26) + mlp(26) + last_block(14, rows=1)


def test_flops_of_a_site_after_attention() -> None:
    found = compiled(fate="fuse", where="after_attention", blocks=[0])
    score = 2 * 26 * DIM  # one query, all heads
    fused = 2 * 26 * DIM
    bare = ENDS + attention(26) + mlp(15) + last_block(15, rows=1)
    assert figures.flops(found.dense) == ENDS + 2 * (attention(26) + mlp(26))
    assert bare < figures.flops(found.pruned) <= bare + score + fused


def test_flops_of_a_fixed_batch_are_those_of_one_image(fixed: Compiled) -> None:
    assert fixed.dense.interface.batch is None
    assert figures.flops(fixed.dense) == ENDS + 2 * (attention(26) + mlp(26))


# --- inputs of another batch ------------------------------------------------------------------


def test_with_batch(norm: Compiled) -> None:
    (one,) = norm.dense.interface.with_batch(1)
    (five,) = norm.dense.interface.with_batch(5)
    assert one.shape == (1, 3, 20, 20)
    assert five.shape == (5, 3, 20, 20)
    assert torch.equal(five[4], norm.dense.interface.example[0][0])


def test_with_batch_leaves_what_is_no_batch_alone() -> None:
    class Scaled(tiny.ViT):
        def forward(self, pixels: Tensor, scale: Tensor, loud: bool) -> Tensor:
            return super().forward(pixels) * scale.mean() * (2 if loud else 1)

    source = from_module(Scaled().eval(), (tiny.pixels(), torch.ones(3), True))
    dense = compile_source(source, tiny.policy()).dense
    pixels, scale, *_ = dense.interface.with_batch(4)
    assert pixels.shape[0] == 4
    assert scale.shape == (3,)
    with torch.no_grad():
        assert dense.module(*dense.interface.with_batch(4))[0].shape == (4, CLASSES)


def test_with_batch_keeps_a_fixed_batch(fixed: Compiled) -> None:
    assert fixed.dense.interface.with_batch(8) is fixed.dense.interface.example


# --- latency ----------------------------------------------------------------------------------


class Watching(Eager):
    def __init__(self) -> None:
        self.lowered: list[Program] = []
        self.batches: set[int] = set()

    def lower(self, program: Program) -> Any:
        self.lowered.append(program)
        run = super().lower(program)

        def call(*inputs: Any) -> Any:
            self.batches.add(inputs[0].shape[0])
            return run(*inputs)

        return call


def timed(found: Compiled, target: Watching, batch: int) -> tuple[figures.Latency, list[str]]:
    said: list[str] = []
    lowered = {"dense": target.lower(found.dense), "pruned": target.lower(found.pruned)}
    flat = figures.inputs(found.dense, batch, None)
    result = figures.latency(found.dense, found.pruned, lowered, target, flat, rounds=5, progress=said.append)
    return result, said


def test_latency_times_dense_pruned_and_ideal_side_by_side(norm: Compiled) -> None:
    target = Watching()
    result, said = timed(norm, target, 4)
    assert {name: len(timing.samples) for name, timing in result.timings.items()} == {
        "dense": 5,
        "pruned": 5,
        "ideal": 5,
    }
    assert said == ["compile dense", "compile pruned", "compile ideal", "measure"]
    assert target.batches == {4}
    assert result.batch == 4
    assert set(result.facts) == {"device", "torch", "python", "threads"}
    assert set(result.as_dict()["rows"]["ideal"]) == {"median_ms", "spread", "speedup"}
    assert result.speedup("dense") == 1.0


def test_the_ideal_has_the_lengths_of_the_pruned_model_and_scores_nothing(norm: Compiled) -> None:
    target = Watching()
    timed(norm, target, 2)
    dense, pruned, ideal = target.lowered
    assert lengths(dense) == [26] * 5
    assert lengths(pruned) == [26, 26, 14, 1, 1]  # the head reads one row
    assert lengths(ideal) == lengths(pruned)
    assert set(tiny.dialect_of(ideal)) == {"rows", "attend_states"}
    assert figures.flops(ideal) == figures.flops(pruned)


def test_latency_of_a_fixed_batch_says_that_batch(fixed: Compiled) -> None:
    target = Watching()
    result, _ = timed(fixed, target, 8)
    assert target.batches == {3}
    assert result.batch == 3


# --- accuracy ---------------------------------------------------------------------------------


def pictures(labels: list[int] | None, classes: int | None = None) -> ImageSet:
    images = torch.randn(4, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    return ImageSet(images, None if labels is None else torch.tensor(labels), "drawn", classes)


def compared(found: Compiled, shown: ImageSet) -> Any:
    lowered = {"dense": found.dense.module, "pruned": found.pruned.module}
    return figures.accuracy(found.dense, found.pruned, lowered, shown)


@pytest.mark.parametrize(
    ("labels", "classes", "fits"),
    [
        ([0, 1, 2, 6], None, True),  # numbered folders
        ([0, 1, 2, 2], 7, True),  # seven named folders, as many as the model has classes
        ([0, 1, 2, 2], 3, False),  # three named folders: which of the seven they mean is unknown
        ([0, 1, 2, 7], None, False),
        ([0, 1, 2, 7], 8, False),
        (None, None, False),
    ],
)
def test_labels_count_only_where_they_fit(
    norm: Compiled, labels: list[int] | None, classes: int | None, fits: bool
) -> None:
    found = compared(norm, pictures(labels, classes))
    for name in ("dense", "pruned", "random"):
        assert ("accuracy" in found.as_dict()[name]) is fits
    assert (found.images, found.seeds) == (4, 5)
    assert found.dense.agreement == 1.0
    assert found.pruned.agreement is not None


def test_accuracy_is_that_of_the_labels(norm: Compiled) -> None:
    with torch.no_grad():
        best = norm.dense.module(pictures(None).images)[0].argmax(1).tolist()
    wrong = [(label + 1) % CLASSES for label in best]
    assert compared(norm, pictures(best)).dense.accuracy == 1.0
    assert compared(norm, pictures([*best[:3], wrong[3]])).dense.accuracy == 0.75


def test_features_have_no_accuracy() -> None:
    found = compiled(tiny.ViT(read=nn.Identity()))
    result = compared(found, pictures([0, 1, 2, 3]))
    assert result.pruned.as_dict().keys() == {"similarity", "relative_l2"}


def test_a_fixed_batch_is_compared_at_that_batch(fixed: Compiled) -> None:
    result = compared(fixed, pictures([0, 1, 2, 3]))
    assert result.images == 4
    assert result.dense.agreement == 1.0


def test_the_random_control_has_the_same_counts_and_another_choice(norm: Compiled) -> None:
    result = compared(norm, pictures(None))
    assert result.random.similarity < 1
    assert result.spread.similarity > 0


# --- what is known of outputs -----------------------------------------------------------------


class Headless(tiny.ViT):
    num_classes = 0


def test_what_is_known_of_a_model(norm: Compiled) -> None:
    found = figures.known(norm.dense, image_set=pictures([0, 1, 2, 4]))
    assert (found.width, found.tokens, found.picture) == (DIM, (26, 25), (20, 20))
    assert (found.classes, found.labelled) == ({}, 5)
    named = figures.known(norm.dense, image_set=pictures([0, 1, 2, 2], classes=3))
    assert (list(named.classes), named.labelled) == ([3], 0)
    source = from_module(Headless().eval(), tiny.pixels())
    assert list(figures.known(norm.dense, source).classes) == [0]


def test_the_classes_are_those_of_the_main_output(norm: Compiled) -> None:
    assert figures.classes(norm.dense, Known()) == CLASSES
    assert figures.classes(norm.dense, Known(width=CLASSES)) is None
    assert figures.output_sizes(norm.dense) == [(CLASSES,)]


def test_a_batch_that_only_one_size_of_fits(norm: Compiled, fixed: Compiled) -> None:
    assert figures.images_at_a_time(norm.dense, norm.pruned) is None
    assert figures.images_at_a_time(fixed.dense, fixed.pruned) == 3
