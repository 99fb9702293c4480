"""Proof on the user's own input that the rewritten graph differs only in which tokens go on.

Token counts stand only in the selections of the rewritten graph, so the same graph can keep everything:

    identity       every selection yields 0 .. T-1 in order
    permutation    every selection yields all rows, patches in a random order, protected rows in place

Both must give the outputs of the module itself, not only of its captured graph. A table that was not
gathered, an index that is off by the prefix, an order that is not restored before a dense head: the
permutation shows each, where keeping everything in the old order would hide it.

    own counts     the program as it is, and the dense graph with the same tokens left out (own_counts.py)

Where nothing is left out, nothing is stale, fused, merged or shorter: mistakes in these show only at the
program's own counts. What must be true of any selection is checked there too.

Rounding to 16 bits hides small mistakes, and in some models exceeds the tolerance by itself, because sums of
tokens in another order round differently. So a 16-bit program is compared in order in its own precision, and
permuted in float32, where it must give the outputs of the captured graph to float32's tolerance.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from prunec import compat, ops
from prunec.capture.borrowing import unchanged
from prunec.errors import REPORT, VerificationError
from prunec.ir import arguments, graph
from prunec.ir.interface import images_in
from prunec.ir.program import Planned, Program, Recognised
from prunec.verify import own_counts, runs
from prunec.verify.differences import (
    HALF,
    TOLERANCE,
    in_float32,
    one,
    relative_difference,
    seeded,
    tolerance_of,
    worst,
)
from prunec.verify.original import check_original
from prunec.verify.scattering import Scattering

__all__ = ["TOLERANCE", "Certificate", "certify", "keep_all", "own_words", "relative_difference"]

Run = tuple[Recognised, Planned, tuple[Any, ...]]  # dense, pruned, flat inputs


@dataclass(frozen=True)
class Certificate:
    """The comparisons, each with the largest difference relative to the output's largest value."""

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
        words = own_words(self.own_counts, self.unproven)
        own = f", {words}" if words else ""
        return (
            f"identity at keep=1.0: {identity}, permutation: {permutation}{padding}{own} "
            f"(largest relative difference, at most {allowed})"
        )


def own_words(difference: float | None, unproven: str | None) -> str:
    """`own counts: 1.2e-07`, or why that is not known; empty if a record has neither."""
    if difference is None:
        return f"not proven at its own counts: {unproven}" if unproven else ""
    return f"own counts: {difference:.1e}"


def certify(
    dense: Recognised,
    pruned: Planned,
    inputs: tuple[Any, ...] | None = None,
    *,
    original: nn.Module | None = None,
) -> Certificate:
    """Compare the pruned program with the original; VerificationError when they differ.

    Args:
        dense: the captured program, nothing inserted.
        pruned: the same with its selections.
        inputs: flat inputs, by default the example. With one image alone no mix-up of images can show.
        original: the module itself; by default the captured program takes its place.
    """
    start = time.perf_counter()
    flat = pruned.interface.example if inputs is None else inputs
    tolerance = sharper = tolerance_of(dense)
    exact: Run = (dense, pruned, flat)
    if tolerance >= HALF:
        exact, sharper = in_float32(*exact), TOLERANCE[torch.float32]
    itself = dense.module if original is None else _flat_call(original, dense)
    with torch.no_grad(), torch.random.fork_rng():  # randomness of the model's own repeats itself
        expected = seeded(itself, flat)
        identity = worst(seeded(_Keeping(pruned, permute=False).run, flat), expected)
        wanted = expected if exact[0] is dense else seeded(exact[0].module, exact[2])
        permutation = worst(seeded(_Keeping(exact[1], permute=True).run, exact[2]), wanted)
    batch = images_in(flat)
    comparisons = (
        ("keep=1.0", identity, tolerance),
        ("the permutation certificate", permutation, sharper),
    )
    for name, difference, allowed in comparisons:
        if difference > allowed:
            check_original(itself, dense, flat, tolerance)
            raise VerificationError(
                f"the rewritten model differs from the original under {name}: {difference:.1e}, "
                f"at most {allowed:.0e} is allowed",
                where=_first_difference(*exact, sharper, permute="permutation" in name),
                remedy=REPORT,
            )
    padding = _padding(*exact, batch)
    if padding is not None and padding > sharper:
        raise VerificationError(
            f"images that keep different numbers of tokens see each other's padding: {padding:.1e}, "
            f"at most {sharper:.0e} is allowed",
            remedy=REPORT,
        )
    own, unproven = _at_own_counts(exact, (pruned, flat), expected, identity, sharper)
    seconds = time.perf_counter() - start
    other = None if sharper == tolerance else sharper
    return Certificate(identity, permutation, tolerance, seconds, batch, other, padding, own, unproven)


