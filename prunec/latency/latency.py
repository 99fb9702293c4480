"""Measure the latency table: the model's own blocks at every stream length, the rest around them, and a site.

    pixels --> [front: embedding, block 0] --> [chain: blocks 1 .. L-2] --> [tail: last block, head]
                                                  [pair: two blocks with a site between them, n -> k]

The chain is timed whole, for one block in a loop would find its weights in the cache. Pieces are compiled
once each, with their lengths as symbols, and timed in interleaved rounds beside the whole dense model. What
they take together is scaled to what the whole takes that has no site: code for fixed lengths may be a little
faster than code for symbols.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunec import compat
from prunec.errors import UsageError
from prunec.ir import graph
from prunec.ir.interface import images_in
from prunec.ir.program import Planned, Program, Recognised
from prunec.latency.pieces import Piece, cut, signature
from prunec.latency.probe import lengths, opened, probe
from prunec.latency.table import LatencyTable
from prunec.measure import cost, figures
from prunec.measure.figures import Progress
from prunec.passes import BACK, lowering_passes, run_passes
from prunec.policy.lowering import Lowering
from prunec.policy.policy import Policy
from prunec.policy.rules import Step
from prunec.policy.site_plan import make_plan
from prunec.schedules.schedule import scheduled, shortest, unprunable
from prunec.structure import Anatomy
from prunec.targets import Target, device_of

ROUNDS = 15
SECONDS = 60.0  # of timing, at most, once each has been timed five times
MOST_COUNTS = 16
LEAST_DEPTH = 4
_TITLE = ("name", "summary", "paper", "training", "then", "version")  # of a policy: no time depends on it
#: Where the site's cost is fitted: shares of all patches that enter it, and of those that go on.
ENTERING, STAYING = (1.0, 0.75, 0.5), (0.75, 0.5, 0.25)


@dataclass(frozen=True)
class Workload:
    """What is timed: a model, the policy whose sites are put into it, the mode, and inputs of one batch."""

    dense: Recognised
    policy: Policy
    lowering: Lowering
    flat: tuple[Any, ...]


def grid(anatomy: Anatomy, batch: int) -> tuple[int, ...]:
    """Stream lengths to choose from, descending: the dense one, and friendly sizes below it."""
    step = 16 if batch >= 8 else 8
    while anatomy.tokens / step > MOST_COUNTS:
        step *= 2
    while step > 2 and anatomy.tokens / step < MOST_COUNTS / 2:
        step //= 2
    least = anatomy.prefix + anatomy.suffix + min(8, anatomy.grid // 2)
    multiples = range((anatomy.tokens - 1) // step * step, least - 1, -step)
    return (anatomy.tokens, *multiples)


def place_of(device: torch.device) -> dict[str, str | int]:
    """What a time depends on besides the work: device, threads, versions."""
    facts = cost.device_facts(device)
    del facts["python"]  # no compiled piece runs it
    if device.type == "cuda":
        facts |= compat.cuda_facts(device)
    return facts


def work_of(workload: Workload, target: str) -> dict[str, str | int]:
    """A workload as facts: the model's structure, the kind of site, batch, precision, mode, target."""
    dense, policy, flat = workload.dense, workload.policy, workload.flat
    state = graph.by_name(dense.graph)[dense.anatomy.states[0]].meta["val"]
    shapes = [list(leaf.shape) for leaf in flat if isinstance(leaf, Tensor)]
    step = opened(policy, ()).model_dump(mode="json", exclude=set(_TITLE))
    digest = hashlib.sha256(json.dumps(step, sort_keys=True).encode()).hexdigest()[:8]
    return {
        "model": signature(dense.module),
        "tokens": dense.anatomy.tokens,
        "inputs": str(shapes),
        "batch": images_in(flat),
        "dtype": str(state.dtype).removeprefix("torch."),
        "target": target,
        "mode": str(workload.lowering),
        "sites": f"{policy.sites.where} by {policy.scorer.kind}, {policy.fate}, {digest}",
    }


