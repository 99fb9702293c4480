"""Shapes: procedural scenes of coloured shapes on textured backgrounds, with variable clutter.

A scene is a pure function of ``(spec, seed, index)``: it does not depend on the batch that it is made in.
All random numbers of one scene come from one generator seeded by ``(seed, index)``; the whole batch is then
rendered at once from signed distances. Colour says nothing about the class; clutter belongs to no class.

Splits are made by seed: ``TRAIN_SEEDS`` and ``HELD_OUT_SEEDS`` do not overlap, and the shipped weights
have seen ``TRAIN_SEEDS[0]`` only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from prunec.data.distances import DISTANCES
from prunec.errors import UsageError

TRAIN_SEEDS = range(1000)
HELD_OUT_SEEDS = range(1000, 2000)

BACKGROUND = 0  # in a semantic map; class c is written there as c + 1
NO_OBJECT = -1  # the class of a slot without an object

MEAN = 0.5
STD = 0.5


def _check_range(name: str, ends: tuple[float, float], lowest: float) -> None:
    low, high = ends
    if not lowest <= low <= high:
        raise UsageError(
            f"SceneSpec.{name} is {ends}", remedy=f"give (low, high) with {lowest} <= low <= high"
        )


@dataclass(frozen=True)
class SceneSpec:
    """What scenes look like. Lengths are fractions of the image side, so a spec fits every size.

    The default is the classification task: one object, mostly background, clutter from none to busy.
    Two specs that differ in clutter, radius or texture only give the same objects in the same places, as far
    as they fit: so one scene can be asked for in an empty and in a busy version.
    """

    size: int = 72
    objects: tuple[int, int] = (1, 1)  # how many, both ends included
    radius: tuple[float, float] = (0.15, 0.21)  # of the circle around an object
    clutter: tuple[int, int] = (0, 24)  # how many small marks, both ends included
    texture: float = 1.0  # strength of the background's pattern; 0 is a plain colour

    def __post_init__(self) -> None:
        _check_range("objects", self.objects, lowest=1)
        _check_range("clutter", self.clutter, lowest=0)
        _check_range("radius", self.radius, lowest=0)
        if self.size < 8:
            raise UsageError(f"SceneSpec.size is {self.size}, too small to draw in", remedy="use 8 or more")
        if self.radius[1] > 0.5:
            raise UsageError(
                f"SceneSpec.radius {self.radius} does not fit the image", remedy="stay below 0.5"
            )


CLASSIFICATION = SceneSpec()
DETECTION = SceneSpec(objects=(1, 4), radius=(0.10, 0.18))


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes with all their annotations. n is ``spec.objects[1]``, the number of slots."""

    image: Tensor  # [B, 3, H, W] float in 0..1
    label: Tensor  # [B] class of the main object, the one with the largest visible area
    boxes: Tensor  # [B, n, 4] xyxy in pixels, right and bottom edges exclusive; zeros where no object is
    classes: Tensor  # [B, n] or NO_OBJECT
    masks: Tensor  # [B, n, H, W] bool, the visible pixels of each object
    semantic: Tensor  # [B, H, W] BACKGROUND, or class + 1
    area: Tensor  # [B, n] visible pixels of each object
    clutter: Tensor  # [B] number of marks

    def __len__(self) -> int:
        return self.image.shape[0]


def scenes(spec: SceneSpec, seed: int, start: int, count: int) -> Scenes:
    """Scenes ``start`` to ``start + count - 1`` of the endless series that ``spec`` and ``seed`` define."""
    if start < 0 or count < 1:
        raise UsageError(
            f"there are no scenes start={start}, count={count}", remedy="use start >= 0, count >= 1"
        )
    stop = start + count
    chunks = [_render(spec, _draw(spec, seed, i, min(i + _CHUNK, stop))) for i in range(start, stop, _CHUNK)]
    return chunks[0] if len(chunks) == 1 else _concatenate(chunks)


def images(spec: SceneSpec, seed: int, start: int, count: int) -> tuple[Tensor, Tensor]:
    """Images [B, 3, H, W] in 0..1 and their labels [B]: ``scenes`` for those who only classify."""
    made = scenes(spec, seed, start, count)
    return made.image, made.label


def normalize(image: Tensor) -> Tensor:
    """From 0..1 to the range that the shipped models were trained on."""
    return (image - MEAN) / STD


CLASS_NAMES = tuple(DISTANCES)
NUM_CLASSES = len(CLASS_NAMES)


# --- random numbers -------------------------------------------------------------------------------

_CHUNK = 32  # scenes rendered at once: large enough for vector operations, small enough for the cache
_WAVES = 4  # plane waves summed into a background pattern
_CANDIDATES = 6  # places tried for an object; the one farthest from the others wins
_PER_SCENE = 2 + 6 + 3 * _WAVES
_PER_OBJECT = 6 + 2 * _CANDIDATES
_PER_MARK = 8


