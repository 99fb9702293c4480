"""The regressions of calibration: scorers to what each token matters, graders to the model's own classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

IMAGES = 8  # at a time, for scorers that look at all patches together
STEPS, ROWS, RATE = 300, 1024, 3e-3  # of descent; tokens a step; peak learning rate
HELD_OUT = 4  # each fourth image says how well the fit predicts


def fit(gate: nn.Module, states: Tensor, target: Tensor) -> float:
    """Regress a number for each token [n, N] on its state; the rank correlation on held-out images."""
    held_out = torch.arange(len(states)) % HELD_OUT == 0
    x, y, rows = states[~held_out], target[~held_out], IMAGES
    if not getattr(gate, "context", False) and x.dim() == 3:  # then each patch is an example by itself
        x, y, rows = x.flatten(0, 1)[:, None], y.flatten()[:, None], ROWS

    def loss(chosen: Tensor) -> Tensor:
        return nn.functional.mse_loss(gate(x[chosen]), y[chosen])

    if any(parameter.requires_grad for parameter in gate.parameters()):
        _descend(gate, loss, len(x), rows)
    with torch.no_grad():
        return rank_correlation(gate(states[held_out]).flatten(), target[held_out].flatten())


def on_one_scale(importance: Tensor) -> Tensor:
    """The log of the importance on a scale from the median token of an image to the one that matters most.

    How sensitive an output is, and how far tokens lie apart, does not say how many of them are needed. Over
    all images its mean is 0 and its spread 1.
    """
    found = logs(importance)  # [n, N]
    median, most = found.median(dim=1, keepdim=True).values, found.amax(dim=1, keepdim=True)
    found = (found - median) / (most - median).clamp_min(1e-6)
    return (found - found.mean()) / found.std().clamp_min(1e-6)


def logs(importance: Tensor) -> Tensor:
    """The log of the importance, 0 on average over the tokens of an image."""
    found = importance.float().clamp_min(1e-12).log()
    return found - found.mean(dim=1, keepdim=True)


def fit_grader(gate: nn.Module, states: Tensor, grades: Tensor) -> float:
    """Distil the model's own class scores; on how many held-out patches both name the same class."""
    held_out = torch.arange(len(states)) % HELD_OUT == 0
    x, y = states[~held_out].flatten(0, 1), grades[~held_out].flatten(0, 1).log_softmax(dim=-1)

    def loss(rows: Tensor) -> Tensor:
        found = gate(x[rows][None])[0].log_softmax(dim=-1)
        return nn.functional.kl_div(found, y[rows], reduction="batchmean", log_target=True)

    _descend(gate, loss, len(x), ROWS)
    with torch.no_grad():
        same = gate(states[held_out]).argmax(dim=-1) == grades[held_out].argmax(dim=-1)
    return float(same.float().mean())


def _descend(gate: nn.Module, loss_of: Callable[[Tensor], Tensor], count: int, rows: int) -> None:
    """A few hundred steps on random examples out of `count`, `rows` at a time."""
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(gate.parameters(), lr=RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=STEPS)
    with torch.enable_grad():
        for _ in range(STEPS):
            loss = loss_of(torch.randint(0, count, (min(rows, count),), generator=generator))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()


def rank_correlation(one: Tensor, other: Tensor) -> float:
    """Spearman's: the correlation of the ranks."""
    ranks = torch.stack([values.argsort().argsort().double() for values in (one, other)])
    return float(torch.corrcoef(ranks)[0, 1])
