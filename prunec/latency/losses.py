"""The accuracy proxy: how far outputs move when the stream is shortened at a block. No labels are needed.

    D(l, n)   mean over images of what the output loses when blocks l and later run on n tokens
    c(l, n)   D(l, n) - D(l + 1, n): what block l alone loses on n tokens; never negative, for where
              fewer blocks were seen to lose more, so do all of them

A schedule loses the sum of c over its blocks. For one site that is D; for several it is an assumption (losses
add up), which the planner checks on the schedules that it builds. The loss is the divergence
KL(dense || pruned) of class scores, or one minus the cosine of outputs that are none: a proxy of accuracy,
never accuracy itself.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from prunec import ops
from prunec.calibration.calibrate import calibrate
from prunec.calibration.inputs import call_on
from prunec.ir import graph
from prunec.ir.program import Planned, Program, Recognised
from prunec.latency.pieces import cut
from prunec.latency.probe import lengths, opened, probe
from prunec.measure import figures
from prunec.measure.evaluate import measures, output, seeded
from prunec.measure.figures import Progress
from prunec.passes.insert_sites import InsertSites
from prunec.passes.repair_tokens import RepairTokens
from prunec.policy.lowering import Lowering, choose
from prunec.policy.policy import Policy
from prunec.schedules.schedule import shortest, unprunable
from prunec.targets import device_of

Kind = Literal["divergence", "distance"]
BATCH = 16
MOST_MEASURED = 6  # counts of each block; those between are interpolated


@dataclass(frozen=True)
class Losses:
    """What shortening costs, measured at some lengths and interpolated at the others."""

    counts: tuple[int, ...]  # stream lengths, descending; the first is the dense one
    behind: tuple[tuple[float, ...], ...]  # D: [blocks][counts]
    kind: Kind
    images: int
    name: str  # which images
    seconds: float
    spread: float | None = None  # of an estimate: how far apart, in logarithms, its scales lie
    #: [blocks][counts] the longest stream of a batch where images differ and keep so many on average
    longest: tuple[tuple[float, ...], ...] = ()

    def longest_of(self, block: int, length: int, lowering: Lowering) -> int:
        """How long a stream of that mean length is in memory."""
        if lowering.mode != "padded" or not self.longest:
            return length
        return round(self.longest[block][self.counts.index(length)])

    def rows(self) -> tuple[tuple[float, ...], ...]:
        """What each block alone loses: c."""
        return _alone(self.behind)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


def measure(
    trial: Trial,
    counts: Sequence[int],
    blocks: Collection[int],
    name: str,
    *,
    progress: Progress = lambda step: None,
) -> Losses:
    """Shorten the stream at each block to each length, and see what the outputs lose.

    Args:
        trial: the model, the policy and the images.
        counts: stream lengths, descending; the first is the dense one.
        blocks: which blocks may have a site.
        name: which images these are.
        progress: called with each step's name.
    """
    start = time.perf_counter()
    depth, shorter = trial.anatomy.depth, _some(counts[1:])
    behind, longest = [[0.0] * len(counts)] * depth, [list(map(float, counts))] * depth
    for block in reversed(range(depth)):
        if block not in blocks:  # a stream that is short here was shortened earlier
            following = min(block + 1, depth - 1)
            behind[block], longest[block] = behind[following], longest[following]
            continue
        progress(f"what is lost by fewer tokens from block {block} on")
        values = trial.shortened(block, shorter)
        behind[block] = _filled(counts, dict(zip(shorter, values, strict=True)))
        at = sorted({counts[0]: float(counts[0]), **trial.longest}.items())
        means, longest_then = zip(*at, strict=True)
        longest[block] = [float(value) for value in np.interp(counts, means, longest_then)]
    return Losses(
        counts=tuple(counts),
        behind=tuple(map(tuple, behind)),
        kind=trial.kind,
        images=trial.images,
        name=name,
        seconds=time.perf_counter() - start,
        longest=tuple(map(tuple, longest)) if trial.policy.ragged else (),
    )


class Trial:
    """A policy tried out at blocks and lengths: what the outputs of some images lose."""

    def __init__(self, dense: Recognised, policy: Policy, images: Tensor, batch: int = BATCH) -> None:
        self.dense, self.anatomy, self.policy = dense, dense.anatomy, policy
        size = min(batch, len(images)) if dense.interface.batch else figures.fixed_batch(dense)
        whole = images[: len(images) // size * size]
        self.batches = whole.to(device_of(dense)).split(size)
        self.images = len(whole)
        self.expected = [output(self._run(dense), part) for part in self.batches]
        self.kind: Kind = "divergence" if self.expected[0].dim() == 2 else "distance"
        self.gates = _gates(dense, policy, images) if policy.scorer.learned else {}
        self.longest: dict[int, float] = {}  # of the last trial: mean length -> longest stream of a batch

    def of(self, policy: Policy, images: Tensor, most: int | None = None) -> Trial:
        """The same trial of another policy, on so many of the images at most.

        Args:
            policy: to be tried.
            images: for its learned parts.
            most: how many images are looked at, in whole batches and one at least; None: all.
        """
        other = copy.copy(self)
        other.policy, other.longest = policy, {}
        if most is not None:
            number = max(1, most // len(self.batches[0]))
            other.batches, other.expected = self.batches[:number], self.expected[:number]
            other.images = sum(map(len, other.batches))
        other.gates = _gates(self.dense, policy, images) if policy.scorer.learned else {}
        return other

    def losses_of(self, programs: Sequence[Program]) -> list[float]:
        """The mean loss of whole programs."""
        pairs = list(zip(self.batches, self.expected, strict=True))
        return [
            sum(self._lost(output(self._run(program), images), expected) for images, expected in pairs)
            / self.images
            for program in programs
        ]

    def losses(self, blocks: Sequence[int], cases: Sequence[Sequence[int]]) -> list[float]:
        """The mean loss with sites at these blocks, in each case: stream lengths, one for each site."""
        program = self._probe(blocks)
        sums, widths = [0.0] * len(cases), [0.0] * len(cases)
        for images, expected in zip(self.batches, self.expected, strict=True):
            for place, (found, width) in enumerate(self._outputs(program, images, cases)):
                sums[place] += self._lost(found, expected)
                widths[place] += width / len(self.batches)
        self.longest.update({case[-1]: width for case, width in zip(cases, widths, strict=True)})
        return [value / self.images for value in sums]

    def shortened(self, block: int, counts: Sequence[int]) -> list[float]:
        """The mean loss when the stream has each length from a block on."""
        depth = self.anatomy.depth
        if self.policy.reactivate:  # each later block chooses among all tokens again
            blocks = range(block, depth)
            return self.losses(blocks, [(n,) * len(blocks) for n in counts])
        return self._led_to(block, [], counts)

    def behind(
        self, block: int, leaves: int, counts: Sequence[int], later: range
    ) -> tuple[tuple[float, ...], ...]:
        """What each block loses behind a site: rows of the blocks after it, at each count up to `leaves`."""
        shorter = _some(counts[1:])
        ends = [[0.0] * len(counts)] * (self.anatomy.depth - block - 1)
        if shorter:
            alone = self.losses([block], [(leaves,)])[0]
            for other in later:
                values = self._led_to(other, [(block, leaves)], shorter)
                extra = {n: max(0.0, value - alone) for n, value in zip(shorter, values, strict=True)}
                ends[other - block - 1] = _filled(counts, extra)
        return _alone(ends)

    def _led_to(self, block: int, before: list[tuple[int, int]], counts: Sequence[int]) -> list[float]:
        """The mean loss where the stream has each length from a block on, behind what sites are given before.

        A site that can take away only so many has others in the blocks before it; where these are too few,
        the stream is as short as they can make it.
        """
        first, entering = before[-1] if before else (-1, self.anatomy.tokens)
        cases: dict[int, list[int]] = {n: self._steps(entering, n)[: block - first] for n in counts}
        found: dict[int, float] = {}
        for steps in sorted({len(case) for case in cases.values()}):
            alike = {n: case for n, case in cases.items() if len(case) == steps}
            blocks = [*(at for at, _ in before), *range(block - steps + 1, block + 1)]
            lengths_before = [leaves for _, leaves in before]
            values = self.losses(blocks, [(*lengths_before, *case) for case in alike.values()])
            found.update(zip(alike, values, strict=True))
        return [found[n] for n in counts]

    def _steps(self, entering: int, length: int) -> list[int]:
        """Lengths of the sites that lead to one: several where a site can take away only so many."""
        steps = []
        while (least := shortest(self.policy, self.anatomy, entering)) > length:
            steps.append(least)
            entering = least
        return [*steps, length]

    def _probe(self, blocks: Sequence[int]) -> Planned:
        chosen = opened(self.policy, blocks, of_batch=True)
        program = probe(self.dense, chosen, choose(chosen), (InsertSites(), RepairTokens()))
        return self.with_gates(program, blocks)

    def with_gates(self, program: Planned, blocks: Sequence[int]) -> Planned:
        """The program with the fitted scorers of these blocks in the place of its own."""
        return program.with_values(
            {
                f"prunec.site_{number}.gate.{name}": value
                for number, block in enumerate(blocks)
                for name, value in self.gates.get(block, {}).items()
            }
        )

    def _outputs(
        self, program: Program, images: Tensor, cases: Sequence[Sequence[int]]
    ) -> Iterator[tuple[Tensor, int]]:
        """The output in each case, and how long the stream is; what no count changes is computed once."""
        sites = [node.name for node in program.graph.nodes if node.name.startswith("rows_")]
        outputs = [node.name for node in graph.output_node(program.graph).all_input_nodes]
        selections = [node.name for node in program.graph.nodes if node.target in ops.SELECTIONS]
        tried = selections[0 if self.policy.reactivate else -1]  # the site at the block in question
        piece = cut(program, sites, [*outputs, tried])
        recorder = graph.Recorder(program.module, piece.inputs)
        with torch.no_grad(), seeded(0, images.device):
            recorder.run(*call_on(self.dense, images), *self._rows(cases[-1], images))
        for case in cases:
            values = {**recorder.values, **dict(zip(sites, self._rows(case, images), strict=True))}
            given = [values[name] for name in piece.inputs]
            with torch.no_grad(), seeded(0, images.device):
                *found, rows = piece.module(*given)
            yield output(lambda _, found=found: found, images), int(rows.shape[1])

    def _rows(self, case: Sequence[int], images: Tensor) -> tuple[Tensor, ...]:
        fixed = unprunable(self.policy, self.anatomy)
        return lengths([length - fixed for length in case], images)

    def _run(self, program: Program) -> Callable[[Tensor], Any]:
        return lambda images: program.module(*call_on(self.dense, images))

    def _lost(self, found: Tensor, expected: Tensor) -> float:
        values = measures(found, expected)
        return float(values.get("divergence", 1 - values["similarity"]).sum())


def _gates(dense: Recognised, policy: Policy, images: Tensor) -> dict[int, dict[str, Tensor]]:
    """The weights of the policy's scorer at every block, by name, fitted to the dense model."""
    chosen = opened(policy, range(1, dense.anatomy.depth))
    program = probe(dense, chosen, choose(chosen), (InsertSites(), RepairTokens()))
    values = calibrate(dense, program, images, "images").values
    return {
        site.block: _starting_with(f"prunec.site_{number}.gate.", values)
        for number, site in enumerate(program.plan.sites)
    }


