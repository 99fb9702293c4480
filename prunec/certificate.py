"""Proof on the user's own input that the rewriting changed nothing but which tokens go on.

The rewritten graph has its counts in its selections only, so the same graph can keep everything:

    identity       every selection yields 0 .. T-1 in order
    permutation    every selection yields all rows, patches in a random order, protected rows in place

Both must give the outputs of the module itself, not only of what was captured from it. A table that was not
gathered, an index that is off by the prefix, an order that is not restored before a dense head: each shows
under the permutation, where keeping everything in the old order would hide it. At its own counts the program
is run as well: its outputs must have the original's shapes and be finite.

Rounding to 16 bits hides small mistakes, and in some models alone exceeds what may differ: sums of tokens in
another order round differently. So a 16-bit program keeps everything in order as it is, and is permuted in
float32, where the same graph must give the same outputs as the captured one to float32's tolerance.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from prunec import compat, graph, ops
from prunec.errors import VerificationError
from prunec.interface import images_in
from prunec.program import Program, with_tensors
from prunec.scattering import Scattering
from prunec.verify import own_counts
from prunec.verify.reference import UnprovenError

#: Largest difference relative to the output's scale that still counts as equal, by precision.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}

_HALVES = (torch.bfloat16, torch.float16)
_HALF = min(TOLERANCE[kind] for kind in _HALVES)

Run = tuple[Program, Program, tuple[Any, ...]]  # dense, pruned, flat inputs


@dataclass(frozen=True)
class Certificate:
    """The two comparisons, each with the largest difference relative to the output's largest value."""

    identity: float
    permutation: float
    tolerance: float  # of the identity, and of the permutation unless it has its own
    seconds: float
    batch: int
    permutation_tolerance: float | None = None  # where it is not the same: a 16-bit program, in float32
    padding: float | None = None  # only where images keep different numbers of tokens
    own_counts: float | None = None  # beside the dense graph with the same choices
    unproven: str | None = None  # why that could not be compared

    def __str__(self) -> str:
        identity, permutation = f"{self.identity:.1e}", f"{self.permutation:.1e}"
        allowed = f"{self.tolerance:.0e}"
        if self.permutation_tolerance is not None:
            permutation += " in float32"
            allowed += f" and {self.permutation_tolerance:.0e}"
        padding = "" if self.padding is None else f", padding: {self.padding:.1e}"
        own = f", {own_words(self.own_counts, self.unproven)}"
        return (
            f"identity at keep=1.0: {identity}, permutation: {permutation}{padding}{own} "
            f"(largest relative difference, at most {allowed})"
        )


def own_words(difference: float | None, unproven: str | None) -> str:
    """`own counts: 1.2e-07`, or why that is not known."""
    if difference is None:
        return f"not proven at its own counts: {unproven or 'not compared'}"
    return f"own counts: {difference:.1e}"


