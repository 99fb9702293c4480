"""Mistakes in what the passes make: edges of the rewritten graph, counts, and what was recognised."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from prunec import ops
from prunec.ir import graph
from prunec.ir.program import Program
from tests.mutants.planting import Mutant


def _all(program: Program, *targets: object) -> list[fx.Node]:
    return [node for node in program.graph.nodes if node.target in targets]


def _after(program: Program, node: fx.Node, function: Callable[..., Any], *rest: Any) -> None:
    """Let a function stand between a node and its readers."""
    with program.graph.inserting_after(node):
        made = program.graph.call_function(function, (node, *rest))
    node.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)


def _states(program: Program) -> list[fx.Node]:
    names = graph.by_name(program.graph)
    return [names[name] for name in program.anatomy.states if name in names]


# --- the way back -------------------------------------------------------------------------------


def scattered_into_the_first_state(program: Program) -> None:
    for back in _all(program, ops.scatter):
        back.update_arg(0, _states(program)[0])


def scattered_what_was_before_the_last_mlp(program: Program) -> None:
    back = _all(program, ops.scatter)[0]
    states = _states(program)
    back.update_arg(1, states[states.index(graph.operand(back, 1)) - 1])


def scattered_in_front(program: Program) -> None:
    for back in _all(program, ops.scatter):
        base, x, _, dim = back.args[:4]
        back.target, back.args = ops.put_first, (base, x, dim)


def scattered_backwards(program: Program) -> None:
    for back in _all(program, ops.scatter):
        with program.graph.inserting_before(back):
            index = program.graph.call_function(_turned, (back.args[2], back.args[0]))
        back.update_arg(2, index)


def _turned(index: Tensor, base: Tensor) -> Tensor:
    return index if index.shape[1] == base.shape[1] else index.flip(1)


def put_back_by_the_second_selection_alone(program: Program) -> None:
    for composed in _all(program, ops.compose):
        composed.replace_all_uses_with(composed.args[1])


def never_put_back(program: Program) -> None:
    for back in _all(program, ops.scatter):
        back.replace_all_uses_with(back.args[1])


# --- what goes on --------------------------------------------------------------------------------


def fused_is_gathered(program: Program) -> None:
    for node in _all(program, ops.fuse):
        node.target, node.args = ops.gather, (node.args[0], node.args[1], node.args[4])


def gathered_of_the_state_before(program: Program) -> None:
    node = _all(program, ops.gather)[0]
    states = _states(program)
    node.update_arg(0, states[states.index(graph.operand(node, 0)) - 1])


def second_site_by_the_first_selection(program: Program) -> None:
    first, second = _all(program, ops.gather)[:2]
    with program.graph.inserting_before(second):
        index = program.graph.call_function(_cut, (first.args[1], second.args[1], second.args[0]))
    second.update_arg(1, index)


def _cut(first: Tensor, second: Tensor, x: Tensor) -> Tensor:
    return first[:, : second.shape[1]].clamp_max(x.shape[1] - 1)


def site_left_out(program: Program) -> None:
    node = _all(program, ops.gather)[-1]
    node.replace_all_uses_with(node.args[0])


def selection_left_out(program: Program) -> None:
    index = _all(program, ops.select)[-1]
    with program.graph.inserting_before(index):
        made = program.graph.call_function(_first_rows, (index.args[0], index.args[1]))
    index.replace_all_uses_with(made)


def _first_rows(score: Tensor, keep: int) -> Tensor:
    return torch.arange(keep + 1).expand(score.shape[0], -1)


def one_less_than_planned(program: Program) -> None:
    index = _all(program, ops.select)[0]
    index.update_arg(1, index.args[1] - 1)


def one_more_than_planned(program: Program) -> None:
    index = _all(program, ops.select)[0]
    index.update_arg(1, index.args[1] + 1)


# --- n and T -------------------------------------------------------------------------------------


def mean_over_all(program: Program) -> None:
    mean = next(node for node in program.graph.nodes if graph.op(node) == "mean")
    _after(program, mean, _scaled, _all(program, *ops.SELECTIONS)[-1])


def attention_scaled(program: Program) -> None:
    core = [node for node in program.graph.nodes if graph.op(node) == "scaled_dot_product_attention"][-1]
    _after(program, core, _scaled, _all(program, *ops.SELECTIONS)[-1])


def mlp_scaled(program: Program) -> None:
    hidden = [node for node in program.graph.nodes if graph.op(node) == "gelu"][-1]
    _after(program, hidden, _scaled, _all(program, *ops.SELECTIONS)[-1])


def stream_scaled(program: Program) -> None:
    _after(program, _all(program, ops.gather, ops.fuse)[-1], _scaled, _all(program, *ops.SELECTIONS)[-1])


def _scaled(x: Tensor, index: Tensor) -> Tensor:
    return x * (index.shape[1] / 26)


def logits_warmer(program: Program) -> None:
    """Attention divides by what there is to look at."""
    softmax = [node for node in program.graph.nodes if graph.op(node) == "softmax"][-1]
    with program.graph.inserting_before(softmax):
        made = program.graph.call_function(_scaled_logits, (softmax.args[0],))
    softmax.update_arg(0, made)


def _scaled_logits(logits: Tensor) -> Tensor:
    return logits * (logits.shape[-1] / 26)


def kept_rows_mixed(program: Program) -> None:
    """A little of the neighbour, where rows were left out."""
    _after(program, _all(program, ops.gather)[0], _blurred)


def _blurred(x: Tensor) -> Tensor:
    return x if x.shape[1] == 26 else x + 0.01 * x.roll(1, 1)


def class_token_forgotten_when_short(program: Program) -> None:
    _after(program, _all(program, ops.gather)[-1], _without_class_token)


def _without_class_token(x: Tensor) -> Tensor:
    return x if x.shape[1] == 26 else torch.cat([torch.zeros_like(x[:, :1]), x[:, 1:]], dim=1)


def rounded_when_short(program: Program) -> None:
    _after(program, _all(program, ops.gather)[0], _rounded)


def _rounded(x: Tensor) -> Tensor:
    return x if x.shape[1] == 26 else x.to(torch.bfloat16).to(x.dtype)


# --- what was recognised ---------------------------------------------------------------------------


def no_prefix(program: Program) -> Program:
    return program.replace(anatomy=dataclasses.replace(program.anatomy, prefix=0))


def no_suffix(program: Program) -> Program:
    return program.replace(anatomy=dataclasses.replace(program.anatomy, suffix=0))


MUTANTS = (
    Mutant(
        "scatter into the first state",
        ("dense output, stale", "dense output, thresholds"),
        edit=scattered_into_the_first_state,
    ),
    Mutant(
        "the last MLP is not put back", ("dense output, stale",), edit=scattered_what_was_before_the_last_mlp
    ),
    Mutant(
        "scatter puts rows in front", ("dense output, stale", "dense output, rejoin"), edit=scattered_in_front
    ),
    Mutant(
        "scatter puts rows back in reverse",
        ("dense output, stale", "windows, drop"),
        edit=scattered_backwards,
    ),
    Mutant(
        "original rows by the second selection alone",
        ("rotary, drop",),
        edit=put_back_by_the_second_selection_alone,
    ),
    Mutant(
        "a mean has what stays alone, and the others were to take part",
        ("mean head, set aside",),
        edit=never_put_back,
    ),
    Mutant("fuse became gather", ("class token, fuse", "class token, fuse the mean"), edit=fused_is_gathered),
    Mutant("a site gathers the state before", ("class token, drop",), edit=gathered_of_the_state_before),
    Mutant(
        "the second site gathers by the first selection",
        ("class token, drop", "dense output, stale"),
        edit=second_site_by_the_first_selection,
    ),
    Mutant("a site does not gather", ("class token, drop",), edit=site_left_out),
    Mutant("a site does not select", ("class token, drop",), edit=selection_left_out),
    Mutant(
        "one token less than planned", ("class token, drop", "mean head, drop"), edit=one_less_than_planned
    ),
    Mutant(
        "one token more than planned", ("class token, drop", "mean head, drop"), edit=one_more_than_planned
    ),
    Mutant("a mean over n is divided by T", ("mean head, drop", "mean head, thresholds"), edit=mean_over_all),
    Mutant("attention is scaled by n / T", ("class token, drop", "rotary, drop"), edit=attention_scaled),
    Mutant("an MLP is scaled by n / T", ("class token, drop", "dense output, stale"), edit=mlp_scaled),
    Mutant("the stream is scaled by n / T", ("class token, drop", "class token, fuse"), edit=stream_scaled),
    Mutant("logits are scaled by n / T", ("merging pairs, spelled out",), edit=logits_warmer),
    Mutant(
        "neighbours mix where rows were left out",
        ("class token, drop", "mean head, drop"),
        edit=kept_rows_mixed,
    ),
    Mutant(
        "the class token is lost where rows were left out",
        ("class token, drop",),
        edit=class_token_forgotten_when_short,
    ),
    Mutant("a short stream is rounded to 16 bits", ("class token, drop",), edit=rounded_when_short),
    Mutant(
        "the class token is taken for a patch",
        ("class token, drop", "mean head, drop", "dense output, stale"),
        anatomy=no_prefix,
    ),
    Mutant("detection queries are taken for patches", ("queries, drop",), anatomy=no_suffix),
)
