"""Faults that are there before any rewriting: in the example, the weights, the model or its capture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from prunec.errors import UsageError, VerificationError, first_few
from prunec.ir.program import Recognised
from prunec.verify.differences import seeded, worst


def check_original(
    itself: Callable[..., Any], dense: Recognised, flat: tuple[Any, ...], tolerance: float
) -> None:
    """Raise the error that explains why no rewriting of this model could pass, if there is such a reason.

    Args:
        itself: the model, on flat inputs.
        dense: its capture.
        flat: the example.
        tolerance: the largest relative difference between two runs of it.
    """
    _check_finite(itself, dense, flat)
    with torch.no_grad(), torch.random.fork_rng():
        first, second = seeded(itself, flat), seeded(itself, flat)
        apart, captured = worst(second, first), worst(seeded(dense.module, flat), first)
    if apart > tolerance:
        raise VerificationError(
            f"two runs of the model itself on the same input differ by {apart:.1e}: it draws random numbers "
            "that torch.manual_seed does not control, or keeps state from call to call",
            remedy="make its forward in eval mode depend on its inputs and weights alone",
        )
    if captured > tolerance:
        raise VerificationError(
            f"the graph that torch.export captured differs from the model itself: {captured:.1e}, "
            f"at most {tolerance:.0e} is allowed",
            remedy="no rewriting is at fault: the model behaves in another way while torch.export traces it",
        )


def _check_finite(itself: Callable[..., Any], dense: Recognised, flat: tuple[Any, ...]) -> None:
    with torch.no_grad(), torch.random.fork_rng():
        outputs = seeded(itself, flat)
    if not list(_not_finite((str(place), value) for place, value in enumerate(outputs))):
        return
    if wrong := list(_not_finite(zip(dense.interface.leaf_names(), flat, strict=True))):
        raise UsageError(
            f"the example holds NaN or infinity: {first_few(wrong)}",
            where="example=",
            remedy="give an example of finite numbers, such as a normalised image",
        )
    if wrong := list(_not_finite(dense.module.named_parameters())):
        raise UsageError(
            f"the model's weights hold NaN or infinity: {first_few(wrong)}",
            remedy="load finite weights; a training that diverged leaves NaN",
        )
    raise UsageError(
        "the model's outputs on the example are not finite, so nothing can be compared with them",
        remedy="give an example on which they are; in float16 sums may overflow: try bfloat16 or float32",
    )


def _not_finite(named: Iterable[tuple[str, Any]]) -> Iterator[str]:
    """The names of floating-point tensors with NaN or infinity in them."""
    for name, value in named:
        if isinstance(value, Tensor) and value.is_floating_point() and not bool(value.isfinite().all()):
            yield name
