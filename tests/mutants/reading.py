"""Mistakes in the operations of prunec/ops: what must not be seen, and what is left out exactly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prunec import ops
from tests.mutants.planting import Mutant

# --- padding, exits, what is not computed ------------------------------------------------------


def padding_is_seen(key_mask: Any, valid: Tensor, mask: Any = None) -> Any:
    return key_mask(torch.ones_like(valid), mask)


def logits_unmasked(mask_keys: Any, logits: Tensor, valid: Tensor) -> Any:
    return logits


def fill_nothing(fill: Any, x: Tensor, *rest: Any) -> Any:
    return x


def rescale_nothing(rescale: Any, y: Tensor, *rest: Any) -> Any:
    return y


def rescale_twice(rescale: Any, y: Tensor, *rest: Any) -> Any:
    return rescale(rescale(y, *rest), *rest)


def paint_nothing(paint: Any, scores: Tensor, *rest: Any) -> Any:
    return scores


def paint_everything(paint: Any, scores: Tensor, canvas: Tensor, active: Tensor, *rest: Any) -> Any:
    return paint(scores, canvas, torch.zeros_like(active), *rest)


def all_remain(remaining: Any, before: Tensor, *rest: Any) -> Any:
    return before


def rows_one_off(rows: Any, x: Tensor, dim: int, start: int, stop: int | None = None) -> Any:
    if stop is None or stop >= x.shape[dim] or start < 0 or stop < 0:
        return rows(x, dim, start, stop)
    return rows(x, dim, start + 1, stop + 1)


def states_without_bias(attend: Any, query: Any, states: Any, keys: Any, values: Any, *rest: Any) -> Any:
    return attend(query, states, keys, (values[0], None), *rest)


def states_unscaled(
    attend: Any, query: Any, states: Any, keys: Any, values: Any, scale: float, *rest: Any
) -> Any:
    return attend(query, states, keys, values, 2 * scale, *rest)


MUTANTS = (
    Mutant("keys of padding are seen", ("class token, thresholds",), ops.key_mask, padding_is_seen),
    Mutant("logits of padding are seen", ("masked, spelled out",), ops.mask_keys, logits_unmasked),
    Mutant("padding is not filled", ("mean head, thresholds",), ops.fill, fill_nothing),
    Mutant("a mean counts padding", ("mean head, thresholds",), ops.rescale, rescale_nothing),
    Mutant("a mean is scaled twice", ("mean head, thresholds",), ops.rescale, rescale_twice),
    Mutant("nothing is painted", ("exits",), ops.paint, paint_nothing),
    Mutant("everything is painted", ("exits",), ops.paint, paint_everything),
    Mutant("the second exit is forgotten", ("exits",), ops.remaining, all_remain),
    Mutant("rows are cut one off", ("class token, drop",), ops.rows, rows_one_off),
    Mutant(
        "folded values without their bias", ("class token, drop",), ops.attend_states, states_without_bias
    ),
    Mutant("folded attention is twice as sharp", ("class token, drop",), ops.attend_states, states_unscaled),
)
