"""A metric of the user's own: what it is called, how it is found, and what it may return.

def metric(output, labels):   # what the model returns for some images; their classes [n], or None
    ...                       # one number for them all, or a tensor [n] with one for each
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from prunec import compat
from prunec.errors import UsageError, shown
from prunec.frontend.source_reading import function_of, working_folder_importable

Metric = Callable[[Any, Tensor | None], Any]

TAKES = "a function that takes a model's output and the labels or None, and returns a number"


def read(spec: str) -> Metric:
    """The function that `pkg.module:function` names.

    Raises:
        UsageError: it cannot be imported, or is no function.
    """
    where = f"--metric {spec}"
    module_name, colon, name = spec.partition(":")
    if not (module_name and colon and name):
        raise UsageError(
            f"{shown(spec)} does not name a function",
            where=where,
            remedy=f"write pkg.module:function, the name of {TAKES}",
        )
    with working_folder_importable():
        remedies = ("run where it can be imported, or install it", f"name {TAKES}")
        return function_of(module_name, name, UsageError, where, remedies=remedies)


def name_of(metric: Metric) -> str:
    """What a metric is called in a report."""
    return str(getattr(metric, "__name__", type(metric).__name__))


def values(metric: Metric, output: Any, labels: Tensor | None, images: int) -> Tensor:
    """What a metric gives for some images, a number for each.

    Args:
        metric: the user's function.
        output: what the model returned for them, on the CPU.
        labels: the class of each, where they have one.
        images: how many there are.

    Raises:
        UsageError: the function fails, or does not return what it should.
    """
    where = f"metric {name_of(metric)}"
    try:
        given = metric(output, labels)
    except Exception as error:  # the user's code may raise anything
        raise UsageError(
            f"the metric raised {type(error).__name__}: {error}",
            where=where,
            remedy=f"give {TAKES}",
        ) from error
    try:
        found = torch.as_tensor(given).detach().float().cpu()
    except (TypeError, ValueError, RuntimeError):
        found = torch.empty(0)
    if found.dim() == 0:
        return found.expand(images)
    if found.shape == (images,):
        return found
    what = f"a tensor {list(given.shape)}" if isinstance(given, Tensor) else shown(given)
    raise UsageError(
        f"the metric returned {what} for {images} images",
        where=where,
        remedy=f"return one number, or a tensor [{images}] with one for each image",
    )


def first_images(output: Any, batch: int, images: int) -> Any:
    """An output of the first images of a batch only, on the CPU."""

    def cut(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        leaf = leaf.detach().cpu()
        return leaf[:images] if leaf.dim() and len(leaf) == batch else leaf

    return compat.tree_map(cut, output)
