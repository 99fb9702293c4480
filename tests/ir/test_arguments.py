"""Arguments of the dialect's calls by name: however they were given, whatever is added to an operation."""

import pytest
import torch
from torch import Tensor, fx, nn

from prunec import ops
from prunec.ir import arguments


def call(function, *args, **kwargs):
    graph = fx.Graph()
    nodes = {name: graph.placeholder(name) for name in ("base", "x", "index", "valid", "kept", "score")}
    found = [nodes.get(argument, argument) for argument in args]
    named = {name: nodes.get(argument, argument) for name, argument in kwargs.items()}
    return graph.call_function(function, tuple(found), named), nodes


def test_arguments_are_read_by_name_however_they_were_given():
    by_place, nodes = call(ops.scatter, "base", "x", "index", 2, "valid")
    by_name, others = call(ops.scatter, "base", valid="valid", index="index", x="x", dim=2)
    for node, known in ((by_place, nodes), (by_name, others)):
        found = arguments.bind(node)
        assert list(found) == ["base", "x", "index", "dim", "valid"]
        assert (found["index"], found["valid"], found["dim"]) == (known["index"], known["valid"], 2)


def test_what_was_left_out_has_its_default():
    node, _ = call(ops.scatter, "base", "x", "index")
    assert (arguments.bind(node)["dim"], arguments.bind(node)["valid"]) == (1, None)


def test_the_parameters_of_a_learned_scorer_are_one_argument():
    scorer = ops.Learned(nn.Linear(4, 1), "linear", 0)
    node, nodes = call(scorer, "x", 1, 0, 1, None, "base", "valid")
    assert arguments.bind(node)["parameters"] == (nodes["base"], nodes["valid"])


def test_an_argument_that_is_no_node_is_not_given_for_one():
    node, _ = call(ops.scatter, "base", "x", "index")
    with pytest.raises(AssertionError, match="valid of scatter is None"):
        arguments.operand(node, "valid")


def test_an_argument_that_is_set_to_its_default_is_left_out():
    node, nodes = call(ops.scatter, "base", "x", "index", 1, "valid")
    arguments.rebind(node, valid=None)
    assert node.args == (nodes["base"], nodes["x"], nodes["index"], 1)
    arguments.rebind(node, dim=2, index=nodes["kept"])
    assert node.args == (nodes["base"], nodes["x"], nodes["kept"], 2)


def test_another_operation_takes_the_arguments_that_both_have():
    node, nodes = call(ops.pack, "kept", 1, 0, 8, True, (12, 16))
    arguments.retarget(node, ops.pack_all)
    assert (node.target, node.args, node.kwargs) == (ops.pack_all, (nodes["kept"], 1, 0, True), {})
    node, nodes = call(ops.scatter, "base", "x", "index", 1, "valid")
    arguments.retarget(node, ops.blend, mask=nodes["valid"])
    assert node.args == (nodes["base"], nodes["x"], nodes["valid"], 1)


@pytest.mark.parametrize("selection", ops.SELECTIONS)
def test_every_selection_says_what_it_chooses_from(selection):
    read = "score" if selection in ops.FIXED else "kept"
    numbers = {ops.select: (2, 1, 0), ops.select_pairs: (2, 1, 0), ops.pack: (1, 0), ops.pack_all: (1, 0)}
    node, nodes = call(selection, read, *numbers.get(selection, ()))
    assert arguments.chosen_from(node) is nodes[read]


def test_a_parameter_more_breaks_nothing_that_reads_another():
    def scatter(base: Tensor, x: Tensor, extra: int, index: Tensor, valid: Tensor | None = None) -> Tensor:
        return base

    node, nodes = call(scatter, "base", "x", 3, "index")
    assert arguments.operand(node, "index") is nodes["index"]
    assert arguments.bind_call(scatter, (torch.zeros(1), None, 3, None), {})["extra"] == 3
