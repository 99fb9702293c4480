"""The model's own code, run again on a shorter stream.

A captured graph does not say which of its numbers follow the token count: tracing wrote x.shape[1] down as
197. So the model is captured once more with fewer patches, and a number that is another one then follows it.

    image [B, 3, 224, 224]           ->  [B, 3, 144, 224]         where the model takes another size
    conv2d's result [B, c, 14, 14]   ->  [B, c, 9, 14]            else the first value that counts patches

Where the code knows its full length, it gets what the token axis gives it (see spaces.py): a table of the
full length is cut, and a call that wants the whole grid gets as many rows as it had. Only types are computed,
so it does not matter what is in the rows.

The batch is a number in such a run: that takes a third of the time. Where the model computes with its batch,
or makes other calls then, it is a symbol as at capture.
"""

from __future__ import annotations

import itertools
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from prunec import compat
from prunec.capture.capture import graph_of
from prunec.capture.submodule import shared_copy
from prunec.ir.graph import ancestors, copy, is_size, is_tensor, op, reachable, tidy
from prunec.ir.program import Program, Recognised
from prunec.passes.normalise import inline_regions

#: How much of an axis that counts patches is left in the first run, and in the second.
SHARES = (0.62, 0.38)


@torch.library.custom_op("prunec::resized", mutates_args=())
def _resized(x: Tensor, dim: int, length: int) -> Tensor:
    """The tensor with another length along one axis."""
    return x.index_select(dim, torch.arange(length, device=x.device) % x.shape[dim])


@_resized.register_fake
def _(x: Tensor, dim: int, length: int) -> Tensor:
    return x.new_empty([length if axis == dim else size for axis, size in enumerate(x.shape)])


def is_call(node: fx.Node) -> bool:
    """Whether a node of a run is a call of the model's own code that is in all runs of it."""
    return node.op == "call_function" and not is_of_batch(node) and not is_resized(node)


def is_of_batch(node: fx.Node) -> bool:
    """Whether a node is there only where the batch is a symbol: it reads the size, or takes all images."""
    if op(node) == "slice":
        images = node.args[0].meta["val"].shape[0]  # type: ignore[union-attr]
        return isinstance(images, torch.SymInt) and node.args[1:] in ((), (0,), (0, 0), (0, 0, sys.maxsize))
    return op(node) == "sym_size"


def is_resized(node: fx.Node) -> bool:
    """Whether a node of such a run is not the model's own."""
    return node.target is torch.ops.prunec.resized.default


@dataclass(frozen=True)
class Cut:
    """Where a run is made shorter: the image, or the first value of this shape."""

    shape: tuple[int | None, ...] | None  # None: the image; an axis of None: a symbol
    axis: int
    length: int  # of the axis, at capture
    each: int  # how many patches one step along it is

    def shorter(self, share: float) -> int:
        """How long the axis is to be: another length for each share, from 3 steps on."""
        return math.ceil(self.length * share - 0.5 * (share < 0.5))