def measure(
    workload: Workload,
    target: Target,
    place: Mapping[str, str | int],
    work: Mapping[str, str | int],
    *,
    counts: Sequence[int] | None = None,
    rounds: int = ROUNDS,
    progress: Progress = lambda step: None,
) -> LatencyTable:
    """Compile the pieces of a model, and time each at every stream length.

    Args:
        workload: the model, policy, mode and inputs.
        target: what compiles the pieces, and the dense model beside them.
        place: where this is, for the table.
        work: what is measured, for the table.
        counts: stream lengths, descending, the dense one first; a friendly grid when left out.
        rounds: interleaved rounds of the measurement.
        progress: called with each step's name.
    """
    start = time.perf_counter()
    dense, flat = workload.dense, workload.flat
    counts = tuple(counts or grid(dense.anatomy, images_in(flat)))
    progress("cut the model into pieces")
    pieces = Pieces(workload)
    calls = {
        "dense": figures.bound(target.lower(dense), flat),
        "whole": figures.bound(target.lower(_without_sites(workload)), flat),
        **pieces.calls(counts, target),
    }
    progress("compile the pieces")
    with torch.no_grad():
        for call in calls.values():
            call()
    progress(f"time {len(calls)} pieces")
    timings = cost.measure(calls, device=device_of(dense), rounds=rounds, warmup=1, seconds=SECONDS)
    unit = timings["dense"].median
    taken = {name: cost.ratio(timings, name, "dense") * unit for name in timings}  # so that drift cancels
    table = table_of(
        pieces,
        counts,
        taken,
        place=place,
        work=work,
        spread=statistics.median(timing.spread for timing in timings.values()),
        seconds=time.perf_counter() - start,
        samples={name: timing.samples for name, timing in timings.items()},
    )
    in_pieces = table.predict((counts[0],) * len(table.blocks), ())
    return table.scaled(taken["whole"] / in_pieces)


def table_of(
    pieces: Pieces, counts: tuple[int, ...], taken: Mapping[str, float], **facts: Any
) -> LatencyTable:
    """The table of what each piece takes, by name (`Pieces.calls`); `facts` are its other fields."""
    blocks = pieces.blocks(counts, taken)
    pairs = {(n, k): taken[f"pair@{n}>{k}"] for n, k in pieces.pairs}
    return LatencyTable(
        counts=counts,
        dense=taken["dense"],
        fixed=taken["front"],
        blocks=blocks,
        sites=_site_cost(counts, blocks[pieces.block], pairs),
        date=date.today().isoformat(),
        **facts,
    )


class Pieces:
    """What is cut out of two programs: both have a site before block 0, one has the policy's in the middle.

    The first site only sets the stream's length: its tokens are random, and no piece holds it.
    """

    def __init__(self, workload: Workload) -> None:
        dense, policy, lowering = workload.dense, workload.policy, workload.lowering
        self.dense, self.flat, anatomy = dense, workload.flat, dense.anatomy
        if anatomy.depth < LEAST_DEPTH:
            raise UsageError(
                f"the model has {anatomy.depth} blocks, and a latency table wants {LEAST_DEPTH} or more",
                remedy="choose the counts yourself: --keep, --blocks",
            )
        self.extra = unprunable(policy, anatomy)
        self.block = anatomy.depth // 2  # that has the policy's site
        passes = (*BACK, *lowering_passes(lowering))
        self.short = probe(dense, _shortened(policy), lowering, passes)
        self.sited = probe(dense, _shortened(policy, self.block), lowering, passes)
        states = [block.branches[0].state for block in anatomy.blocks]
        self.pairs = tuple(dict.fromkeys(_pairs(policy, anatomy)))
        self.front = cut(dense, [anatomy.pixels], [states[1]])
        self.tail = cut(self.short, [states[-1]], _outputs(self.short))
        self.pair = cut(self.sited, [states[self.block - 1]], [states[self.block + 1]])
        #: signature -> the first of the longest runs of such blocks, and the block behind it
        self.kinds = [cut(dense, [a], [b]).signature for a, b in itertools.pairwise(states[1:])]
        self.runs = {kind: _longest(self.kinds, kind) for kind in dict.fromkeys(self.kinds)}
        self.chains = {kind: self._chain(self.short, run) for kind, run in self.runs.items()}
        self.states = states

    def _chain(self, program: Recognised, run: range) -> Piece:
        blocks = program.anatomy.blocks
        return cut(program, [blocks[run.start].branches[0].state], [blocks[run.stop].branches[0].state])

    def calls(self, counts: Sequence[int], target: Target) -> dict[str, Callable[[], object]]:
        """What is timed, by name: `PIECE@LENGTH`."""
        calls = self._at_counts(self.dense, {"front": self.front}, {"": ()}, target)
        short = {"tail": self.tail, **{f"chain {kind}": piece for kind, piece in self.chains.items()}}
        calls |= self._at_counts(self.short, short, {f"@{n}": (n,) for n in counts}, target)
        calls |= self.pair_calls(self.pairs, target)
        for kind, run in self.runs.items():
            whole = self._chain(self.dense, run)
            if whole.signature != self.chains[kind].signature:  # before the first site nothing hides keys
                calls |= self._at_counts(self.dense, {f"chain {kind}": whole}, {f"@{counts[0]}": ()}, target)
        return calls

    def pair_calls(self, pairs: Sequence[tuple[int, int]], target: Target) -> dict[str, Callable[[], object]]:
        """Two blocks with a site between them, for stream lengths before and behind it: `pair@N>K`."""
        cases = {f"@{n}>{k}": (n, k) for n, k in pairs}
        return self._at_counts(self.sited, {"pair": self.pair}, cases, target)

    def _at_counts(
        self,
        program: Program,
        pieces: Mapping[str, Piece],
        cases: Mapping[str, tuple[int, ...]],
        target: Target,
    ) -> dict[str, Callable[[], object]]:
        """Each piece of a program in each case: with streams of these lengths behind its sites."""
        wanted = {name for piece in pieces.values() for name in piece.inputs}
        seen = {}
        for case, streams in cases.items():
            recorder = graph.Recorder(program.module, wanted)
            patches = lengths([length - self.extra for length in streams], self.flat[0])
            with torch.no_grad():
                recorder.run(*self.flat, *patches)
            seen[case] = recorder.values
        calls: dict[str, Callable[[], object]] = {}
        for name, piece in pieces.items():
            inputs = {case: [values[source] for source in piece.inputs] for case, values in seen.items()}
            _mark_lengths(list(inputs.values()))
            lowered = target.lower(piece.program(program, next(iter(inputs.values()))))
            calls |= {f"{name}{case}": figures.bound(lowered, given) for case, given in inputs.items()}
        return calls

    def blocks(self, counts: Sequence[int], seconds: Mapping[str, float]) -> tuple[tuple[float, ...], ...]:
        """Seconds of each block at each length; block 0 is in the front, the head in the last block."""
        first = tuple(0.0 for _ in counts)
        middle = [
            tuple(seconds[f"chain {kind}@{n}"] / len(self.runs[kind]) for n in counts) for kind in self.kinds
        ]
        return (first, *middle, tuple(seconds[f"tail@{n}"] for n in counts))