def _at_own_counts(
    exact: Run, given: tuple[Planned, tuple[Any, ...]], expected: Any, identity: float, tolerance: float
) -> tuple[float | None, str | None]:
    """The difference at its own counts, or why it is not known; without sites those are all tokens."""
    pruned, flat = given
    if not pruned.plan.sites:
        return identity, None
    with torch.no_grad(), torch.random.fork_rng():
        if exact[1] is not pruned:
            runs.check_outputs(seeded(pruned.module, flat), expected)
            expected = None
        return own_counts.difference(*exact, tolerance, shapes=expected)


def _flat_call(original: nn.Module, program: Program) -> Callable[..., list[Any]]:
    """The user's module, called with flat inputs and giving flat outputs."""

    def call(*flat: Any) -> list[Any]:
        args, kwargs = compat.tree_unflatten(list(flat), program.interface.in_spec)
        with unchanged(original):
            return compat.tree_flatten(original(*args, **kwargs))[0]

    return call


class _Keeping(fx.Interpreter):
    """Runs a pruned graph with selections that keep every token, in order or permuted."""

    def __init__(self, program: Recognised, *, permute: bool) -> None:
        super().__init__(program.module, garbage_collect_values=True)
        self.prefix, self.suffix = program.anatomy.prefix, program.anatomy.suffix
        self.generator = torch.Generator().manual_seed(0) if permute else None

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Everything as it is, but selections."""
        if target in ops.MASKS:
            score = arguments.bind_call(target, args, kwargs)["score"]
            return torch.ones_like(score, dtype=torch.bool)
        if target not in ops.SELECTIONS:
            return super().call_function(target, args, kwargs)
        given = arguments.bind_call(target, args, kwargs)
        chosen_from: Tensor = given["score" if target in ops.FIXED else "kept"]
        return keep_all(chosen_from, self.prefix, self.suffix, self.generator)


def _padding(dense: Recognised, pruned: Planned, flat: tuple[Any, ...], batch: int) -> float | None:
    """The difference between a batch whose images keep different numbers of tokens, and each image alone.

    None where all images keep as many, or where an image alone cannot give the same: the batch is fixed, the
    code joins images, or random numbers are drawn. A budget shared by the batch is ignored: which tokens an
    image keeps depends on the others then, but what it computes from them must not.
    """
    ragged = any(node.target in ops.RAGGED for node in pruned.graph.nodes)
    if not ragged or pruned.interface.batch != batch or batch < 2 or runs.random_call(dense) is not None:
        return None
    if not runs.runs_on(dense, tuple(one(leaf, 0, batch) for leaf in flat)):
        return None
    with torch.no_grad(), torch.random.fork_rng():
        whole = partial(runs.unbroken, Scattering(pruned, range(batch), budgets=False).run)
        together = seeded(whole, flat)
        alone = [
            seeded(
                Scattering(pruned, [image], budgets=False).run,
                tuple(one(leaf, image, batch) for leaf in flat),
            )
            for image in range(batch)
        ]
    most = 0.0
    for place, whole in enumerate(together):
        parts = [outputs[place] for outputs in alone]
        if isinstance(whole, Tensor) and whole.dim() and whole.shape[0] == batch:
            most = max(most, relative_difference(torch.cat(parts), whole))
    return most


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
    dense: Recognised, pruned: Planned, flat: tuple[Any, ...], tolerance: float, *, permute: bool
) -> str | None:
    """The first value of the original graph that comes out wrong, whatever the order of its rows."""
    expected = _values(fx.Interpreter(dense.module, garbage_collect_values=False), flat)
    found = _values(_Keeping(pruned, permute=permute), flat)
    for node in pruned.graph.nodes:
        made, other = found.get(node.name), expected.get(node.name)
        if not (isinstance(made, Tensor) and isinstance(other, Tensor) and made.is_floating_point()):
            continue
        if (
            made.shape != other.shape
            or relative_difference(_unordered(made), _unordered(other)) > 10 * tolerance
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
