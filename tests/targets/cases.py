"""One small model under every kind of policy and in every mode, for what each target makes of it."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.export import ExportedProgram

from prunec.ir.program import Planned, Program, Recognised
from prunec.policy.policy import Policy
from prunec.targets.exported import exported
from tests import moding
from tests.families import randomise
from tests.passes.packing import packed
from tests.tiny import ViT, recognised

SIDE = 6
BATCHES = (1, 3, 8)
#: What a target may differ by from the graph itself, relative to the largest output.
TOLERANCE = 1e-4

#: name -> the preset and its mode. Of cropr more leaves than usual, as the model is small.
CASES = {
    "evit": ("evit", "static"),
    "cropr": ("cropr", "static"),  # its tokens come back in the last block
    "tome": ("tome", "static"),
    "cover": ("cover", "padded"),
    "dynamic static": ("dynamic", "static"),
    "dynamic padded": ("dynamic", "padded"),
    "dynamic packed": ("dynamic", "packed"),
}
#: Cases that were asked for.
MADE: dict[str, Program] = {}


def images(batch: int) -> Tensor:
    """Pictures of different strength, which keep different numbers of tokens."""
    pixels = torch.randn(batch, 3, 4 * SIDE, 4 * SIDE, generator=torch.Generator().manual_seed(batch))
    return pixels * torch.linspace(0.3, 2.0, batch).view(-1, 1, 1, 1)


@functools.cache
def dense() -> Recognised:
    """The model with all its tokens."""
    return recognised(randomise(ViT(depth=3, side=SIDE).eval(), seed=1), images(2))


def case(name: str) -> Program:
    """The model under a policy, thresholds where images differ by them."""
    if name not in MADE:
        MADE[name] = _made(name)
    return MADE[name]


def name_of(program: Program) -> str:
    """Which case a program is."""
    return next(name for name, made in MADE.items() if made is program)


def _made(name: str) -> Program:
    if name == "dense":
        return dense()
    preset, mode = CASES[name]
    policy = Policy.load(preset, keep=0.4 if preset == "cropr" else None)
    padded = moding.plain(dense(), policy, "padded" if policy.ragged else "static")
    if policy.ragged:
        moding.separate(padded, [images(8)])
    return packed(padded) if mode == "packed" else moding.lowered(padded, mode)


@functools.cache
def exported_case(name: str) -> ExportedProgram:
    """The same as torch.export has it."""
    return exported(case(name))


def batches(program: Program) -> tuple[int, ...]:
    """The batches that it takes."""
    single = isinstance(program, Planned) and program.plan.lowering.single
    return (1,) if single else BATCHES


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest number."""
    return float((found - expected).detach().abs().max() / expected.detach().abs().max())