def _without_sites(workload: Workload) -> Planned:
    """The model without sites; its dead rows are not computed, as in every schedule."""
    dense, lowering = workload.dense, workload.lowering
    plan = make_plan(scheduled(workload.policy, dense.anatomy, {}), dense.anatomy, lowering)
    return run_passes((*BACK, *lowering_passes(lowering)), dense.planned(plan))


def _site_cost(
    counts: Sequence[int], row: Sequence[float], pairs: Mapping[tuple[int, int], float]
) -> tuple[float, ...]:
    """(a, b, c, d) of a + b n + c k + d (t(n) - t(k)), what a pair takes beyond its two blocks."""
    block = {n: float(np.interp(n, counts[::-1], row[::-1])) for pair in pairs for n in pair}
    features = [[1.0, n, k, block[n] - block[k]] for n, k in pairs]
    beyond = [seconds - block[n] - block[k] for (n, k), seconds in pairs.items()]
    return tuple(float(value) for value in np.linalg.lstsq(np.array(features), np.array(beyond))[0])


def _shortened(policy: Policy, block: int | None = None) -> Policy:
    """A policy with a site before block 0, of random tokens, and perhaps its own site at a block."""
    own = opened(policy, [0] if block is None else [block]).model_dump(exclude={"training", "then"})
    step = {name: value for name, value in own.items() if name in Step.model_fields}
    uniform = "uniform" if policy.fate == "fuse" else None
    sites, scorer = {"where": "before_block", "blocks": (0,)}, {"kind": "random"}
    then = [] if block is None else [step]
    return Policy.load({**own, "sites": sites, "scorer": scorer, "weights": uniform, "then": then})


def _pairs(policy: Policy, anatomy: Anatomy) -> Iterator[tuple[int, int]]:
    """Stream lengths before and behind a site that its cost is fitted at."""
    fixed = unprunable(policy, anatomy)
    for share, part in itertools.product(ENTERING, STAYING):
        entering = fixed + max(4, round(share * (anatomy.tokens - fixed)))
        leaving = fixed + max(1, round(part * (entering - fixed)))
        yield entering, max(leaving, shortest(policy, anatomy, entering))


def _longest(kinds: Sequence[str], kind: str) -> range:
    """The longest run of blocks of a kind; `kinds` begins with block 1."""
    runs, start = [], 0
    for same, group in itertools.groupby(kinds):
        stop = start + len(list(group))
        runs += [range(start + 1, stop + 1)] if same == kind else []
        start = stop
    return max(runs, key=len)


def _outputs(program: Program) -> list[str]:
    return [node.name for node in graph.output_node(program.graph).all_input_nodes]


def _mark_lengths(cases: list[list[Any]]) -> None:
    """Tell the compiler which dimensions differ between cases."""
    for tensors in zip(*cases, strict=True):
        for axis in range(tensors[0].dim()):
            if len({tensor.shape[axis] for tensor in tensors}) > 1:
                for tensor in tensors:
                    compat.mark_dynamic(tensor, axis)