def _starting_with(prefix: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names start so, by the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def _some(counts: Sequence[int]) -> tuple[int, ...]:
    """A few of many lengths, the first and the last among them, by rising distance."""
    if len(counts) <= MOST_MEASURED:
        return tuple(counts)
    places = [round(place * (len(counts) - 1) / (MOST_MEASURED - 1)) for place in range(MOST_MEASURED)]
    return tuple(counts[place] for place in places)


def _alone(behind: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
    """What each block loses of what it and all later ones lose together."""
    rows, later = [], np.zeros(len(behind[0]) if behind else 0)
    for row in reversed(behind):
        here = np.maximum(row, later)
        rows.append(tuple(float(value) for value in here - later))
        later = here
    return tuple(reversed(rows))


def _filled(counts: Sequence[int], found: Mapping[int, float]) -> list[float]:
    """The loss at every length: never less with fewer tokens; between those measured it grows by a factor."""
    at = sorted(found, reverse=True)
    rising = np.array(list(itertools.accumulate((found[n] for n in at), max)))
    tiny = 1e-3 * min((value for value in rising if value > 0), default=1.0)
    logs = np.log([tiny, *np.maximum(rising, tiny)])
    values = np.exp(np.interp(counts, [*at[::-1], counts[0]], logs[::-1]))
    return [0.0 if value <= tiny * (1 + 1e-9) else float(value) for value in values]
