"""How much each token's block matters for the output, at the sites of a plan.

    dense model, images --> state of each site, and how much each token's block matters for the output

To first order, by how much the output changes if the block reads the mean token in this token's place, that
is, the gradient through the block's branches times the token's distance from the mean. Where another token is
to stand for it, which one is not known yet, and the length of the gradient says what each unit of distance
costs. The gradient is of random projections of the output, so that no label and no loss is needed. What else
the dense model reveals (attention, change, plain gradients) predicts less; docs/design/005 has the
measurements.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from prunec import compat
from prunec.calibration.inputs import batch_of, call_on
from prunec.ir import graph
from prunec.ir.program import Recognised
from prunec.policy.site_plan import Site
from prunec.scorers.scoring import state_of
from prunec.structure import Anatomy

PROJECTIONS = 4  # of the output, for one image


def span_of(anatomy: Anatomy, site: Site, *, one_block: bool = True) -> tuple[str, str]:
    """The states between which a token is left out: at the site, and after its block, or after the last."""
    last = anatomy.blocks[site.block if one_block else -1]
    return state_of(anatomy, site), last.branches[-1].add


class Importance:
    """Runs the dense model and keeps the states of the sites, with how much each token's change matters."""

    def __init__(
        self, dense: Recognised, spans: list[tuple[str, str]], anatomy: Anatomy, *, of_distance: bool = False
    ) -> None:
        self.dense, self.spans, self.anatomy, self.of_distance = dense, spans, anatomy, of_distance
        self.wanted = {name for span in spans for name in span}

    def run(self, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        """For each span: states [n, N, C] and importance [n, N] of the patches."""
        parts: list[list[tuple[Tensor, Tensor]]] = [[] for _ in self.spans]
        for batch in images.split(batch_of(self.dense)):
            for place, found in enumerate(self._seen(batch)):
                parts[place].append(found)
        return [(torch.cat([s for s, _ in part]), torch.cat([i for _, i in part])) for part in parts]

    def _seen(self, images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        recorder = graph.Recorder(self.dense.module, self.wanted)
        with torch.enable_grad(), torch.random.fork_rng():
            outputs = recorder.run(*call_on(self.dense, images.detach().requires_grad_()))
            starts, ends = ([recorder.values[span[side]] for span in self.spans] for side in (0, 1))
            states = [self._rows(start).detach() for start in starts]  # [B, N, C]
            squares = [torch.zeros_like(state[..., 0]) for state in states]
            for seed in range(PROJECTIONS):
                compat.seed(seed)
                gradients = torch.autograd.grad(_projection(outputs), [*starts, *ends], retain_graph=True)
                at_starts, at_ends = gradients[: len(starts)], gradients[len(starts) :]
                for place, state in enumerate(states):
                    through_block = self._rows(at_starts[place] - at_ends[place])
                    if self.of_distance:
                        squares[place] += through_block.square().sum(dim=-1)
                        continue
                    effect = through_block * (state - state.mean(dim=1, keepdim=True))
                    squares[place] += effect.sum(dim=-1).square()
        for state, square in zip(states, squares, strict=True):
            yield state, (square / PROJECTIONS).sqrt()

    def _rows(self, state: Tensor) -> Tensor:
        """The patches of a state: [B, N, C]."""
        state = state.movedim(self.anatomy.token_dim, 1)
        return state[:, self.anatomy.prefix : state.shape[1] - self.anatomy.suffix]


def _projection(outputs: Any) -> Tensor:
    """One random sum over everything that the model says, each output on its own scale."""
    total = torch.zeros(())
    for output in compat.tree_leaves(outputs):
        if isinstance(output, Tensor) and output.is_floating_point() and output.requires_grad:
            signs = torch.randint(0, 2, output.shape).to(output) * 2 - 1
            scale = output.detach().float().std().clamp_min(1e-6)
            total = total.to(output.device) + (output * signs).float().sum() / scale
    return total