def certify(
    dense: Program,
    pruned: Program,
    inputs: tuple[Any, ...] | None = None,
    *,
    original: nn.Module | None = None,
) -> Certificate:
    """Compare the pruned program with the original; VerificationError when they differ.

    Args:
        dense: the captured program, nothing inserted.
        pruned: the same with its selections.
        inputs: flat inputs; the example when left out. More than one image, or a mix-up between them hides.
        original: the module itself. Without it the captured program stands for it.
    """
    start = time.perf_counter()
    flat = pruned.interface.example if inputs is None else inputs
    tolerance = sharper = _tolerance(dense)
    exact: Run = (dense, pruned, flat)
    if tolerance >= _HALF:
        exact, sharper = _in_float32(*exact), TOLERANCE[torch.float32]
    with torch.no_grad(), torch.random.fork_rng():  # randomness of the model's own repeats itself
        expected = _seeded(dense.module if original is None else _flat_call(original, dense), flat)
        identity = _worst(_seeded(_Keeping(pruned, permute=False).run, flat), expected)
        wanted = expected if exact[0] is dense else _seeded(exact[0].module, exact[2])
        permutation = _worst(_seeded(_Keeping(exact[1], permute=True).run, exact[2]), wanted)
    batch = images_in(flat)
    comparisons = (
        ("keep=1.0", identity, tolerance),
        ("the permutation certificate", permutation, sharper),
    )
    for name, difference, allowed in comparisons:
        if difference > allowed:
            _check_capture(dense, flat, expected, tolerance)
            raise VerificationError(
                f"the rewritten model differs from the original under {name}: {difference:.1e}, "
                f"at most {allowed:.0e} is allowed",
                where=_first_difference(*exact, sharper, permute="permutation" in name),
                remedy="the model was not changed and nothing was returned; please report the model's name",
            )
    padding = _padding(exact[1], exact[2], batch)
    if padding is not None and padding > sharper:
        raise VerificationError(
            f"images that keep different numbers of tokens see each other's padding: {padding:.1e}, "
            f"at most {sharper:.0e} is allowed",
            remedy="the model was not changed and nothing was returned; please report the model's name",
        )
    own: float | None = identity  # nothing is left out: its own counts are those
    unproven = None
    if pruned.plan is not None and pruned.plan.sites:
        if exact[1] is not pruned:
            with torch.no_grad():
                _check_outputs(pruned.module(*flat), expected)
        own, unproven = _at_own_counts(*exact, expected if exact[1] is pruned else None, sharper)
    seconds = time.perf_counter() - start
    other = None if sharper == tolerance else sharper
    return Certificate(identity, permutation, tolerance, seconds, batch, other, padding, own, unproven)


def _at_own_counts(
    dense: Program, pruned: Program, flat: tuple[Any, ...], shapes: Any, tolerance: float
) -> tuple[float | None, str | None]:
    """The difference from the dense graph with the same choices, or why there is none to be had."""
    assert pruned.anatomy is not None
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        found = own_counts.run(pruned, flat)
        if shapes is not None:
            _check_outputs(found.outputs, shapes)
        own_counts.check_pixel_free(dense, pruned.anatomy, found.chosen, flat)
        try:
            made = own_counts.references(dense, pruned, found.chosen, flat)
        except UnprovenError as reason:
            return None, str(reason)
        difference = _worst(found.outputs, own_counts.together(made, found.outputs))
        if difference > tolerance:
            where = own_counts.first_difference(
                pruned, made, found.chosen, flat, lambda one, other: relative_difference(one, other) > 10 * tolerance
            )
            raise VerificationError(
                f"the rewritten model at its own counts differs from the dense graph that leaves out the same "
                f"tokens: {difference:.1e}, at most {tolerance:.0e} is allowed",
                where=where,
                remedy="the model was not changed and nothing was returned; please report the model's name",
            )
    return difference, None


def _seeded(call: Callable[..., Any], flat: tuple[Any, ...]) -> Any:
    torch.manual_seed(0)
    return call(*flat)


def _flat_call(original: nn.Module, program: Program) -> Callable[..., list[Any]]:
    """The user's module, called with flat inputs and giving flat outputs."""

    def call(*flat: Any) -> list[Any]:
        args, kwargs = compat.tree_unflatten(list(flat), program.interface.in_spec)
        return compat.tree_flatten(original(*args, **kwargs))[0]

    return call


def _check_capture(dense: Program, flat: tuple[Any, ...], expected: Any, tolerance: float) -> None:
    """Whether it was the capture, and not the rewriting, that changed what the module computes."""
    with torch.no_grad(), torch.random.fork_rng():
        difference = _worst(_seeded(dense.module, flat), expected)
    if difference > tolerance:
        raise VerificationError(
            f"the graph that torch.export captured differs from the model itself: {difference:.1e}, "
            f"at most {tolerance:.0e} is allowed",
            remedy="the fault is before any rewriting: the model does something else while it is exported",
        )


