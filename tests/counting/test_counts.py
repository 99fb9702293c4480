"""Which numbers follow the token count, and when a model is captured again to know."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import sympy
import torch
from torch import Tensor, nn

from prunec import compat
from prunec.counting.counts import mark_counts
from prunec.ir import graph
from prunec.ir.program import Program
from prunec.passes import FRONT, run_passes
from prunec.token_axis.counted import follows
from prunec.token_axis.solve import TOKENS
from tests.tiny import Attention, Block, ViT, captured


def marked(model: nn.Module) -> Program | None:
    program = captured(model)
    return mark_counts(model, program, run_passes(FRONT, program))


def noted(model: nn.Module) -> dict[str, dict[object, sympy.Expr | None]]:
    program = marked(model)
    return {} if program is None else {
        graph.op(node) or node.op: {where: how.value for where, how in follows(node).items()}
        for node in program.graph.nodes
        if follows(node)
    }  # fmt: skip


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that a model is captured."""
    calls: list[int] = []
    export: Callable[..., object] = compat.export

    def counted(*args: object) -> object:
        calls.append(1)
        return export(*args)

    monkeypatch.setattr(compat, "export", counted)
    return calls


def test_a_model_without_numbers_is_captured_once(exports: list[int]) -> None:
    assert marked(ViT()) is None
    assert len(exports) == 1


def test_a_number_that_could_follow_and_does_not_takes_one_more_capture(exports: list[int]) -> None:
    assert marked(ViT(lambda: Block(lambda: Attention(form="spelled")))) is None
    assert len(exports) == 2


def test_a_number_that_follows_takes_two_more(exports: list[int]) -> None:
    assert marked(ViT(read=lambda x: x.sum(1) / x.shape[1])) is not None
    assert len(exports) == 3


def test_arguments_of_calls() -> None:
    assert noted(ViT(read=lambda x: x.sum(1) / x.shape[1])) == {"div": {(1,): TOKENS}}
    assert noted(ViT(read=lambda x: torch.add(x[:, 0], x[:, 1:].sum(1), alpha=1 / (x.shape[1] - 1)))) == {
        "add": {("alpha",): 1 / (TOKENS - 1)}
    }


def test_sizes_are_left_to_the_types() -> None:
    assert noted(ViT(read=lambda x: x.reshape(x.shape[0], x.shape[1], 4, 4).mean((1, 2)).repeat(1, 4))) == {}


def test_a_value_that_no_image_enters_is_one_number() -> None:
    found = noted(ViT(read=lambda x: x.sum(1) * (torch.ones(x.shape[1]) / x.shape[1]).square().sum()))
    assert found["div"] == {(): pytest.approx(1 / TOKENS)} or found["div"][()].equals(1.0 / TOKENS)
    assert found["sum"][()].equals(1.0 / TOKENS) or found["sum"][()].equals(1 / TOKENS)


def test_a_table_that_differs_from_row_to_row_is_no_number() -> None:
    def read(x: Tensor) -> Tensor:
        rows = torch.arange(x.shape[1]) / x.shape[1]
        return (x * rows[:, None]).sum(1) / math.log(x.shape[1])

    found = noted(ViT(read=read))
    assert [name for name in found if name != "div"] == []
    assert list(found["div"]) == [(1,)]


def test_two_calls_that_look_alike_and_do_not_follow_alike_stay_two() -> None:
    program = marked(ViT(read=lambda x: x.sum(1) / x.shape[1] + x.sum(1) / 26))
    assert program is not None
    dense = run_passes(FRONT, program)
    divided = [node for node in dense.graph.nodes if graph.op(node) == "div"]
    assert [bool(follows(node)) for node in divided] == [True, False]
    assert len([node for node in dense.graph.nodes if graph.op(node) == "sum"]) == 1


def test_a_branch_of_the_code_that_a_shorter_stream_takes_does_not_hide_what_follows() -> None:
    def read(x: Tensor) -> Tensor:
        x = x.sin().cos() if x.shape[1] < 26 else x.exp()
        return x.sum(1) / x.shape[1]

    assert noted(ViT(read=read)) == {"div": {(1,): TOKENS}}
