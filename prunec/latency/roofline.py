"""A latency table without the device: each operator takes what its arithmetic, its memory or its launch does.

    seconds of a piece = sum over its operators of max(FLOP / flops, bytes / bandwidth, launch)

Bytes are an operator's inputs and results. A view, whose result lies where an input does, takes nothing.
Pointwise operators in a row take one launch, and the bytes that come from outside or leave at the end, as if
fused. With the number of processors given, products of matrices fill them in waves of 128 x 128 tiles, and
the last wave takes as long as a full one. The pieces are run once, wherever the model is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunec import compat
from prunec.ir.flops import FlopCounter
from prunec.ir.interface import images_in
from prunec.ir.program import Program
from prunec.latency.latency import Pieces, Workload, grid, table_of
from prunec.latency.table import LatencyTable
from prunec.measure import cost
from prunec.policy.lowering import MODES
from prunec.policy.modes import ModeName
from prunec.targets import Flat

TILE = 128
ERROR = 0.3  # expected, relative
_SIDE, _COPIED = 1024, 1 << 24  # of the matrices, and how many numbers, that a device is measured by


@dataclass(frozen=True)
class Ceilings:
    """What a device does at best, sustained: never a datasheet's figures."""

    flops: float  # floating-point operations a second
    bytes: float  # bytes read or written a second
    launch: float = 2.5e-6  # seconds that a kernel takes at least
    processors: int | None = None  # that tiles are spread over; None: products have no waves
    name: str = "elsewhere"  # what the device is called


def estimate(
    workload: Workload,
    ceilings: Ceilings,
    place: Mapping[str, str | int],
    work: Mapping[str, str | int],
    *,
    counts: Sequence[int] | None = None,
) -> LatencyTable:
    """The table that `latency.measure` would make, computed: for planning without the device.

    Args:
        workload: the model, policy, mode and inputs.
        ceilings: of the device that the table is for.
        place: that device, for the table.
        work: what is estimated, for the table.
        counts: stream lengths, descending, the dense one first; a friendly grid when left out.
    """
    start = time.perf_counter()
    dense, flat = workload.dense, workload.flat
    counts = tuple(counts or grid(dense.anatomy, images_in(flat)))
    pieces, target = Pieces(workload), _Estimating(ceilings)
    taken = {name: float(call()) for name, call in pieces.calls(counts, target).items()}  # type: ignore[arg-type]
    taken["dense"] = target.lower(dense)(*flat)
    return table_of(
        pieces,
        counts,
        taken,
        place=place,
        work=work,
        spread=0.0,
        seconds=time.perf_counter() - start,
        samples={},
        estimated=True,
        error=ERROR,
    )


def ceilings_here(device: torch.device) -> Ceilings:
    """Those of a device at hand: one large product of matrices, one large copy, one small addition."""
    square, many = torch.randn(_SIDE, _SIDE, device=device), torch.randn(_COPIED, device=device)
    one, copied = torch.zeros(1, device=device), torch.empty_like(many)
    calls = {
        "product": lambda: square @ square,
        "copy": lambda: copied.copy_(many),
        "launch": lambda: one + one,
    }
    least = {name: min(timing.samples) for name, timing in cost.measure(calls, device=device).items()}
    processors = None
    if device.type == "cuda":
        processors = torch.cuda.get_device_properties(device).multi_processor_count
    moved = 2 * many.numel() * many.element_size()
    return Ceilings(2 * _SIDE**3 / least["product"], moved / least["copy"], least["launch"], processors)


class _Estimating:
    """A target whose programs give the seconds that they would take."""

    summary = "estimates"
    modes: tuple[ModeName, ...] = MODES

    def __init__(self, ceilings: Ceilings) -> None:
        self.ceilings = ceilings

    def missing(self) -> str | None:
        """Always there."""
        return None

    def lower(self, program: Program) -> Flat:
        """A function of the inputs that gives the time."""

        def seconds(*inputs: Any) -> float:
            roofline = _Roofline(self.ceilings)
            with torch.no_grad(), roofline:
                program.module(*inputs)
            return roofline.total()

        return seconds


class _Roofline(compat.DispatchMode):
    """Adds up what the operators that run inside it would take."""

    def __init__(self, ceilings: Ceilings) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ceilings, self.seconds = ceilings, 0.0
        self.read: dict[int, Tensor] = {}  # of the pointwise operators in a row so far, from outside
        self.made: dict[int, Tensor] = {}  # and what they made; the last one leaves

    def total(self) -> float:
        """Seconds of all that ran."""
        self._end_row()
        return self.seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, and add its time."""
        with FlopCounter() as counter:
            result = func(*args, **(kwargs or {}))
        read, made = _tensors((args, kwargs)), _tensors(result)
        if {_storage(tensor) for tensor in made} <= {_storage(tensor) for tensor in read}:
            return result  # views, and sizes
        if torch.Tag.pointwise in func.tags:
            self.read |= {id(tensor): tensor for tensor in read if not self._is_made(tensor)}
            self.made |= {id(tensor): tensor for tensor in made}
            return result
        self._end_row()
        self._add(counter.total, read, made)
        return result

    def _is_made(self, tensor: Tensor) -> bool:
        return _storage(tensor) in {_storage(other) for other in self.made.values()}

    def _end_row(self) -> None:
        if self.made:
            self._add(0, list(self.read.values()), list(self.made.values())[-1:])
        self.read, self.made = {}, {}

    def _add(self, flops: int, read: list[Tensor], made: list[Tensor]) -> None:
        moved = sum(tensor.numel() * tensor.element_size() for tensor in (*read, *made))
        computing = flops / self.ceilings.flops * (self._waves(made[0]) if flops else 1.0)
        self.seconds += max(computing, moved / self.ceilings.bytes, self.ceilings.launch)

    def _waves(self, result: Tensor) -> float:
        """How much longer it takes because the last wave of tiles is not full; result: [.., M, N]."""
        if self.ceilings.processors is None or result.dim() < 2:
            return 1.0
        *batch, height, width = result.shape
        tiles = math.prod(batch) * math.ceil(height / TILE) * math.ceil(width / TILE)
        return math.ceil(tiles / self.ceilings.processors) * self.ceilings.processors / tiles


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in compat.tree_leaves(values) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