def _check_outputs(found: Any, expected: Any) -> None:
    """At its own counts the program must yield outputs of the original's shapes, and numbers."""
    for place, (one, other) in enumerate(zip(found, expected, strict=True)):
        if isinstance(other, Tensor) and (one.shape != other.shape or one.dtype != other.dtype):
            raise VerificationError(
                f"output {place} of the pruned model is {one.dtype}{list(one.shape)}, the original's is "
                f"{other.dtype}{list(other.shape)}",
                remedy="the model was not changed and nothing was returned; please report the model's name",
            )
        if isinstance(other, Tensor) and bool(other.isfinite().all()) and not bool(one.isfinite().all()):
            raise VerificationError(
                f"output {place} of the pruned model holds values that are not finite",
                remedy="the model was not changed and nothing was returned; please report the model's name",
            )


def _tolerance(program: Program) -> float:
    """That of the coarsest precision anywhere in the graph."""
    values = (node.meta.get("val") for node in program.graph.nodes)
    kinds = {value.dtype for value in values if isinstance(value, Tensor) and value.is_floating_point()}
    return max((TOLERANCE.get(kind, 1e-5) for kind in kinds), default=1e-5)


def _in_float32(dense: Program, pruned: Program, flat: tuple[Any, ...]) -> Run:
    """The same programs and inputs with float32 in the place of every 16-bit precision."""
    wide: dict[int, Tensor] = {}  # tied weights stay tied, and both programs share theirs

    def widened(tensor: Tensor) -> Tensor:
        if tensor.dtype not in _HALVES:
            return tensor
        return wide.setdefault(id(tensor), nn.Parameter(tensor.detach().float(), requires_grad=False))

    def program(narrow: Program) -> Program:
        module = with_tensors(narrow.module, widened)
        for node in module.graph.nodes:
            node.args = fx.node.map_aggregate(node.args, _wide_name)
            node.kwargs = fx.node.map_aggregate(node.kwargs, _wide_name)
        module.recompile()
        return narrow.replace(module=module)

    halves = [isinstance(leaf, Tensor) and leaf.dtype in _HALVES for leaf in flat]
    inputs = tuple(leaf.float() if half else leaf for leaf, half in zip(flat, halves, strict=True))
    return program(dense), program(pruned), inputs


def _wide_name(argument: Any) -> Any:
    return torch.float32 if argument in _HALVES else argument


def _worst(found: Any, expected: Any) -> float:
    """The largest difference over all outputs, each relative to its own scale."""
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        if isinstance(other, Tensor):
            worst = max(worst, relative_difference(one, other))
    return worst


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over the largest absolute value; infinite for another shape and for NaN."""
    if found.shape != expected.shape:
        return float("inf")
    if expected.numel() == 0:
        return 0.0
    found, expected = found.detach().double(), expected.detach().double()
    scale = expected.abs().max().clamp_min(1e-12)
    difference = float((found - expected).abs().max() / scale)
    return float("inf") if math.isnan(difference) else difference  # no comparison with NaN holds


class _Keeping(fx.Interpreter):
    """Runs a pruned graph with selections that keep every token, in order or permuted."""

    def __init__(self, program: Program, *, permute: bool) -> None:
        super().__init__(program.module, garbage_collect_values=True)
        assert program.anatomy is not None
        self.prefix, self.suffix = program.anatomy.prefix, program.anatomy.suffix
        self.generator = torch.Generator().manual_seed(0) if permute else None

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Everything as it is, but selections."""
        if target in ops.PASSING:
            return torch.ones_like(args[0], dtype=torch.bool)
        if target not in ops.SELECTIONS:
            return super().call_function(target, args, kwargs)
        return keep_all(args[0], self.prefix, self.suffix, self.generator)


def _padding(pruned: Program, flat: tuple[Any, ...], batch: int) -> float | None:
    """A batch of images that keep different numbers of tokens beside each image by itself.

    None where every image keeps as many, or where the batch is fixed. A budget that images share is set
    aside: what one of them keeps then depends on the others, but what it computes from that must not.
    """
    ragged = any(node.target in ops.RAGGED for node in pruned.graph.nodes)
    if not ragged or pruned.interface.batch != batch or batch < 2:
        return None
    with torch.no_grad(), torch.random.fork_rng():
        together = _seeded(Scattering(pruned, range(batch), budgets=False).run, flat)
        alone = [
            _seeded(
                Scattering(pruned, [image], budgets=False).run,
                tuple(_one(leaf, image, batch) for leaf in flat),
            )
            for image in range(batch)
        ]
    worst = 0.0
    for place, whole in enumerate(together):
        parts = [outputs[place] for outputs in alone]
        if isinstance(whole, Tensor) and whole.dim() and whole.shape[0] == batch:
            worst = max(worst, relative_difference(torch.cat(parts), whole))
    return worst