def _draw(spec: SceneSpec, seed: int, start: int, stop: int) -> Tensor:
    """Uniform numbers in 0..1, one row per scene, each row from a generator of its own."""
    width = _PER_SCENE + spec.objects[1] * _PER_OBJECT + spec.clutter[1] * _PER_MARK
    u = torch.empty(stop - start, width)
    generator = torch.Generator()
    for row, index in enumerate(range(start, stop)):
        generator.manual_seed(_mix(seed, index))
        u[row].uniform_(generator=generator)
    return u


def _mix(seed: int, index: int) -> int:
    """One well-spread 63-bit number for two integers (the finaliser of splitmix64, used twice)."""
    value = 0
    for part in (seed, index):
        value = (value + part + 0x9E3779B97F4A7C15) % 2**64
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
        value ^= value >> 31
    return value >> 1


def _between(u: Tensor, low: float, high: float) -> Tensor:
    return low + u * (high - low)


def _integer(u: Tensor, low: int, high: int) -> Tensor:
    """Integers low..high, both ends included, equally likely."""
    return (low + (u * (high - low + 1)).long()).clamp(max=high)


# --- rendering ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Objects:
    present: Tensor  # [B, n] bool
    classes: Tensor  # [B, n]
    centre: Tensor  # [B, n, 2] in pixels, x then y
    radius: Tensor  # [B, n] in pixels
    angle: Tensor  # [B, n]
    colour: Tensor  # [B, n, 3]


def _render(spec: SceneSpec, u: Tensor) -> Scenes:
    # u: [B, D] uniform numbers
    n = spec.objects[1]
    of_scene, of_objects, of_marks = u.split(
        [_PER_SCENE, n * _PER_OBJECT, spec.clutter[1] * _PER_MARK], dim=1
    )
    count = _integer(of_scene[:, 0], *spec.objects)
    clutter = _integer(of_scene[:, 1], *spec.clutter)

    image = _background(spec, of_scene[:, 2:])
    _draw_clutter(image, of_marks.unflatten(1, (-1, _PER_MARK)), clutter)
    objects = _place_objects(spec, of_objects.unflatten(1, (n, _PER_OBJECT)), count)
    masks = _draw_objects(image, objects)
    return _annotate(image.clamp_(0, 1), masks, objects.classes, clutter)


def _background(spec: SceneSpec, u: Tensor) -> Tensor:
    """Two dull colours mixed by a sum of plane waves -> [B, 3, H, W]."""
    wave = u[:, 6:].unflatten(1, (_WAVES, 3))  # [B, waves, direction | frequency | phase]
    direction = _between(wave[..., 0], 0, math.pi)
    frequency = 2 * math.pi * 2 ** _between(wave[..., 1], 0, 3.5)  # one to eleven periods across the image
    phase = _between(wave[..., 2], 0, 2 * math.pi)
    along = torch.arange(spec.size) / spec.size
    x = (frequency * direction.cos())[..., None] * along  # [B, waves, W]
    y = (frequency * direction.sin())[..., None] * along + phase[..., None]  # [B, waves, H]
    # sin(x + y) by the addition theorem: sines of lines instead of sines of pixels.
    lines_y = torch.cat([y.sin(), y.cos()], dim=1)[..., :, None]
    lines_x = torch.cat([x.cos(), x.sin()], dim=1)[..., None, :]
    pattern = sum(
        (lines_y[:, k] * lines_x[:, k] for k in range(1, 2 * _WAVES)), lines_y[:, 0] * lines_x[:, 0]
    )
    mix = 0.5 + pattern * (0.5 * spec.texture / math.sqrt(2 * _WAVES))  # [B, H, W]

    base = _colour(u[:, 0:3], saturation=(0, 0.35), value=(0.2, 0.8))[:, :, None, None]
    other = _colour(u[:, 3:6], saturation=(0, 0.35), value=(0.2, 0.8))[:, :, None, None]
    return base + (other - base) * mix[:, None]


def _draw_clutter(image: Tensor, u: Tensor, count: Tensor) -> None:
    """Paint short round-ended strokes, too small to be an object, into ``image`` in place."""
    # image: [B, 3, H, W]; u: [B, marks, 8]
    batch, _, size, _ = image.shape
    flat = image.view(batch, 3, size * size)
    half = 0.04 * size
    reach = math.ceil(half) + 2
    window = torch.arange(-reach, reach + 1)
    centre = u[..., 0:2] * size
    angle = _between(u[..., 2], 0, math.pi)
    length = _between(u[..., 3], 0, half)
    width = _between(u[..., 4], 0.012, 0.024) * size
    colour = _colour(u[..., 5:8], saturation=(0.5, 1), value=(0.5, 1))

    corner = centre.long()
    px = (corner[..., 0:1] + window).clamp(0, size - 1)  # [B, marks, window]
    py = (corner[..., 1:2] + window).clamp(0, size - 1)
    pixel = (py[..., :, None] * size + px[..., None, :]).flatten(2)  # [B, marks, window * window]
    x = (px + 0.5 - centre[..., 0:1])[..., None, :]
    y = (py + 0.5 - centre[..., 1:2])[..., :, None]
    cos, sin = angle.cos()[..., None, None], angle.sin()[..., None, None]
    along = x * cos + y * sin
    across = y * cos - x * sin
    beyond = (along.abs() - length[..., None, None]).clamp(min=0)
    drawn = torch.arange(u.shape[1]) < count[:, None]
    alpha = (width[..., None, None] + 0.5 - torch.hypot(beyond, across)).clamp(0, 1) * drawn[..., None, None]
    alpha = alpha.flatten(2)
    for k in range(int(count.max())):
        # A window cut by the border names its last pixels twice, but with equal values.
        where = pixel[:, k, None].expand(-1, 3, -1)
        under = flat.gather(2, where)
        flat.scatter_(2, where, under + (colour[:, k, :, None] - under) * alpha[:, k, None])


