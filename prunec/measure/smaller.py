"""The same model on a smaller picture, at the FLOPs of the pruned one: what can be had without pruning.

    picture -- scaled down -- model, its positions resized -- outputs scaled back to the dense ones' sizes

A model takes another size where timm resizes it (`set_input_size`), or transformers does as it runs. Where it
cannot be had, the reason is told.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunec import compat
from prunec.errors import PruneError, first_sentence
from prunec.frontend.sources import Source
from prunec.ir.flops import FlopCounter
from prunec.structure import Anatomy

Size = tuple[int, int]
Run = Callable[[Tensor], Any]


@dataclass(frozen=True)
class NoSmaller:
    """Why there is no smaller picture to compare with."""

    reason: str

    def __str__(self) -> str:
        return f"left out: {self.reason}"


@dataclass(frozen=True)
class Layout:
    """How tokens lie in an output, and how large the outputs are for the whole picture."""

    prefix: int
    suffix: int
    grid: Size
    outputs: tuple[tuple[int, ...], ...]  # the sizes of each leaf, without the batch


@dataclass(frozen=True)
class Smaller:
    """A model that sees a smaller picture, as a callable on the whole one."""

    run: Run
    size: Size
    grid: Size
    share: float  # of the dense model's FLOPs
    layout: Layout

    def __call__(self, images: Tensor) -> Any:
        """Outputs of the sizes that the dense model gives."""
        leaves, spec = compat.tree_flatten(self.run(scaled(images, self.size)))
        if len(leaves) != len(self.layout.outputs):
            raise _Unlike(f"it gives {len(leaves)} outputs there, not {len(self.layout.outputs)}")
        pairs = zip(leaves, self.layout.outputs, strict=True)
        return compat.tree_unflatten([self._scaled_back(leaf, sizes) for leaf, sizes in pairs], spec)

    def _scaled_back(self, leaf: Any, sizes: tuple[int, ...]) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dim() == 0 or tuple(leaf.shape[1:]) == sizes:
            return leaf
        if leaf.dim() != len(sizes) + 1:
            raise _Unlike(f"an output of the sizes {list(leaf.shape[1:])} is no {list(sizes)} scaled down")
        if leaf.dim() == 4 and leaf.shape[1] == sizes[0]:
            return _to(leaf, (sizes[1], sizes[2]))
        if leaf.dim() == 4 and leaf.shape[3] == sizes[2]:
            return _to(leaf.movedim(3, 1), (sizes[0], sizes[1])).movedim(1, 3)
        if leaf.dim() == 3 and leaf.shape[2] == sizes[1]:
            return self._tokens_back(leaf, sizes[0])
        if leaf.dim() == 3:
            return _to(leaf[:, None], (sizes[0], sizes[1]))[:, 0]
        raise _Unlike(f"an output of the sizes {list(leaf.shape[1:])} is no {list(sizes)} scaled down")

    def _tokens_back(self, rows: Tensor, count: int) -> Tensor:
        """The patches scaled back to their grid, protected tokens as they are."""
        few, many = (high * wide for high, wide in (self.grid, self.layout.grid))
        extra = rows.shape[1] - few
        if extra != count - many or extra not in (0, self.layout.prefix + self.layout.suffix):
            raise _Unlike(f"{rows.shape[1]} rows of an output are no {count} scaled down")
        front = self.layout.prefix if extra else 0
        patches = rows[:, front : front + few].transpose(1, 2).unflatten(2, self.grid)
        back = _to(patches, self.layout.grid).flatten(2).transpose(1, 2)
        return torch.cat([rows[:, :front], back, rows[:, front + few :]], dim=1)

    def __str__(self) -> str:
        return f"the same model on {self.size[0]} x {self.size[1]} pixels, {self.share:.0%} of the FLOPs"


class _Unlike(Exception):  # noqa: N818  it is a reason, told as one
    """What a model makes of a smaller picture does not compare with what it makes of the whole."""


def smaller_picture(
    source: Source,
    anatomy: Anatomy,
    outputs: Sequence[tuple[int, ...]],
    image: Tensor,
    flops: tuple[int, int],
) -> Smaller | NoSmaller:
    """The model on the picture size whose FLOPs are nearest to the pruned model's, or why there is none.

    Args:
        source: the model, and how it is called.
        anatomy: its tokens.
        outputs: the sizes of each of its outputs, for one image.
        image: [1, 3, H, W], to try sizes on.
        flops: of the dense and of the pruned model, for one image.
    """
    dense, wanted = flops
    if wanted >= dense:
        return NoSmaller("the pruned model takes as many FLOPs as the dense one")
    grid = grid_of(anatomy, (int(image.shape[-2]), int(image.shape[-1])))
    if grid is None:
        return NoSmaller("the patches do not fill the picture as a grid")
    layout = Layout(anatomy.prefix, anatomy.suffix, grid, tuple(outputs))
    try:
        found = _nearest(source, layout, image, dense, wanted)
        if not isinstance(found, NoSmaller):
            with torch.no_grad():
                found(image)
    except _Unlike as error:
        return NoSmaller(str(error))
    except Exception as error:  # noqa: BLE001  a model may refuse another size in any way
        what = error.what if isinstance(error, PruneError) else first_sentence(error)
        return NoSmaller(f"the model does not take a smaller picture: {what}")
    return found


def grid_of(anatomy: Anatomy, picture: Size) -> Size | None:
    """Rows and columns of the patches, where they are as many to a side as its length says."""
    high, wide = picture
    rows = round((anatomy.grid * high / wide) ** 0.5)
    columns = anatomy.grid // rows if rows else 0
    fits = rows and rows * columns == anatomy.grid and high % rows == 0 and wide % columns == 0
    return (rows, columns) if fits else None


def scaled(images: Tensor, size: Size) -> Tensor:
    """Pictures of another size."""
    exact = images.float() if images.dtype in (torch.float16, torch.bfloat16) else images
    return F.interpolate(exact, size, mode="bicubic", antialias=True, align_corners=False).to(images.dtype)


def _nearest(source: Source, layout: Layout, image: Tensor, dense: int, wanted: int) -> Smaller | NoSmaller:
    """By bisection: more patches take more FLOPs."""
    rows, columns = layout.grid
    patch = image.shape[-2] // rows, image.shape[-1] // columns

    def candidate(high: int) -> tuple[Smaller, int] | NoSmaller:
        grid = high, max(1, round(columns * high / rows))
        size = grid[0] * patch[0], grid[1] * patch[1]
        run = _at_size(source, size)
        if isinstance(run, NoSmaller):
            return run
        count = _flops(run, scaled(image, size))
        return Smaller(run, size, grid, count / dense, layout), count

    low, high = 0, rows  # FLOPs(low) < wanted <= FLOPs(high)
    tried: list[tuple[Smaller, int]] = []
    while high - low > 1:
        middle = (low + high) // 2
        found = candidate(middle)
        if isinstance(found, NoSmaller):
            return found
        tried.append(found)
        low, high = (low, middle) if found[1] >= wanted else (middle, high)
    if not tried:
        return NoSmaller("the picture is one patch high")
    return min(tried, key=lambda each: abs(each[1] - wanted))[0]


def _flops(run: Run, image: Tensor) -> int:
    counter = FlopCounter()
    with counter, torch.no_grad():
        run(image)
    return counter.total


def _at_size(source: Source, size: Size) -> Run | NoSmaller:
    """The model for pictures of a size, as a callable on them."""
    tensors = [leaf for leaf in compat.tree_leaves((source.args, source.kwargs)) if isinstance(leaf, Tensor)]
    if source.submodule or source.exported is not None or len(tensors) != 1:
        return NoSmaller("only a whole model that takes one picture can be given a smaller one")
    module = source.module
    resize = getattr(module, "set_input_size", None)
    if callable(resize):
        module = copy.deepcopy(module)
        module.set_input_size(img_size=size)  # type: ignore[operator]
        return _called(source, module, {})
    if hasattr(module, "config") and getattr(module, "main_input_name", "") == "pixel_values":
        takes = "interpolate_pos_encoding" in inspect.signature(module.forward).parameters
        return _called(source, module, {"interpolate_pos_encoding": True} if takes else {})
    return NoSmaller("nothing says how the model takes a picture of another size")


def _called(source: Source, module: nn.Module, more: dict[str, Any]) -> Run:
    def run(images: Tensor) -> Any:
        args, kwargs = compat.tree_map(
            lambda leaf: images if isinstance(leaf, Tensor) else leaf, (source.args, source.kwargs)
        )
        return module(*args, **{**kwargs, **more})

    return run


def _to(planes: Tensor, size: Size) -> Tensor:
    return F.interpolate(planes.float(), size, mode="bilinear", align_corners=False)
