"""Who catches a mistake: the comparison or the check that refuses the program."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch

from prunec.errors import PruneError, VerificationError
from prunec.ir import graph
from prunec.ir.program import Program
from prunec.passes import BACK, lowering_passes, run_passes
from prunec.verify.agreement import agree
from prunec.verify.certificate import certify
from tests.mutants.planting import Mutant, planted
from tests.mutants.subjects import SUBJECTS, dense, lowered, plain, planned

#: What an error says, and which part of the proof says it.
_BY = {
    "keep=1.0": "identity",
    "permutation": "permutation",
    "padding": "padding",
    "at its own counts": "own counts",
    "rows": "invariant",
    "no pixel": "invariant",
    "sites, the rewritten": "invariant",
    "not finite": "outputs",
    "output ": "outputs",
    "in mode": "mode comparison",
}


@dataclass(frozen=True)
class Verdict:
    """What became of one mistake in one program."""

    mutant: Mutant
    subject: str
    caught_by: str | None
    words: str = ""


def judge(mutant: Mutant, subject: str) -> Verdict:
    """Plant it, and let the certificates look."""
    lowered(subject)  # made without the mistake
    try:
        with _planting(mutant):
            _prove(mutant, subject)
    except VerificationError as error:
        found = next((by for words, by in _BY.items() if words in error.what), "another check")
        return Verdict(mutant, subject, found, error.what)
    except (PruneError, AssertionError) as error:
        return Verdict(mutant, subject, "refused", str(error))
    return Verdict(mutant, subject, None)


def _planting(mutant: Mutant) -> contextlib.AbstractContextManager[None]:
    if mutant.operation is None or mutant.wrong is None:
        return contextlib.nullcontext()
    return planted(mutant.operation, mutant.wrong)


def _prove(mutant: Mutant, subject: str) -> None:
    whole, program = dense(SUBJECTS[subject].model), plain(subject)
    if mutant.anatomy is not None:
        whole = mutant.anatomy(whole)
        program = run_passes(BACK, planned(SUBJECTS[subject], whole))
    if mutant.edit is not None:
        program = edited(program, mutant)
    certify(whole, program)
    if lowering_passes(program.plan.lowering):
        made = lowered(subject)
        if mutant.edit_mode is not None:
            made = made.replace(module=graph.copy(made.module))
            mutant.edit_mode(made)
            graph.tidy(made.module)
        agree(program, made)


def edited(program: Program, mutant: Mutant) -> Program:
    """The program with the mutant's edit in a graph of its own."""
    assert mutant.edit is not None
    program = program.replace(module=graph.copy(program.module))
    mutant.edit(program)
    graph.tidy(program.module)
    return program


def changes_something(mutant: Mutant, subject: str) -> bool:
    """Whether the program computes anything else with the mistake in it."""
    program = lowered(subject)
    flat = program.interface.example
    with torch.no_grad():
        torch.manual_seed(0)
        before = program.module(*flat)
        changed = edited(program, mutant) if mutant.edit is not None else program
        with _planting(mutant):
            torch.manual_seed(0)
            after = changed.module(*flat)
    return any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