def _place_objects(spec: SceneSpec, u: Tensor, count: Tensor) -> _Objects:
    # u: [B, n, 6 + 2 * candidates]
    n = u.shape[1]
    radius = _between(u[..., 2], *spec.radius) * spec.size
    candidates = u[..., 6:].unflatten(2, (_CANDIDATES, 2))
    candidates = radius[..., None, None] + candidates * (spec.size - 2 * radius[..., None, None])
    centre = candidates[:, :, 0].clone()
    for k in range(1, n):
        to_others = torch.cdist(candidates[:, k], centre[:, :k]) - radius[:, None, :k]  # [B, candidates, k]
        farthest = to_others.amin(dim=2).argmax(dim=1)
        centre[:, k] = candidates[torch.arange(len(u)), k, farthest]
    return _Objects(
        present=torch.arange(n) < count[:, None],
        classes=_integer(u[..., 0], 0, NUM_CLASSES - 1),
        centre=centre,
        radius=radius,
        angle=_between(u[..., 1], 0, 2 * math.pi),
        colour=_colour(u[..., 3:6], saturation=(0.5, 1), value=(0.5, 1)),
    )


def _draw_objects(image: Tensor, objects: _Objects) -> Tensor:
    """Paint the objects, later ones over earlier ones, in place -> their visible masks [B, n, H, W]."""
    alpha = _coverage(objects, image.shape[-1])
    masks = alpha > 0.5
    for k in range(alpha.shape[1]):
        image += (objects.colour[:, k, :, None, None] - image) * alpha[:, k, None]
        masks[:, :k] &= ~masks[:, k, None]
    return masks


def _coverage(objects: _Objects, size: int) -> Tensor:
    """How much of each pixel each object covers, 0..1 -> [B, n, H, W]."""
    cos, sin = objects.angle.cos()[..., None, None], objects.angle.sin()[..., None, None]
    radius = objects.radius[..., None, None]
    middle = torch.arange(size) + 0.5
    x = (middle - objects.centre[..., 0:1])[..., None, :] / radius
    y = (middle - objects.centre[..., 1:2])[..., :, None] / radius
    u, v = x * cos + y * sin, y * cos - x * sin  # turned into the object's own frame
    alpha = torch.zeros_like(u)
    for index, distance in enumerate(DISTANCES.values()):
        here = objects.present & (objects.classes == index)
        if here.any():
            alpha[here] = (0.5 - distance(u[here], v[here]) * radius[here]).clamp(0, 1)
    return alpha


def _annotate(image: Tensor, masks: Tensor, classes: Tensor, clutter: Tensor) -> Scenes:
    area = masks.sum(dim=(2, 3))
    classes = classes.where(area > 0, NO_OBJECT)
    main = area.argmax(dim=1, keepdim=True)
    named = (classes + 1).to(torch.uint8)[..., None, None] * masks
    return Scenes(
        image=image,
        label=classes.gather(1, main).squeeze(1),
        boxes=_tight_boxes(masks),
        classes=classes,
        masks=masks,
        semantic=named.amax(dim=1).long(),  # visible masks do not overlap
        area=area,
        clutter=clutter,
    )


def _tight_boxes(masks: Tensor) -> Tensor:
    # masks: [B, n, H, W] -> [B, n, 4]
    left, right = _extent(masks.any(dim=2))
    top, bottom = _extent(masks.any(dim=3))
    return torch.stack([left, top, right, bottom], dim=-1).float()


def _extent(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """First occupied place and the one after the last, (0, 0) where nothing is occupied."""
    size = occupied.shape[-1]
    place = torch.arange(size)
    first = place.where(occupied, size).amin(dim=-1)
    end = (place + 1).where(occupied, 0).amax(dim=-1)
    return first.where(end > 0, 0), end


def _colour(u: Tensor, saturation: tuple[float, float], value: tuple[float, float]) -> Tensor:
    """Red, green, blue [..., 3] from three uniform numbers [..., 3], read as hue, saturation, value."""
    s, v = _between(u[..., 1:2], *saturation), _between(u[..., 2:3], *value)
    hue = torch.remainder(u[..., 0:1] * 6 + torch.tensor([0.0, 4.0, 2.0]), 6)
    return v * (1 - s + s * ((hue - 3).abs() - 1).clamp(0, 1))


def _concatenate(parts: list[Scenes]) -> Scenes:
    return Scenes(**{f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Scenes)})
