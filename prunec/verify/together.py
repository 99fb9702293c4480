"""The outputs of single images, put together as those of one batch.

logits [1, 7], [1, 7]   ->  [2, 7]     side by side, along the axis that counts images
a loss of each          ->  their mean or their sum, as the dense graph makes one of them
a table of positions    ->  the same for each
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from prunec.verify.differences import TOLERANCE, relative_difference
from prunec.verify.reference import UnprovenError

Shared = Callable[[Sequence[Tensor]], Tensor]  # an output of all images from those of each


def together(
    alone: Sequence[Sequence[Any]], like: Sequence[Any], shared: Callable[[int], Shared]
) -> list[Any]:
    """Put the outputs of single images together.

    Args:
        alone: for each image its outputs.
        like: the outputs of the batch.
        shared: how the output at a place combines all images, where it has no batch axis.
    """
    return [
        _joined([outputs[place] for outputs in alone], whole, partial(shared, place))
        for place, whole in enumerate(like)
    ]


def _joined(parts: list[Any], whole: Any, shared: Callable[[], Shared]) -> Any:
    if not isinstance(whole, Tensor) or len(parts) == 1:
        return parts[0]
    sizes = zip(parts[0].shape, whole.shape, strict=True)
    axes = [axis for axis, (one, all_) in enumerate(sizes) if one != all_]
    if axes:
        return torch.cat(parts, dim=axes[0])
    return parts[0] if _same(parts) else shared()(parts)


def how_shared(alone: Sequence[Tensor], whole: Tensor, place: int) -> Shared:
    """The mean or the sum over images, whichever the output is; UnprovenError where it is neither."""
    for shared in (_mean, _sum):
        if relative_difference(shared(alone), whole) <= 10 * TOLERANCE.get(whole.dtype, 1e-5):
            return shared
    raise UnprovenError(
        f"output {place} combines all images, and is neither the mean nor the sum of their own outputs"
    )


def _same(parts: Sequence[Tensor]) -> bool:
    return all(torch.equal(part, parts[0]) for part in parts[1:])


def _mean(parts: Sequence[Tensor]) -> Tensor:
    return torch.stack(tuple(parts)).double().mean(dim=0)


def _sum(parts: Sequence[Tensor]) -> Tensor:
    return torch.stack(tuple(parts)).double().sum(dim=0)
