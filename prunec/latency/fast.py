"""The accuracy proxy from one pass of the dense model, where measuring each block and length takes too long.

    dense model, images --> score of every token at every block
                            '-- how much the output changes if its block leaves the token alone (first order)
    D(l, n) ~ what the tokens that would have gone at block l would have changed in blocks l and later

What is measured, at a few blocks and lengths, is how such guesses become losses: by a power and a factor.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from prunec import ops
from prunec.calibration.importance import Importance, span_of
from prunec.calibration.inputs import call_on
from prunec.ir import graph
from prunec.ir.arguments import chosen_from
from prunec.ir.program import Planned
from prunec.latency.losses import Losses, Trial
from prunec.latency.probe import lengths, opened, probe
from prunec.measure.figures import Progress
from prunec.passes.insert_sites import InsertSites
from prunec.passes.repair_tokens import RepairTokens
from prunec.policy.lowering import choose
from prunec.schedules.schedule import unprunable

BLOCKS, LENGTHS = 3, 2  # where real losses are measured, for a line through the logarithms
LEAST_POWER, MOST_POWER = 0.5, 4.0
TINY = 1e-9


def estimate(
    trial: Trial,
    counts: Sequence[int],
    blocks: Collection[int],
    name: str,
    *,
    progress: Progress = lambda step: None,
) -> Losses:
    """What `losses.measure` measures, estimated to first order and scaled to a few measurements."""
    start = time.perf_counter()
    progress("what each block does for each token")
    order, effects = _ranked(trial, sorted(blocks))
    fixed = unprunable(trial.policy, trial.anatomy)
    depth, chosen = trial.anatomy.depth, sorted(blocks)
    rows = {
        block: [_lost(trial, place, n - fixed, order, effects) for n in counts]
        for place, block in enumerate(chosen)
    }
    guessed, measured = [], []
    shorter = _some(counts[1:], LENGTHS)
    for block in _some(chosen, BLOCKS):
        progress(f"what is really lost from block {block} on")
        for n, real in zip(shorter, trial.shortened(block, shorter), strict=True):
            guessed.append(math.log(max(rows[block][counts.index(n)], TINY)))
            measured.append(math.log(max(real, TINY)))
    power, shift, apart = _line(guessed, measured)
    behind = [[0.0] * len(counts)] * (depth + 1)
    for block in reversed(range(depth)):
        behind[block] = behind[block + 1]
        if block in rows:
            values = [math.exp(shift + power * math.log(max(value, TINY))) for value in rows[block]]
            behind[block] = [0.0, *values[1:]]
    return Losses(
        counts=tuple(counts),
        behind=tuple(map(tuple, behind[:depth])),
        kind=trial.kind,
        images=trial.images,
        name=name,
        seconds=time.perf_counter() - start,
        spread=apart,
    )


def _line(guessed: list[float], measured: list[float]) -> tuple[float, float, float]:
    """Slope and height of the line through logarithms, and how far they lie from it; it rises in any case."""
    slope = statistics.linear_regression(guessed, measured).slope if len(set(guessed)) > 1 else 1.0
    slope = min(max(slope, LEAST_POWER), MOST_POWER)
    shift = statistics.mean(measured) - slope * statistics.mean(guessed)
    return slope, shift, statistics.pstdev(m - slope * g for g, m in zip(guessed, measured, strict=True))


def _ranked(trial: Trial, blocks: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
    """For each block: its patches by falling score, and the squared effect of each on the output: [n, N]."""
    program = _all_staying(trial, blocks)
    selections = [node for node in program.graph.nodes if node.target in ops.SELECTIONS]
    scores = [chosen_from(node).name for node in selections]
    spans = [span_of(trial.anatomy, site) for site in program.plan.sites]
    patches = lengths([trial.anatomy.grid] * len(blocks), trial.batches[0])
    found: list[tuple[list[Tensor], list[Tensor]]] = []
    for images in trial.batches:
        recorder = graph.Recorder(program.module, scores)
        with torch.no_grad():
            recorder.run(*call_on(trial.dense, images), *patches)
        front, back = trial.anatomy.prefix, trial.anatomy.tokens - trial.anatomy.suffix
        order = [recorder.values[name][:, front:back].argsort(dim=1, descending=True) for name in scores]
        seen = Importance(trial.dense, spans, trial.anatomy).run(images)
        found.append((order, [effect.square() for _, effect in seen]))
    orders, effects = zip(*found, strict=True)
    return [torch.cat(part) for part in zip(*orders, strict=True)], [
        torch.cat(part) for part in zip(*effects, strict=True)
    ]


def _all_staying(trial: Trial, blocks: Sequence[int]) -> Planned:
    """The policy's scores at all blocks, of a stream that nothing leaves."""
    data = opened(trial.policy, blocks).model_dump()
    if data["fate"] == "fuse":  # which would take one away
        data |= {"fate": "drop", "weights": None, "restore": None}
    chosen = type(trial.policy).load(data)
    program = probe(trial.dense, chosen, choose(chosen), (InsertSites(), RepairTokens()))
    return trial.with_gates(program, blocks)


def _lost(trial: Trial, place: int, keep: int, order: list[Tensor], effects: list[Tensor]) -> float:
    """The mean over images of what those that go would have changed from their block on."""
    total = 0.0
    for later in range(place, len(effects)):
        ranked = order[later if trial.policy.reactivate else place]
        total += float(effects[later].gather(1, ranked[:, keep:]).sum(dim=1).mean())
    return total


def _some(values: Sequence[int], count: int) -> list[int]:
    """A few of many, evenly, the last among them."""
    places = {round((len(values) - 1) * (place + 1) / count) for place in range(count)}
    return [values[place] for place in sorted(places)]
