"""Every preset at its defaults over every head: outputs further off than zeros are never passed over.

The blocks are strong, as on real features, where a token that skips them is nowhere near where it should be.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from prunec.calibration.calibrate import calibrate, needs_calibration
from prunec.errors import PolicyError
from prunec.ir.program import Planned, Recognised
from prunec.measure.evaluate import compare
from prunec.measure.verdict import judged
from prunec.passes import BACK, run_passes
from prunec.passes.controls import RandomScores
from prunec.policy.policy import Policy, presets
from prunec.policy.site_plan import make_plan
from tests.tiny import ViT, class_row, pixels, recognised

HEADS: dict[str, Callable[[Tensor], Tensor]] = {
    "class head": class_row,
    "mean head": lambda x: x[:, 1:].mean(dim=1),
    "dense head": lambda x: x[:, 1:].transpose(1, 2).unflatten(2, (6, 6)).permute(0, 2, 3, 1),
    "features": lambda x: x,
}
#: Those whose defaults leave tokens as they were, and so want training.
STALE = {"svit", "cropr"}


def strong(head: str) -> nn.Module:
    """A ViT whose blocks change a token far more than its embedding says, the last by much that all share."""
    torch.manual_seed(0)
    model = ViT(depth=4, side=6, read=HEADS[head])
    with torch.no_grad():
        for parameter in model.blocks.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
        last = [each for each in model.blocks[-1].modules() if isinstance(each, nn.Linear)][-1]
        last.bias.copy_(30 * torch.randn_like(last.bias))
    return model


def made(dense: Recognised, policy: Policy, images: Tensor) -> Planned:
    program = run_passes(BACK, dense.planned(make_plan(policy, dense.anatomy)))
    if not needs_calibration(program):
        return program
    return calibrate(dense, program, images, "images").put_into(program)


@pytest.mark.parametrize("head", HEADS)
def test_outputs_worse_than_zeros_are_called_useless_and_no_others(head: str) -> None:
    dense = recognised(strong(head), pixels(4, side=6))
    images, walked, useless = pixels(24, side=6), set(), set()
    with torch.no_grad():
        expected = dense.module(images[:16])[0]
    for name, policy in presets().items():
        try:
            program = made(dense, policy, images)
        except PolicyError:  # it does not fit this head
            continue
        models = {
            "dense": dense.module,
            "pruned": program.module,
            "random": run_passes((RandomScores(),), program).module,
        }
        verdict = judged(compare(models, images[:16], batch=16, seeds=1), chosen=name != "none")
        with torch.no_grad():
            found = program.module(images[:16])[0]
        far = float((found - expected).norm() / expected.norm())
        assert bool(verdict.useless) == (far > 1), (name, far)
        assert bool(verdict.warnings) or far <= 0.5, (name, far)
        walked.add(name)
        useless |= {name} if verdict.useless else set()
    assert {"none", "cover", "dynamic", "tome", "random", *STALE} <= walked
    assert useless <= STALE
    if head in ("dense head", "features"):
        assert useless
