"""What a program chose, read off a run of it."""

from __future__ import annotations

import torch

from prunec.ir import graph
from prunec.ir.program import Planned, Recognised
from prunec.verify import runs
from prunec.verify.certificate import certify
from tests.tiny import pruned


def test_what_each_site_chose_is_read_off_the_run(half: Planned) -> None:
    with torch.no_grad():
        found = runs.run(half, half.interface.example)
    (index,) = (node for node in half.graph.nodes if node.name == "select_0")
    recorder = graph.Recorder(half.module, {index.name, "select_1"})
    recorder.run(*half.interface.example)
    first, second = found.chosen
    original = recorder.values[index.name].gather(1, recorder.values["select_1"])
    assert [choice.rows.tolist() for choice in first] == recorder.values[index.name].tolist()
    assert [choice.rows.tolist() for choice in second] == original.tolist()
    assert [int(choice.kept.sum()) for choice in (*first, *second)] == [14, 14, 8, 8]
    assert torch.equal(second[0].entering, first[0].alive)
    assert not found.idle


def test_thresholds_that_let_everything_pass_are_proved_on_other_sets(dense: Recognised) -> None:
    program = pruned(dense, blocks=[1, 2], selector="threshold")  # at 0, and a norm is more
    with torch.no_grad():
        assert runs.run(program, program.interface.example).idle
        assert not runs.run(program, program.interface.example, scattered=True).idle
    certificate = certify(dense, program)
    assert certificate.own_counts is not None
    assert 0 < certificate.own_counts < 1e-6
