from __future__ import annotations

import operator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from prunec.ir import graph
from prunec.ir.program import Program, Recognised
from prunec.passes.insert_sites import InsertSites
from tests.tiny import ViT, captured, planned, pruned, recognised


class Small(nn.Module):
    """Sizes, a metadata-only operand, and a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        kept = self.inner(x).type_as(other)
        kept = kept.reshape(x.shape[0], 2, 2) + torch.zeros_like(other).sum()
        first, _second = kept.unbind(1)
        return first.relu()


@pytest.fixture(scope="module")
def small() -> Program:
    return captured(Small(), torch.randn(2, 4), torch.randn(2, 4))


@pytest.fixture(scope="module")
def dense() -> Recognised:
    return recognised(ViT())


def test_op_is_the_plain_name_of_a_call_and_empty_for_anything_else(small: Program) -> None:
    names = [graph.op(node) for node in small.graph.nodes]
    assert {"linear", "reshape", "relu", "unbind", "getitem", "sym_size"} <= set(names)
    assert {
        graph.op(node) for node in small.graph.nodes if node.op in ("placeholder", "output", "get_attr")
    } == {""}


def test_a_graph_as_text_has_a_line_for_each_value(small: Program) -> None:
    lines = graph.text(small.graph).splitlines()
    assert len(lines) == len(small.graph.nodes)
    assert "inner_weight: float32[4, 4] = get_attr inner.weight" in lines
    assert "linear: float32[s77, 4] = linear(x, inner_weight, inner_bias)" in lines
    assert "getitem: float32[s77, 2] = getitem(unbind, 0)" in lines
    assert lines[-1] == "output = output (relu,)"


def test_sizes_are_no_tensors(small: Program) -> None:
    sizes = [node for node in small.graph.nodes if graph.is_size(node)]
    assert {graph.op(node) for node in sizes} == {"sym_size"}
    assert not any(graph.is_tensor(node) for node in sizes)


def test_data_inputs_leave_out_sizes_and_operands_that_are_read_for_their_type_only(small: Program) -> None:
    nodes = {graph.op(node): node for node in small.graph.nodes}
    assert [source.name for source in graph.data_inputs(nodes["type_as"])] == ["linear"]
    assert graph.data_inputs(nodes["zeros_like"]) == []
    assert [source.name for source in graph.data_inputs(nodes["reshape"])] == ["type_as"]
    assert all(
        "inner" not in node.name for node in graph.reachable([small.graph.find_nodes(op="placeholder")[0]])
    )


def test_reachable_follows_values_only(small: Program) -> None:
    x, other = small.graph.find_nodes(op="placeholder")
    by_x = {graph.op(node) for node in graph.reachable([x])}
    assert {"linear", "type_as", "reshape", "add", "unbind", "getitem", "relu"} <= by_x
    assert "sym_size" not in by_x
    assert graph.reachable([other]) == {other}


def test_shape_is_of_a_tensor(small: Program) -> None:
    nodes = {graph.op(node): node for node in small.graph.nodes}
    batch, *rest = graph.shape(nodes["reshape"])
    assert isinstance(batch, torch.SymInt)
    assert rest == [2, 2]
    with pytest.raises(TypeError, match="unbind is not a tensor"):
        graph.shape(nodes["unbind"])


def test_getitem_is_reported_from_other_calls(small: Program) -> None:
    assert [node.target for node in small.graph.nodes if graph.is_getitem(node)] == [operator.getitem] * 2


def test_a_place_names_the_node_its_module_and_the_line_of_the_model(small: Program) -> None:
    relu = next(node for node in small.graph.nodes if graph.op(node) == "relu")
    written = next(
        number
        for number, text in enumerate(Path(__file__).read_text().splitlines(), 1)
        if "first.relu()" in text
    )
    assert graph.source_line(relu) == f"{__file__}:{written}  return first.relu()"
    assert graph.place(relu) == f"node relu, {__file__}:{written}  return first.relu()"
    linear = next(node for node in small.graph.nodes if graph.op(node) == "linear")
    assert graph.module_path(linear) == "inner"
    assert graph.place(linear).startswith("node linear in inner, ")


def test_a_node_that_nobody_wrote_has_no_line(dense: Recognised) -> None:
    inserted, _ = InsertSites().run(planned(dense))
    score = graph.by_name(inserted.graph)["score_0"]
    assert graph.source_line(score) is None
    assert graph.module_path(score) == ""
    assert graph.place(score) == "node score_0"


def test_a_copy_shares_parameters_and_keeps_names_but_not_the_graph(dense: Recognised) -> None:
    copied = graph.copy(dense.module)
    assert [node.name for node in copied.graph.nodes] == [node.name for node in dense.graph.nodes]
    assert not set(copied.graph.nodes) & set(dense.graph.nodes)
    mine, yours = dict(copied.named_parameters()), dict(dense.module.named_parameters())
    assert mine.keys() == yours.keys()
    assert all(mine[name] is yours[name] for name in mine)
    last = graph.output_node(copied.graph)
    last.args = ((graph.by_name(copied.graph)["add"],),)
    graph.tidy(copied)
    assert "add_1" not in graph.by_name(copied.graph)
    assert "add_4" in graph.by_name(dense.graph)


def test_tidy_removes_what_is_dead_but_no_input() -> None:
    class Idle(nn.Module):
        def forward(self, x: Tensor, unused: Tensor) -> Tensor:
            return x + 1

    program = captured(Idle(), torch.randn(2, 3), torch.randn(2, 3))
    with program.graph.inserting_before(graph.output_node(program.graph)):
        program.graph.call_function(torch.neg, (program.graph.find_nodes(op="placeholder")[0],))
    graph.tidy(program.module)
    assert [node.op for node in program.graph.nodes] == [
        "placeholder",
        "placeholder",
        "call_function",
        "output",
    ]


def lines(program: Program) -> str:
    """The operators of a program with the names of what they read; no types, no parameters."""
    return "\n".join(
        f"{node.name} = {graph.op(node) or 'output'}{_arguments(node.args)}"
        for node in program.graph.nodes
        if node.op in ("call_function", "output")
    )


def _arguments(value: object) -> str:
    if isinstance(value, tuple | list):
        brackets = "()" if isinstance(value, tuple) else "[]"
        return brackets[0] + ", ".join(map(_arguments, value)) + brackets[1]
    if isinstance(value, torch.fx.Node):
        return "." + str(value.target).split(".")[-1] if value.op == "get_attr" else value.name
    return str(value)


def test_the_graph_before_and_after(dense: Recognised, golden: object) -> None:
    assert callable(golden)
    golden("tiny_vit_dense", lines(dense))
    late = {"where": "after_attention", "blocks": [0]}
    golden("tiny_vit_pruned", lines(pruned(dense, scorer="cls_attention", fate="fuse", **late)))
