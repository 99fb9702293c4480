from __future__ import annotations

import torch
from torch import fx

from prunec import ops
from prunec.ir import graph
from prunec.ir.writer import Writer
from prunec.scorers.gates import SiteModule
from tests.tiny import ViT, normalised


def writer() -> tuple[Writer, fx.Node]:
    module = graph.copy(normalised(ViT()).module)
    node = next(node for node in module.graph.nodes if graph.op(node) == "layer_norm")
    return Writer(module), node


def test_a_call_stands_behind_its_operands_and_knows_what_it_yields() -> None:
    made, state = writer()
    score = made.call("score", ops.token_norm, (state, 1))
    places = {node: place for place, node in enumerate(made.graph.nodes)}
    assert places[score] == places[state] + 1
    assert score.name == "score_0"
    assert score.meta["val"].shape == state.meta["val"].shape[:2]
    made.graph.lint()


def test_calls_stand_in_the_order_in_which_they_were_written() -> None:
    made, state = writer()
    made.number = 3
    last = next(node for node in reversed(made.graph.nodes) if graph.op(node) == "layer_norm")
    first = made.call("one", ops.token_norm, (last, 1))
    second = made.call("two", ops.token_norm, (state, 1))  # its operand is known much earlier
    places = {node: place for place, node in enumerate(made.graph.nodes)}
    assert places[second] == places[first] + 1
    assert [first.name, second.name] == ["one_3", "two_3"]


def test_a_type_that_is_given_is_not_asked_for() -> None:
    made, state = writer()
    value = made.like(state.meta["val"], 1, torch.int64)
    assert made.call("rows", ops.token_norm, (state, 1), value).meta["val"] is value
    assert (value.shape, value.dtype) == (state.meta["val"].shape[:2], torch.int64)


def test_a_pair_is_taken_apart() -> None:
    made, state = writer()
    pair = made.call("pairs", ops.pairs, (state, 1, 0))
    score, partner = made.two(pair, "score", "partner")
    assert (score.args[1], partner.args[1]) == (0, 1)
    assert (score.meta["val"].dtype, partner.meta["val"].dtype) == (torch.float32, torch.int64)


def test_a_parameter_is_read_before_anything_is_computed() -> None:
    made, _ = writer()
    made.number = 2
    made.module.add_submodule("prunec.site_2", SiteModule())
    node = made.parameter("threshold", torch.zeros(()))
    assert (node.op, node.target) == ("get_attr", "prunec.site_2.threshold")
    assert node.meta["val"].shape == ()
    before = list(made.graph.nodes)[: list(made.graph.nodes).index(node)]
    assert all(other.op == "placeholder" for other in before)


def test_only_the_users_that_are_named_read_the_new_node() -> None:
    made, state = writer()
    one, other = (made.call(name, torch.relu, (state,)) for name in ("one", "other"))
    new = made.call("new", torch.neg, (state,))
    made.let_read([one], state, new)
    assert (one.args, other.args) == ((new,), (state,))
