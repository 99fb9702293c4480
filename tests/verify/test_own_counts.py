"""A program at its own counts, and where it first differs from the dense graph."""

from __future__ import annotations

import dataclasses

import pytest
from torch import Tensor

from prunec.errors import VerificationError
from prunec.ir import graph
from prunec.ir.program import Planned, Recognised
from prunec.verify.certificate import certify
from tests.tiny import pruned


def test_the_first_state_that_differs_is_named(dense: Recognised, half: Planned) -> None:
    program = half.replace(module=graph.copy(half.module))
    hidden = [node for node in program.graph.nodes if graph.op(node) == "gelu"][1]
    index = next(node for node in program.graph.nodes if node.name == "select_0")
    with program.graph.inserting_after(hidden):
        made = program.graph.call_function(shrunk, (hidden, index))
    hidden.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)
    graph.tidy(program.module)
    with pytest.raises(VerificationError, match="own counts") as caught:
        certify(dense, program)
    assert "blocks.1" in str(caught.value.where)


def shrunk(x: Tensor, index: Tensor) -> Tensor:
    return x * (index.shape[1] / 26)


def test_a_class_token_that_was_taken_for_a_patch_is_refused(dense: Recognised) -> None:
    wrong = dense.replace(anatomy=dataclasses.replace(dense.anatomy, prefix=0))
    with pytest.raises(VerificationError, match="no pixel reaches the first 1 and the last 0 rows"):
        certify(wrong, pruned(wrong))
