"""Mistakes in a lowering: packed rows, masks, one image at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prunec import ops
from tests.mutants.planting import Mutant

# --- packed rows ----------------------------------------------------------------------------------


def spread_one_off(spread: Any, x: Tensor, slots: Tensor, *rest: Any) -> Any:
    return spread(x, (slots + 1).clamp_max(int(slots.max())), *rest)


def spread_to_another_image(spread: Any, x: Tensor, slots: Tensor, *rest: Any) -> Any:
    return spread(x, slots.roll(1, 0), *rest)


def spread_the_first(spread: Any, x: Tensor, slots: Tensor, *rest: Any) -> Any:
    return spread(x, slots[:1].expand_as(slots), *rest)


def pick_one_off(pick: Any, x: Tensor, places: Tensor, *rest: Any) -> Any:
    return pick(x, places.roll(1, 1), *rest)


def pick_scaled(pick: Any, x: Tensor, places: Tensor, *rest: Any) -> Any:
    return pick(x, places, *rest) * (places.shape[1] / (x.shape[0] * x.shape[1]))


def keep_one_off(keep: Any, x: Tensor, places: Tensor, *rest: Any) -> Any:
    return keep(x, places.roll(1, 1), *rest)


def keep_the_first(keep: Any, x: Tensor, places: Tensor, *rest: Any) -> Any:
    return keep(x, torch.arange(places.shape[1])[None], *rest)


def put_one_off(put: Any, base: Tensor, x: Tensor, places: Tensor, *rest: Any) -> Any:
    return put(base, x, places.roll(1, 1), *rest)


def put_into_zeros(put: Any, base: Tensor, *rest: Any) -> Any:
    return put(torch.zeros_like(base), *rest)


def put_among_nothing(put: Any, base: Tensor, *rest: Any) -> Any:
    return base


def put_among_one_off(put: Any, base: Tensor, x: Tensor, places: Tensor, *rest: Any) -> Any:
    return put(base, x, places.roll(1, 1), *rest)


def places_of_the_first_image(places: Any, index: Tensor, rows: Tensor, tokens: int) -> Any:
    return index.flatten()[rows]


def places_of_next_image(places: Any, index: Tensor, rows: Tensor, tokens: int) -> Any:
    return (places(index, rows, tokens) + tokens) % (index.shape[0] * tokens)


def places_among_one_off(places: Any, slots: Tensor, index: Tensor, rows: Tensor) -> Any:
    return places(slots, index, rows).roll(1, 1)


def slots_one_off(slots: Any, valid: Tensor) -> Any:
    return (slots(valid) - 1).clamp_min(0)


def numbers_by_place(numbers: Any, index: Tensor, rows: Tensor) -> Any:
    return rows % index.shape[1]


def attend_to_another_image(
    attend: Any, query: Any, key: Any, value: Any, valid: Tensor, among: Tensor, *rest: Any
) -> Any:
    return attend(query, key, value, valid, among.roll(1, 0), *rest)


def attend_to_all_images(
    attend: Any, query: Any, key: Any, value: Any, valid: Any, among: Any, scale: Any = None
) -> Any:
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=scale)


def attend_unscaled(
    attend: Any, query: Any, key: Any, value: Any, valid: Any, among: Any, scale: Any = None
) -> Any:
    return attend(query, key, value, valid, among, 1.0)


# --- masks, one image at a time -------------------------------------------------------------------------


def blend_the_other_way(blend: Any, base: Tensor, x: Tensor, mask: Tensor, *rest: Any) -> Any:
    return blend(x, base, mask, *rest)


def blend_nothing(blend: Any, base: Tensor, x: Tensor, *rest: Any) -> Any:
    return x


def blend_for_another_image(blend: Any, base: Tensor, x: Tensor, mask: Tensor, *rest: Any) -> Any:
    return blend(base, x, mask.roll(1, 0), *rest)


def attend_to_dropped(attend: Any, query: Any, key: Any, value: Any, mask: Tensor, *rest: Any) -> Any:
    return attend(query, key, value, torch.ones_like(mask), *rest)


def attend_masked_for_another_image(
    attend: Any, query: Any, key: Any, value: Any, mask: Tensor, *rest: Any
) -> Any:
    return attend(query, key, value, mask.roll(1, 0), *rest)


def softmax_of_dropped(softmax: Any, logits: Tensor, mask: Tensor, *rest: Any) -> Any:
    return softmax(logits, torch.ones_like(mask), *rest)


def every_row_turned(every: Any, kept: Tensor) -> Any:
    return every(kept).flip(1)


def fill_nothing(fill: Any, x: Tensor, valid: Tensor, *rest: Any) -> Any:
    return x if valid.shape[1] in (25, 26) else fill(x, valid, *rest)


def trained_as_all_ones(straight: Any, kept: Tensor, *rest: Any) -> Any:
    return torch.ones(kept.shape)


def trained_as_half(straight: Any, *args: Any) -> Any:
    return straight(*args) * 0.5


def only_all_but_one(only: Any, kept: Tensor) -> Any:
    index = only(kept)
    return index[:, :-1] if index.shape[1] < kept.shape[1] else index


def only_turned(only: Any, kept: Tensor) -> Any:
    return only(kept).flip(1)


_PACKED = ("packed", "packed, dense output")
_MASKED = ("masked", "masked, dense output")

MUTANTS = (
    Mutant("pad is one row off", _PACKED[:1], ops.pad, spread_one_off),
    Mutant("padded to another image", _PACKED[:1], ops.pad, spread_to_another_image),
    Mutant("pad gives all images the first one's rows", ("packed, mean head",), ops.pad, spread_the_first),
    Mutant("unpad is one row off", _PACKED, ops.unpad, pick_one_off),
    Mutant("unpad scales by n / T", _PACKED, ops.unpad, pick_scaled),
    Mutant("keep is one row off", _PACKED, ops.keep, keep_one_off),
    Mutant("keep takes the first rows", _PACKED, ops.keep, keep_the_first),
    Mutant("put is one row off", ("packed, anew",), ops.put, put_one_off),
    Mutant("put into zeros", ("packed, anew",), ops.put, put_into_zeros),
    Mutant(
        "packed rows are not put among those before",
        ("packed, dense output",),
        ops.put_among,
        put_among_nothing,
    ),
    Mutant("packed rows are put one place off", ("packed, dense output",), ops.put_among, put_among_one_off),
    Mutant("places of the first image for all", _PACKED, ops.places, places_of_the_first_image),
    Mutant("places of the next image", _PACKED, ops.places, places_of_next_image),
    Mutant("places among packed rows are one off", _PACKED, ops.places_among, places_among_one_off),
    Mutant("slots are one off", _PACKED, ops.slots, slots_one_off),
    Mutant("tables by the place of a packed row", ("packed, tables",), ops.token_numbers, numbers_by_place),
    Mutant("packed rows attend to another image", _PACKED, ops.attend, attend_to_another_image),
    Mutant("packed rows attend to all images", _PACKED, ops.attend, attend_to_all_images),
    Mutant("packed attention is not scaled", _PACKED, ops.attend, attend_unscaled),
    Mutant("blend keeps what leaves", ("masked, dense output",), ops.blend, blend_the_other_way),
    Mutant("blend computes what has left", ("masked, dense output",), ops.blend, blend_nothing),
    Mutant("blend by another image", ("masked, dense output",), ops.blend, blend_for_another_image),
    Mutant("dropped keys are seen", _MASKED, ops.attend_kept, attend_to_dropped),
    Mutant("keys are hidden by another image", _MASKED, ops.attend_kept, attend_masked_for_another_image),
    Mutant("dropped logits are seen", ("masked, spelled out",), ops.softmax_kept, softmax_of_dropped),
    Mutant("masked rows are turned round", _MASKED, ops.all_rows, every_row_turned),
    Mutant("a masked mean counts dropped rows", ("masked, mean head",), ops.fill, fill_nothing),
    Mutant("a trained mask is all ones", ("masked, learned",), ops.straight_through, trained_as_all_ones),
    Mutant("a trained mask is one half", ("masked, learned",), ops.straight_through, trained_as_half),
    Mutant("one image loses a row", ("one image at a time",), ops.kept_rows, only_all_but_one),
    Mutant("one image is turned round", ("one image at a time",), ops.kept_rows, only_turned),
)