class Rerun:
    """Captures a model again, with fewer patches, at the first place where it can be cut."""

    def __init__(self, module: nn.Module, captured: Program, dense: Recognised) -> None:
        self.module, self.captured, self.anatomy = module, captured, dense.anatomy
        self.nodes = {node.name: node for node in captured.graph.nodes}
        self.reason = "no value of it counts patches"
        self.cut: Cut | None = None
        plain, batch = copy(captured.module), captured.interface.batch
        _tidy(plain)
        self.calls = _calls(plain)
        computed = any(map(_computes, plain.graph.nodes))
        self.batches = (batch,) if computed or batch is None else (None, batch)

    def run(self, share: float) -> tuple[fx.GraphModule, int] | None:
        """The graph of a stream that is shorter by about this share, and its token count."""
        for cut in [self.cut] if self.cut else self._cuts():
            tokens = self.anatomy.tokens - (cut.length - cut.shorter(share)) * cut.each
            for batch in self.batches:
                found = self._captured(cut, cut.shorter(share), tokens, batch)
                if found is None or _counting(found, tokens) < len(self.anatomy.states):
                    break
                if batch == self.batches[-1] or _holds(_calls(found), self.calls):
                    self.cut = cut
                    return found, tokens
        return None

    # --- where ----------------------------------------------------------------------------------

    def _cuts(self) -> Iterator[Cut]:
        """Places to cut, the best first."""
        patches, value = self.anatomy.grid, self.nodes[self.anatomy.pixels].meta["val"]
        first = self._counting_patches()
        for shape in first[:1]:
            if value.dim() == 4 and shape.each > 1 and value.shape[-2] % shape.length == 0:
                yield Cut(None, 2, shape.length, shape.each)
        state = self.nodes.get(self.anatomy.states[0])
        last = [] if state is None else list(_axes_of_patches(state, patches, self.anatomy.tokens))
        yield from dict.fromkeys((*first, *last))

    def _counting_patches(self) -> list[Cut]:
        """How the first value on the way to the stream that counts patches does it."""
        pixels, last = self.nodes[self.anatomy.pixels], self.nodes.get(self.anatomy.states[0])
        seen = reachable([pixels])
        before = ancestors(last) if last is not None else seen
        for node in self.captured.graph.nodes:
            if node in seen and node in before and node is not pixels and is_tensor(node):
                found = list(_axes_of_patches(node, self.anatomy.grid, self.anatomy.tokens))
                if found:
                    return found
        return []

    # --- the run --------------------------------------------------------------------------------

    def _captured(self, cut: Cut, length: int, tokens: int, batch: int | None) -> fx.GraphModule | None:
        interface = self.captured.interface
        flat = list(interface.example)
        if cut.shape is None:
            placeholders = [node for node in self.captured.graph.nodes if node.op == "placeholder"]
            place = placeholders.index(self.nodes[self.anatomy.pixels])
            flat[place] = flat[place].narrow(2, 0, flat[place].shape[2] // cut.length * length)
        args, kwargs = compat.tree_unflatten(flat, interface.in_spec)
        ends = self.anatomy.prefix + self.anatomy.suffix
        try:
            with warnings.catch_warnings(), compat.attempts(), torch.no_grad():
                warnings.simplefilter("ignore")
                shortened = _Shortened(
                    shared_copy(self.module), cut, length, (self.anatomy.tokens, tokens, ends)
                )
                exported = compat.export(shortened, args, kwargs, batch)
                exported.graph.eliminate_dead_code()  # calls that did not fit
                module = graph_of(exported)
        except Exception as error:  # noqa: BLE001  the model's own code raises whatever it likes
            self.reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            return None
        _tidy(module)
        return module


def _axes_of_patches(node: fx.Node, patches: int, tokens: int) -> Iterator[Cut]:
    """Axes of a value that count patches: rows of a grid, or tokens."""
    shape = tuple(size if isinstance(size, int) else None for size in node.meta["val"].shape)
    for axis, (rows, columns) in enumerate(itertools.pairwise(shape)):
        if rows and columns and rows > 2 and columns > 1 and patches <= rows * columns <= tokens:
            yield Cut(shape, axis, rows, columns)
    for axis, size in enumerate(shape):
        if size and patches <= size <= tokens and size > 2:
            yield Cut(shape, axis, size, 1)


def _counting(module: fx.GraphModule, tokens: int) -> int:
    """How many values of a graph count so many tokens."""
    return sum(tokens in node.meta["val"].shape for node in module.graph.nodes if is_tensor(node))


class _Shortened(nn.Module):
    """The model, watched while its code runs."""

    def __init__(self, model: nn.Module, cut: Cut, length: int, counts: tuple[int, int, int]) -> None:
        super().__init__()
        self.model = model
        self.watched = (cut, length, counts)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's."""
        with _Shorter(*self.watched):
            return self.model(*args, **kwargs)


class _Shorter(TorchFunctionMode):
    """Cuts one value, and lets every call that follows fit it."""

    def __init__(self, cut: Cut, length: int, counts: tuple[int, int, int]) -> None:
        super().__init__()
        self.cut: Cut | None = cut if cut.shape is not None else None
        self.length = length
        self.full, self.short, self.ends = counts

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run a call of PyTorch, with operands that fit if need be."""
        result = self._fitting(func, args, kwargs or {})
        cut = self.cut
        if cut is not None and isinstance(result, Tensor) and _is_of(result, cut.shape):
            self.cut = None
            return _resized(result, cut.axis, self.length)
        return result

    def _fitting(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return func(*args, **kwargs)
        except Exception:
            leaves, spec = compat.tree_flatten((args, kwargs))
            for changed in self._changes(leaves):
                try:
                    new_args, new_kwargs = compat.tree_unflatten(changed, spec)
                    return func(*new_args, **new_kwargs)
                except Exception:  # noqa: BLE001, PERF203  the next one may fit
                    continue
            raise

    def _changes(self, leaves: list[Any]) -> Iterator[list[Any]]:
        """The operands with tables cut, all or one of them, or with everything at full length again."""
        by = self.full - self.short
        for length, difference in ((self.full, -by), (self.short, by)):
            places = [
                (place, axis)
                for place, leaf in enumerate(leaves)
                if isinstance(leaf, Tensor)
                for axis, size in enumerate(leaf.shape)
                if isinstance(size, int) and length - self.ends <= size <= length
            ]
            alone = [[one for one in places if one[0] == place] for place in dict(places)]
            choices = [places, *alone, *([one] for one in places)]
            for chosen in dict.fromkeys(map(tuple, choices)):
                if chosen:
                    yield _with_lengths(leaves, chosen, difference)


def _with_lengths(leaves: list[Any], places: tuple[tuple[int, int], ...], difference: int) -> list[Any]:
    changed = list(leaves)
    for place, axis in places:
        changed[place] = _resized(changed[place], axis, changed[place].shape[axis] + difference)
    return changed


def _is_of(value: Tensor, shape: tuple[int | None, ...] | None) -> bool:
    if shape is None or len(shape) != value.dim():
        return False
    return all(known is None or known == size for known, size in zip(shape, value.shape, strict=True))


def _computes(node: fx.Node) -> bool:
    """Whether a node computes with sizes: another one, or a tensor of nothing else."""
    sources = node.all_input_nodes
    return (
        node.op == "call_function" and op(node) != "sym_size" and bool(sources) and all(map(is_size, sources))
    )


def _tidy(module: fx.GraphModule) -> None:
    """One graph, and nothing in it that is not used."""
    inline_regions(module)
    tidy(module)


def _calls(module: fx.GraphModule) -> list[str]:
    """The calls of the model's code, by their names."""
    return [str(node.target) for node in module.graph.nodes if is_call(node)]


def _holds(calls: list[str], others: list[str]) -> bool:
    """Whether all the others are among the calls, in their order."""
    rest = iter(calls)
    return all(other in rest for other in others)
