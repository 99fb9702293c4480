"""What is judged, on the same pictures: a preset, its random control, the model on a smaller picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from backbone import Tokens, backbone, decoder
from convert import Weights
from measures import Figures, Probe, Spread, features, of_scores, of_tokens, over_seeds
from pictures import Cells
from torch import Tensor, nn

from prunec.measure.evaluate import output

BATCH = 10
SEEDS = 5

Run = Callable[[Tensor, int], Tensor]  # pictures and a seed to tokens


@dataclass(frozen=True)
class Exam:
    """Pictures in as many groups as there are seeds, and what the dense model makes of them."""

    crops: Sequence[Tensor]
    tokens: Sequence[Tensor]
    heat: Sequence[Tensor]
    cells: Sequence[Cells]
    scores: Sequence[Tensor]  # of the probe, on the dense model's features
    probe: Probe
    decoder: nn.Module

    def figures(self, photographs: Run, cells: Run) -> dict[str, Spread]:
        """What a contender gets, seed by seed; it may be calibrated for each kind of picture."""
        on_cells = over_seeds([self._of_cells(cells, seed) for seed in range(SEEDS)])
        return {**self.on_photographs(photographs), **on_cells}

    def on_photographs(self, run: Run) -> dict[str, Spread]:
        """Of these alone: how near its tokens and heatmaps are."""
        return over_seeds([self._of_photographs(run, seed) for seed in range(SEEDS)])

    def dense(self) -> dict[str, Spread]:
        """What the probe gets from the dense model."""
        pairs = zip(self.scores, self.cells, strict=True)
        return over_seeds([of_scores(scores, scores, cells.defective) for scores, cells in pairs])

    def _of_photographs(self, run: Run, seed: int) -> Figures:
        found = torch.cat(list(_batches(run, self.crops[seed], seed)))
        return of_tokens(found, self.tokens[seed], heatmaps(self.decoder, found), self.heat[seed])

    def _of_cells(self, run: Run, seed: int) -> Figures:
        cells = self.cells[seed]
        scores = self.probe.scores(of_cells(run, cells.images, seed))
        return of_scores(scores, self.scores[seed], cells.defective)


def exam(weights: Weights, crops: Sequence[Tensor], train: Cells, test: Cells) -> Exam:
    """The dense model's answers, and a probe fitted to its features."""
    run, heads = eager(Tokens(backbone(weights.timm))), decoder(weights.decoder)
    tokens = [torch.cat(list(_batches(run, group, 0))) for group in crops]
    probe = Probe.fitted(of_cells(run, train.images, 0), train.defective)
    groups = grouped(test)
    scores = [probe.scores(of_cells(run, group.images, 0)) for group in groups]
    return Exam(crops, tokens, [heatmaps(heads, each) for each in tokens], groups, scores, probe, heads)


def grouped(test: Cells) -> list[Cells]:
    """As many groups as seeds, each with its share of the defective ones."""
    order = test.defective.int().argsort(stable=True)
    parts = [order[seed::SEEDS] for seed in range(SEEDS)]
    return [Cells(test.images[part], test.defective[part]) for part in parts]


def eager(model: Callable[..., object]) -> Run:
    """A model or a program's module, run operator by operator; random choices follow the seed."""
    return lambda images, seed: output(model, images, seed)


def of_cells(run: Run, images: Tensor, seed: int) -> Tensor:
    """Features for the probe."""
    return torch.cat([features(tokens) for tokens in _batches(run, images, seed)])


def heatmaps(heads: nn.Module, tokens: Tensor) -> Tensor:
    """What the decoder makes of tokens."""
    with torch.no_grad():
        return torch.cat([heads(part) for part in tokens.split(BATCH)])


def _batches(run: Run, images: Tensor, seed: int) -> Iterator[Tensor]:
    for number, batch in enumerate(images.split(BATCH)):
        yield run(batch, 1000 * seed + number)