@dataclass(frozen=True)
class Agreement:
    """A program in its mode beside the one that it was made from."""

    difference: float
    tolerance: float
    seconds: float
    images: int

    def __str__(self) -> str:
        return (
            f"the same outputs as before, on token sets of all sizes: {self.difference:.1e} "
            f"(largest relative difference, at most {self.tolerance:.0e})"
        )


def agree(plain: Program, lowered: Program, flat: tuple[Any, ...] | None = None) -> Agreement:
    """Compare a lowered program with the one it was made from; VerificationError when they differ.

    Both keep the same tokens, chosen at random: each image another share of its own.
    """
    assert plain.plan is not None
    start, flat = time.perf_counter(), plain.interface.example if flat is None else flat
    batch = images_in(flat)
    tolerance = _tolerance(plain)
    if tolerance >= _HALF:
        (plain, lowered, flat), tolerance = _in_float32(plain, lowered, flat), TOLERANCE[torch.float32]
    assert plain.plan is not None
    together = [(flat, range(batch))]
    apart = [(tuple(_one(leaf, image, batch) for leaf in flat), [image]) for image in range(batch)]
    worst = 0.0
    with torch.no_grad(), torch.random.fork_rng():
        for inputs, images in apart if plain.plan.lowering.single else together:
            expected = _seeded(Scattering(plain, images).run, inputs)
            worst = max(worst, _worst(_seeded(Scattering(lowered, images).run, inputs), expected))
    if worst > tolerance:
        raise VerificationError(
            f"the model in mode {plain.plan.lowering} differs from what it was made from: {worst:.1e}, "
            f"at most {tolerance:.0e} is allowed",
            where="mode",
            remedy="use mode padded, and please report the model's name",
        )
    return Agreement(worst, tolerance, time.perf_counter() - start, batch)


def _one(leaf: Any, image: int, batch: int) -> Any:
    is_batch = isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == batch
    return leaf[image : image + 1] if is_batch else leaf


def keep_all(score: Tensor, prefix: int, suffix: int, generator: torch.Generator | None) -> Tensor:
    """All rows of a stream: in order, or with the patches shuffled (each image its own way)."""
    batch, tokens = score.shape
    rows = torch.arange(tokens).expand(batch, -1).clone()
    if generator is not None:
        for image in range(batch):
            shuffled = torch.randperm(tokens - prefix - suffix, generator=generator) + prefix
            rows[image, prefix : tokens - suffix] = shuffled
    return rows.to(score.device)


def _first_difference(
    dense: Program, pruned: Program, flat: tuple[Any, ...], tolerance: float, *, permute: bool
) -> str | None:
    """The first value of the original graph that comes out wrong, whatever the order of its rows."""
    expected = _values(fx.Interpreter(dense.module, garbage_collect_values=False), flat)
    found = _values(_Keeping(pruned, permute=permute), flat)
    for node in pruned.graph.nodes:
        one, other = found.get(node.name), expected.get(node.name)
        if not (isinstance(one, Tensor) and isinstance(other, Tensor) and one.is_floating_point()):
            continue
        if (
            one.shape != other.shape
            or relative_difference(_unordered(one), _unordered(other)) > 10 * tolerance
        ):
            return graph.place(node)
    return None


def _values(interpreter: fx.Interpreter, flat: tuple[Any, ...]) -> dict[str, Any]:
    interpreter.garbage_collect_values = False
    with torch.no_grad():
        interpreter.run(*flat)
    return {node.name: value for node, value in interpreter.env.items()}


def _unordered(x: Tensor) -> Tensor:
    return x.flatten().sort().values
