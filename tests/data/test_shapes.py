from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F

from prunec.data.shapes import (
    BACKGROUND,
    CLASSIFICATION,
    DETECTION,
    HELD_OUT_SEEDS,
    NO_OBJECT,
    NUM_CLASSES,
    TRAIN_SEEDS,
    Scenes,
    SceneSpec,
    images,
    normalize,
    scenes,
)
from prunec.errors import UsageError

PATCH = 8


@pytest.fixture(scope="module")
def single() -> Scenes:
    return scenes(CLASSIFICATION, seed=3, start=0, count=512)


@pytest.fixture(scope="module")
def several() -> Scenes:
    return scenes(DETECTION, seed=3, start=0, count=256)


def assert_same(one: Scenes, other: Scenes) -> None:
    for field in fields(Scenes):
        torch.testing.assert_close(getattr(one, field.name), getattr(other, field.name), rtol=0, atol=0)


def part(made: Scenes, index: slice) -> Scenes:
    return Scenes(**{field.name: getattr(made, field.name)[index] for field in fields(Scenes)})


def test_a_scene_is_the_same_every_time_whatever_else_is_drawn(several: Scenes) -> None:
    torch.manual_seed(12345)
    torch.rand(7)
    state = torch.get_rng_state()
    again = scenes(DETECTION, seed=3, start=0, count=256)
    assert_same(again, several)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was touched"


@pytest.mark.parametrize(("start", "count"), [(0, 1), (5, 1), (31, 2), (17, 50), (255, 1)])
def test_a_scene_does_not_depend_on_its_batch(several: Scenes, start: int, count: int) -> None:
    alone = scenes(DETECTION, seed=3, start=start, count=count)
    assert_same(alone, part(several, slice(start, start + count)))


def test_a_busy_and_an_empty_version_of_one_scene_show_the_same_objects() -> None:
    empty = scenes(SceneSpec(clutter=(0, 0), texture=0.0), seed=3, start=0, count=16)
    busy = scenes(SceneSpec(clutter=(24, 24)), seed=3, start=0, count=16)
    assert torch.equal(empty.masks, busy.masks)
    assert torch.equal(empty.label, busy.label)
    assert not torch.equal(empty.image, busy.image)


def test_seeds_and_indices_give_different_scenes() -> None:
    many = torch.cat([scenes(CLASSIFICATION, seed, 0, 32).image for seed in (0, 1, 2, 1000)])
    assert len(torch.unique(many.flatten(1), dim=0)) == len(many)


def test_train_and_held_out_seeds_are_disjoint_and_so_are_their_scenes() -> None:
    assert not set(TRAIN_SEEDS) & set(HELD_OUT_SEEDS)
    train = scenes(CLASSIFICATION, TRAIN_SEEDS[0], 0, 256).image.flatten(1)
    held_out = scenes(CLASSIFICATION, HELD_OUT_SEEDS[0], 0, 256).image.flatten(1)
    assert torch.cdist(train, held_out).min() > 1.0


# Mean of each quadrant of each colour of two images, then classes, visible areas and marks of four.
GOLDEN = [
    (
        CLASSIFICATION,
        [
            [0.501, 0.477, 0.505, 0.501, 0.670, 0.667, 0.679, 0.670, 0.600, 0.540, 0.622, 0.603],
            [0.384, 0.366, 0.395, 0.421, 0.443, 0.421, 0.458, 0.427, 0.422, 0.411, 0.428, 0.426],
        ],
        [[3], [2], [1], [5]],
        [[263], [203], [328], [275]],
        [21, 15, 6, 15],
    ),
    (
        DETECTION,
        [
            [0.506, 0.487, 0.495, 0.505, 0.634, 0.673, 0.663, 0.662, 0.573, 0.565, 0.619, 0.612],
            [0.389, 0.369, 0.392, 0.410, 0.465, 0.427, 0.459, 0.442, 0.424, 0.407, 0.432, 0.426],
        ],
        [[3, 5, -1, -1], [2, 5, -1, -1], [1, -1, -1, -1], [5, -1, -1, -1]],
        [[186, 113, 0, 0], [117, 143, 0, 0], [185, 0, 0, 0], [147, 0, 0, 0]],
        [21, 15, 6, 15],
    ),
]


@pytest.mark.parametrize(("spec", "quadrants", "classes", "area", "clutter"), GOLDEN)
def test_scenes_have_not_changed(
    spec: SceneSpec,
    quadrants: list[list[float]],
    classes: list[list[int]],
    area: list[list[int]],
    clutter: list[int],
) -> None:
    """The shipped weights were trained on these very pixels; other pixels would need other weights."""
    made = scenes(spec, seed=7, start=100, count=4)
    measured = F.adaptive_avg_pool2d(made.image[:2], 2).flatten(1)
    torch.testing.assert_close(measured, torch.tensor(quadrants), rtol=0, atol=1e-3)
    assert made.classes.tolist() == classes
    # A pixel on the very edge may fall to either side on another machine.
    torch.testing.assert_close(made.area, torch.tensor(area), rtol=0, atol=2)
    assert made.clutter.tolist() == clutter


def test_shapes_and_ranges(several: Scenes) -> None:
    b, n, size = len(several), DETECTION.objects[1], DETECTION.size
    assert several.image.shape == (b, 3, size, size)
    assert several.masks.shape == (b, n, size, size)
    assert several.boxes.shape == (b, n, 4)
    assert several.semantic.shape == (b, size, size)
    assert several.image.min() >= 0
    assert several.image.max() <= 1
    assert several.masks.dtype == torch.bool


