from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prunec.errors import VerificationError
from prunec.ir import graph
from prunec.ir.program import Planned
from prunec.verify.agreement import Agreement, agree
from tests import moding, tiny
from tests.tiny import ViT, pixels, recognised

RAGGED = {"selector": "threshold", "fate": "preserve", "reactivate": True}
MODES = ("packed", "masked")


@pytest.fixture(scope="module")
def modes() -> dict[str, Planned]:
    """One program whose images differ, in every mode for batches."""
    torch.manual_seed(0)
    dense = recognised(ViT(depth=3), pixels(4))
    return moding.in_all_modes(moding.unfinished(dense, tiny.policy(**RAGGED)))


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_agrees_with_the_padded_program(modes: dict[str, Planned], mode: str) -> None:
    found = agree(modes["padded"], modes[mode])
    assert found.difference <= found.tolerance == 1e-5
    assert found.own_counts is not None
    assert found.own_counts <= 1e-5
    assert found.images == 4
    assert f"{found.difference:.1e}" in str(found)


def wrong(x: Tensor) -> Tensor:
    return x * 1.01


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_that_computes_something_else_is_refused(modes: dict[str, Planned], mode: str) -> None:
    program = modes[mode].replace(module=graph.copy(modes[mode].module))
    last = [node for node in program.graph.nodes if graph.op(node) == "gelu"][-1]
    with program.graph.inserting_after(last):
        made = program.graph.call_function(wrong, (last,))
    made.meta = dict(last.meta)
    last.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)
    program.module.recompile()
    with pytest.raises(VerificationError, match="differs") as caught:
        agree(modes["padded"], program)
    assert caught.value.where == "mode"
    assert "padded" in (caught.value.remedy or "")


def test_random_scores_need_not_choose_the_same() -> None:
    dense = recognised(ViT(depth=3), pixels(4))
    found = moding.in_all_modes(moding.unfinished(dense, tiny.policy(scorer="random", **RAGGED)))
    assert agree(found["padded"], found["masked"]).own_counts is None


def test_what_was_not_compared_is_not_told() -> None:
    assert "on its own" not in str(Agreement(1e-7, 1e-5, 0.1, 2))
    assert "on its own: 2.0e-07" in str(Agreement(1e-7, 1e-5, 0.1, 2, 2e-7))
