"""Passes that do not do what they promise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from prunec import ops
from prunec.errors import REPORT, InternalError
from prunec.ir import graph
from prunec.ir.program import Counts, Planned, Program, Recognised
from prunec.ir.rewrite import Pass
from prunec.passes import run_pass
from prunec.passes.controls import Slices
from prunec.passes.insert_sites import InsertSites
from prunec.passes.liveness import Liveness
from prunec.passes.lower_masked import LowerMasked
from prunec.passes.lower_single import LowerSingle
from prunec.passes.normalise import Normalise
from tests.tiny import ViT, pixels, planned, pruned, recognised


@pytest.fixture(scope="module")
def dense() -> Recognised:
    return recognised(ViT(), pixels())


@dataclass(frozen=True)
class _Idle(Pass[Program, Program]):
    """Does nothing, and promises nothing."""

    name: ClassVar[str] = "idle"

    def run(self, program: Program) -> tuple[Program, Counts]:
        """As it is."""
        return program, Counts({"done": 0}, ("nothing to do",))


class _IdleSites(InsertSites):
    """Inserts no site, and promises one for each of the plan."""

    run = _Idle.run  # type: ignore[assignment]


class _IdleSlices(Slices):
    """Leaves all selections, and promises none."""

    run = _Idle.run  # type: ignore[assignment]


class _Greedy(Liveness):
    """Drops all selections, and promises them all."""

    def run(self, program: Planned) -> tuple[Planned, Counts]:
        """Without the rows that selections choose."""
        return run_pass(Slices(), program), Counts({})


def told(error: pytest.ExceptionInfo[InternalError]) -> str:
    return str(error.value)


def test_a_pass_that_promises_nothing_needs_no_more_than_run(dense: Recognised) -> None:
    made = run_pass(_Idle(), dense)
    assert made.module is dense.module
    record = made.stages[-1]
    assert (record.name, dict(record.counts), record.notes) == ("idle", {"done": 0}, ("nothing to do",))


def test_sites_that_were_not_inserted_are_an_error_of_prunec(dense: Recognised) -> None:
    with pytest.raises(InternalError) as error:
        run_pass(_IdleSites(), planned(dense))
    assert told(error) == (
        f"pass 'insert sites' broke its promise: 0 selections for 1 sites\n  to do: {REPORT}"
    )
    assert "please report" in REPORT


def test_the_place_of_what_should_not_be_there_is_reported(dense: Recognised) -> None:
    half = pruned(dense)
    first = next(node for node in half.graph.nodes if node.target in ops.SCORES)
    with pytest.raises(InternalError) as error:
        run_pass(_IdleSlices(), half)
    assert told(error).startswith(
        f"pass 'ideal slices' broke its promise: {first.name} chooses tokens still\n"
    )
    assert error.value.where == graph.place(first)


def test_selections_that_are_gone_are_an_error_of_prunec(dense: Recognised) -> None:
    with pytest.raises(InternalError, match="0 selections are left of 1"):
        run_pass(_Greedy(), pruned(dense))


@pytest.mark.parametrize("step", [LowerMasked(), LowerSingle()])
def test_a_mode_that_the_plan_does_not_have_is_not_lowered_to(
    dense: Recognised, step: Pass[Planned, Planned]
) -> None:
    with pytest.raises(InternalError, match="and the mode is static"):
        run_pass(step, pruned(dense))


def test_an_in_place_operator_that_is_left_is_reported(dense: Recognised) -> None:
    module = graph.copy(dense.module)
    add = next(node for node in module.graph.nodes if graph.op(node) == "add")
    add.target = torch.ops.aten.add_.Tensor
    with pytest.raises(InternalError, match="works in place still"):
        Normalise().ensures(dense.replace(module=module))