@pytest.mark.parametrize("which", ["single", "several"])
def test_boxes_are_tight_around_the_masks(which: str, request: pytest.FixtureRequest) -> None:
    made: Scenes = request.getfixturevalue(which)
    slots = (made.masks.flatten(0, 1), made.boxes.flatten(0, 1), made.classes.flatten())
    for mask, box, name in zip(*slots, strict=True):
        if name == NO_OBJECT:
            assert not mask.any()
            assert not box.any()
            continue
        y, x = mask.nonzero(as_tuple=True)
        assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_semantic_map_is_the_union_of_the_masks(several: Scenes) -> None:
    assert (several.masks.sum(1) <= 1).all(), "visible masks overlap"
    assert torch.equal(several.semantic != BACKGROUND, several.masks.any(1))
    painted = torch.full_like(several.semantic, BACKGROUND)
    for k in range(several.masks.shape[1]):
        painted = torch.where(several.masks[:, k], several.classes[:, k, None, None] + 1, painted)
    assert torch.equal(several.semantic, painted)


def test_area_counts_the_mask_and_the_label_names_the_largest(several: Scenes) -> None:
    assert torch.equal(several.area, several.masks.flatten(2).sum(2))
    largest = several.area.argmax(1)
    assert torch.equal(several.label, several.classes[torch.arange(len(several)), largest])


def test_number_of_objects_varies_over_its_range(several: Scenes) -> None:
    assert set((several.classes != NO_OBJECT).sum(1).tolist()) == {1, 2, 3, 4}


def test_an_object_has_one_colour_that_stands_out(single: Scenes) -> None:
    mask = single.masks[:, 0]
    inner = -F.max_pool2d(-mask.float()[:, None], 3, stride=1, padding=1)[:, 0] > 0.5
    inside = [image[:, m] for image, m in zip(single.image, inner, strict=True)]
    assert max(float(pixels.std(1).max()) for pixels in inside) < 1e-5
    outside = torch.stack([image[:, ~m].mean(1) for image, m in zip(single.image, mask, strict=True)])
    colour = torch.stack([pixels.mean(1) for pixels in inside])
    assert (colour - outside).norm(dim=1).median() > 0.3


def test_classes_are_balanced() -> None:
    label = images(CLASSIFICATION, seed=4, start=0, count=2048)[1]
    count = torch.bincount(label, minlength=NUM_CLASSES)
    expected = 2048 / NUM_CLASSES
    assert len(count) == NUM_CLASSES
    assert (count - expected).abs().max() < 5 * math.sqrt(expected)


def test_colour_says_nothing_about_the_class(single: Scenes) -> None:
    mask = single.masks[:, 0, None]
    colour = (single.image * mask).sum((2, 3)) / mask.sum((2, 3))
    means = torch.stack([colour[single.label == c].mean(0) for c in range(NUM_CLASSES)])
    assert (means - colour.mean(0)).abs().max() < 0.15


def test_most_patches_are_background_in_every_scene(single: Scenes) -> None:
    touched = F.max_pool2d((single.semantic != BACKGROUND).float()[:, None], PATCH).flatten(1).mean(1)
    assert touched.max() < 0.3
    assert 0.08 < touched.mean() < 0.2
    assert (single.area > 0).all()


def test_clutter_varies_from_none_to_busy_and_can_be_seen(single: Scenes) -> None:
    low, high = CLASSIFICATION.clutter
    assert single.clutter.min() == low
    assert single.clutter.max() == high
    plain = SceneSpec(clutter=(0, 0), texture=0.0)
    marked = SceneSpec(clutter=(24, 24), texture=0.0)
    difference = scenes(plain, 3, 0, 16).image - scenes(marked, 3, 0, 16).image
    assert (difference.abs().amax(1) > 0.1).float().mean() > 0.05


def test_clutter_never_hides_the_object() -> None:
    plain, marked = (scenes(SceneSpec(clutter=(c, c)), 3, 0, 16) for c in (0, 24))
    inner = -F.max_pool2d(-plain.masks.float(), 3, stride=1, padding=1) > 0.5
    torch.testing.assert_close(plain.image * inner, marked.image * inner, rtol=0, atol=1e-6)


def test_lengths_scale_with_the_image() -> None:
    small, large = (scenes(SceneSpec(size=size), 3, 0, 32) for size in (48, 96))
    share = [made.area.sum() / made.semantic.numel() for made in (small, large)]
    assert share[0] == pytest.approx(float(share[1]), rel=0.05)


@pytest.mark.parametrize(
    "wrong",
    [{"objects": (2, 1)}, {"objects": (0, 1)}, {"clutter": (-1, 3)}, {"radius": (0.2, 0.6)}, {"size": 4}],
)
def test_a_spec_that_cannot_be_drawn_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        SceneSpec(**wrong)  # type: ignore[arg-type]


def test_no_scenes_are_refused() -> None:
    with pytest.raises(UsageError):
        scenes(CLASSIFICATION, 0, 0, 0)


def test_normalize_maps_the_unit_range_to_minus_one_and_one() -> None:
    assert normalize(torch.tensor([0.0, 0.5, 1.0])).tolist() == [-1.0, 0.0, 1.0]
