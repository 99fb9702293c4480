from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from prunec import ops
from prunec.ir import graph
from prunec.token_axis.spaces import Repairs, TokenAxis
from tests.tiny import captured

Chain = Callable[[Tensor], Tensor]


class Whole(nn.Module):
    def __init__(self, chain: Chain) -> None:
        super().__init__()
        self.chain = chain

    def forward(self, x: Tensor) -> Tensor:
        return self.chain(x)


@dataclass
class Repaired:
    """A chain of operators on x: [B, N, C], captured at N tokens and repaired behind a selection."""

    module: fx.GraphModule
    repairs: Repairs
    last: str  # the chain's result in the new graph, before outputs are made whole again

    def at(self, x: Tensor, rows: Tensor) -> Tensor:
        """The chain's result when `rows` [B, n] go on."""
        interpreter = _Selecting(self.module, rows)
        interpreter.garbage_collect_values = False
        with torch.no_grad():
            interpreter.run(x)
        return next(value for node, value in interpreter.env.items() if node.name == self.last)


class _Selecting(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, rows: Tensor) -> None:
        super().__init__(module)
        self.rows = rows

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self.rows if target is ops.select else super().call_function(target, args, kwargs)


def repair(chain: Chain, tokens: int, channels: int, *, prefix: int = 0, suffix: int = 0) -> Repaired:
    program = captured(Whole(chain), torch.randn(2, tokens, channels))
    module = graph.copy(program.module)
    (x,) = module.graph.find_nodes(op="placeholder")
    users = [user for user in x.users if graph.op(user) != "sym_size"]
    with module.graph.inserting_after(x):
        score = module.graph.call_function(ops.token_norm, (x, 1))
    with module.graph.inserting_after(score):
        select = module.graph.call_function(ops.select, (score, tokens, prefix, suffix))
    with module.graph.inserting_after(select):
        gather = module.graph.call_function(ops.gather, (x, select, 1))
    for user in users:
        user.replace_input_with(x, gather)
    value = x.meta["val"]
    with value.fake_mode:
        score.meta["val"] = value[..., 0]
        select.meta["val"] = score.meta["val"].to(torch.int64)
    gather.meta["val"] = value
    last = graph.output_node(module.graph).args[0][0].name
    axis = TokenAxis(module, tokens=tokens, prefix=prefix, suffix=suffix, token_dim=1, states=())
    repaired, repairs = axis.run()
    return Repaired(repaired, repairs, last)


def rows_of(tokens: int, count: int, *, prefix: int = 0, suffix: int = 0, batch: int = 3) -> Tensor:
    """Random rows in ascending order, other ones for each image, protected ones among them."""
    patches = (
        torch.rand(batch, tokens - prefix - suffix).argsort(dim=1)[:, : count - prefix - suffix] + prefix
    )
    first, last = (
        torch.arange(prefix).expand(batch, -1),
        torch.arange(tokens - suffix, tokens).expand(batch, -1),
    )
    return torch.cat([first, patches.sort(dim=1).values, last], dim=1)


def check(chain: Chain, tokens: int, channels: int, *, prefix: int = 0, suffix: int = 0) -> Repaired:
    """At every count the repaired chain is the chain recomputed on the rows that go on."""
    repaired = repair(chain, tokens, channels, prefix=prefix, suffix=suffix)
    assert repaired.repairs.region_ends == []
    for count in {max(prefix + suffix, 1) + 1, tokens // 2 + 1, tokens - 1, tokens}:
        x = torch.randn(3, tokens, channels)
        rows = rows_of(tokens, count, prefix=prefix, suffix=suffix)
        torch.testing.assert_close(repaired.at(x, rows), chain(ops.gather(x, rows)), rtol=0, atol=0)
    return repaired


# --- literals ---------------------------------------------------------------------------------
# Sizes are read from x.shape, so the chain recomputes at any count; at capture they become literals.


def heads(x: Tensor) -> Tensor:
    b, n, c = x.shape
    return x.reshape(b, n, 2, c // 2).permute(0, 2, 1, 3)


LITERALS: dict[str, tuple[Chain, int]] = {
    "N": (heads, 1),
    "N by view": (lambda x: x.view(x.shape[0], x.shape[1], 2, -1), 1),
    "-1 beside N": (lambda x: x.reshape(-1, x.shape[1], 2, 4), 1),
    "N - 1": (lambda x: x[:, 1:].reshape(x.shape[0], x.shape[1] - 1, 2, -1), 1),
    "N - 1 narrowed": (lambda x: x.narrow(1, 1, x.shape[1] - 1), 1),
    "N - 2 from both ends": (lambda x: x[:, 1:-1].reshape(x.shape[0], x.shape[1] - 2, -1, 2), 1),
    "2N by one axis": (lambda x: x.reshape(x.shape[0], 2 * x.shape[1], -1), 1),
    "2N by cat": (lambda x: torch.cat([x, x], 1).reshape(x.shape[0], 2 * x.shape[1], 2, -1), 1),
    "B * N": (lambda x: x.reshape(x.shape[0] * x.shape[1], x.shape[2]), 1),
    "B * N and back": (
        lambda x: (x.reshape(x.shape[0] * x.shape[1], x.shape[2]) * 2).reshape(x.shape[0], x.shape[1], -1),
        2,
    ),
    "N * heads": (lambda x: heads(x).reshape(x.shape[0], 2 * x.shape[1], -1), 2),
    "N * N": (lambda x: (x @ x.mT).reshape(x.shape[0], x.shape[1] * x.shape[1]), 1),
    "N twice": (lambda x: (x @ x.mT).reshape(x.shape[0], 1, x.shape[1], x.shape[1]), 2),
    "split into protected and patches": (lambda x: x.split([1, x.shape[1] - 1], dim=1)[1] + 1, 1),
    "the last axis": (lambda x: x.mT.reshape(x.shape[0], 2, -1, x.shape[1]), 1),
    "nothing burnt in": (lambda x: x.flatten(2).unflatten(2, (2, -1)).transpose(1, 2), 0),
}


def test_heads_that_are_as_wide_as_the_stream_is_long() -> None:
    def chain(x: Tensor) -> Tensor:  # [B, 2, N, C / 2] -> [B * 2, N, C / 2], where N is C / 2
        return heads(x).reshape(x.shape[0] * 2, -1, x.shape[2] // 2).softmax(dim=-1)

    assert check(chain, 7, 14).repairs.literals == 1


@pytest.mark.parametrize("name", LITERALS)
@pytest.mark.parametrize("tokens", [13, 20])
def test_a_literal_is_solved_for(name: str, tokens: int) -> None:
    chain, literals = LITERALS[name]
    repaired = check(chain, tokens, 8, prefix=1, suffix=1)
    assert repaired.repairs.literals == literals
    assert repaired.repairs.gathered == []


COLLISIONS: dict[str, tuple[Chain, int, int]] = {
    "N is the number of channels": (heads, 8, 8),
    "N is the channels of a head": (heads, 4, 8),
    "N is the number of heads": (lambda x: x.reshape(x.shape[0], x.shape[1], 6, 4).transpose(1, 2), 6, 24),
    "N - 1 is the number of heads": (lambda x: x[:, 1:].reshape(x.shape[0], x.shape[1] - 1, 6, 4), 7, 24),
    "N is twice the heads": (lambda x: x.reshape(x.shape[0], x.shape[1], 6, 2).transpose(1, 2), 12, 12),
    "N is the number of channels, transposed": (lambda x: x.mT.reshape(x.shape[0], 2, 4, x.shape[1]), 8, 8),
    "N is three times the channels": (lambda x: x.reshape(x.shape[0], x.shape[1], 3, -1), 24, 24),
}


@pytest.mark.parametrize("name", COLLISIONS)
def test_a_size_that_only_happens_to_equal_the_length_stays(name: str) -> None:
    chain, tokens, channels = COLLISIONS[name]
    assert check(chain, tokens, channels, prefix=1).repairs.literals == 1


@pytest.mark.parametrize(("tokens", "channels"), [(6, 12), (6, 6), (12, 6), (6, 18)])
def test_channels_that_are_a_multiple_of_the_length_stay_when_the_batch_is_folded_in(
    tokens: int, channels: int
) -> None:
    def folded(x: Tensor) -> Tensor:
        b, n, c = x.shape
        return (x.reshape(b * n, c) * 2).reshape(b, n, c)

    assert check(folded, tokens, channels).repairs.literals == 2


# --- random chains ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One operator, told by axes and factors, so that it applies at any length."""

    name: str
    numbers: tuple[int, ...]
    wildcard: bool


@st.composite
def chains(draw: st.DrawFn) -> tuple[list[Step], int, int]:
    # All other sizes are products of 2 and 3, which neither these lengths nor one less are: a length that
    # equals another size can be ambiguous, and has its own tests above.
    tokens = draw(st.sampled_from([11, 15, 20, 21, 22, 23, 26, 30]))
    channels = draw(st.sampled_from([4, 6, 8, 12]))
    names = st.sampled_from(
        ["split channels", "merge", "swap", "fold batch", "narrow", "drop", "twice", "scale", "stack", "back"]
    )
    steps = draw(
        st.lists(
            st.builds(Step, names, st.tuples(st.integers(0, 9), st.integers(2, 3)), st.booleans()),
            min_size=1,
            max_size=5,
        )
    )
    return steps, tokens, channels


def applied(steps: list[Step], x: Tensor) -> Tensor:
    """The chain on x. The axis of the tokens is tracked, so that each step means the same at any length."""
    axis = 1  # where the tokens are, alone
    batch = 0
    dropped = doubled = False
    for step in steps:
        first, factor = step.numbers
        sizes = list(x.shape)
        others = [dim for dim in range(x.dim()) if dim not in (axis, batch)]
        if step.name == "split channels" and others and x.dim() < 6:
            dim = others[first % len(others)]
            if sizes[dim] % factor == 0:
                rest = -1 if step.wildcard else sizes[dim] // factor
                x = x.reshape(*sizes[:dim], factor, rest, *sizes[dim + 1 :])
                axis, batch = axis + (dim < axis), batch + (dim < batch)
        elif step.name == "merge" and len(others) > 1:
            pairs = [dim for dim in others if dim + 1 in others]
            if pairs:
                dim = pairs[first % len(pairs)]
                merged = -1 if step.wildcard else sizes[dim] * sizes[dim + 1]
                x = x.reshape(*sizes[:dim], merged, *sizes[dim + 2 :])
                axis, batch = axis - (dim < axis), batch - (dim < batch)
        elif step.name == "swap":
            one, other = first % x.dim(), factor % x.dim()
            x = x.transpose(one, other)
            axis = {one: other, other: one}.get(axis, axis)
            batch = {one: other, other: one}.get(batch, batch)
        elif step.name == "fold batch":
            order = [batch, axis, *others]
            x = x.permute(order).reshape(sizes[batch] * sizes[axis], -1) * 2
            x = x.reshape(sizes[batch], sizes[axis], *(sizes[dim] for dim in others))
            batch, axis = 0, 1
        elif step.name == "drop" and not dropped:
            x, dropped = x.narrow(axis, 1, sizes[axis] - 1), True
        elif step.name == "twice" and not doubled:
            x, doubled = torch.cat([x, x + 1], dim=axis), True
        elif step.name == "narrow":
            x = x.narrow(axis, 0, sizes[axis]) * factor
        elif step.name == "stack" and x.dim() < 6:
            x = x.unsqueeze(0).expand(factor, *sizes) + 1.0
            axis, batch = axis + 1, batch + 1
        elif step.name == "back" and others:
            x = x.permute(batch, axis, *others).reshape(sizes[batch], sizes[axis], -1)
            batch, axis = 0, 1
        else:
            x = x * factor
    return x


@settings(deadline=None, max_examples=25)
@given(chains())
def test_any_chain_of_reshapes_is_repaired(drawn: tuple[list[Step], int, int]) -> None:
    steps, tokens, channels = drawn
    check(lambda x: applied(steps, x), tokens, channels, prefix=1)


@pytest.mark.parametrize("tokens", [4, 5, 6])
def test_a_very_short_stream_is_repaired_too(tokens: int) -> None:
    assert check(lambda x: x.narrow(1, 0, x.shape[1]) * 2, tokens, 8).repairs.literals == 1


# --- operands ---------------------------------------------------------------------------------


def taken(repaired: Repaired) -> list[tuple[Any, ...]]:
    return [node.args[2:] for node in repaired.module.graph.nodes if node.target is ops.take]


def check_table(
    chain: Callable[[Tensor, Tensor], Tensor],
    table: Tensor,
    shorten: Callable[[Tensor, Tensor], Tensor],
    **protected: int,
) -> Repaired:
    """The repaired chain with a table is, image by image, the chain on kept rows with `shorten`ed table."""
    tokens = 12
    repaired = repair(lambda x: chain(x, table), tokens, 8, **protected)
    assert repaired.repairs.region_ends == []
    for count in (5, 9, tokens):
        x, rows = torch.randn(3, tokens, 8), rows_of(tokens, count, **protected)
        found = repaired.at(x, rows)
        kept = ops.gather(x, rows)
        expected = torch.cat([chain(kept[i : i + 1], shorten(table, rows[i])) for i in range(3)])
        torch.testing.assert_close(found, expected)
    return repaired


def test_a_table_with_a_row_for_every_token() -> None:
    repaired = check_table(
        lambda x, table: x * table, torch.randn(12, 8), lambda table, rows: table[rows], prefix=2
    )
    assert repaired.repairs.literals == 0
    assert len(repaired.repairs.gathered) == 1
    assert taken(repaired) == [(1, 0, 0, 0)]


def test_a_table_without_rows_for_the_protected_tokens() -> None:
    repaired = check_table(
        lambda x, table: torch.cat([x[:, :2], x[:, 2:-1] + table, x[:, -1:]], dim=1),
        torch.randn(9, 8),
        lambda table, rows: table[rows[2:-1] - 2],
        prefix=2,
        suffix=1,
    )
    assert taken(repaired) == [(1, 0, 2, 1)]


def test_a_table_for_heads() -> None:
    repaired = check_table(
        lambda x, table: heads(x) * table, torch.randn(2, 12, 4), lambda table, rows: table[:, rows], prefix=1
    )
    assert taken(repaired) == [(2, 0, 0, 0)]


def test_a_bias_over_both_axes() -> None:
    repaired = check_table(
        lambda x, table: heads(x) @ heads(x).mT + table,
        torch.randn(2, 12, 12),
        lambda table, rows: table[:, rows][:, :, rows],
        prefix=1,
    )
    assert taken(repaired) == [(2, 0, 0, 0), (3, 0, 0, 0)]
    assert repaired.repairs.counts()["gathered"] == 1


def test_a_bias_over_keys_only() -> None:
    repaired = check_table(
        lambda x, table: heads(x) @ heads(x).mT + table,
        torch.randn(12),
        lambda table, rows: table[rows],
        prefix=1,
    )
    assert [place[0] for place in taken(repaired)] == [3]


def test_a_table_as_long_as_the_channels_is_no_table_by_token() -> None:
    weight = torch.randn(12)
    repaired = repair(lambda x: x * weight, 12, 12)
    x, rows = torch.randn(3, 12, 12), rows_of(12, 7)
    torch.testing.assert_close(repaired.at(x, rows), ops.gather(x, rows) * weight)
    assert repaired.repairs.gathered == []


def test_a_row_that_is_spread_over_the_tokens_is_taken_for_a_table() -> None:
    repaired = check(
        lambda x: x[:, :1].mean(2, keepdim=True).expand(-1, x.shape[1], 3) + x[..., :3], 13, 8, prefix=1
    )
    assert repaired.repairs.counts() == {"literals": 0, "gathered": 1, "scatters": 0, "region_ends": 0}


def test_a_table_that_is_read_twice_is_gathered_once() -> None:
    table = torch.randn(12, 8)
    repaired = repair(lambda x: (x * table) + (x.cos() * table), 12, 8)
    assert len(taken(repaired)) == 1
    assert len(repaired.repairs.gathered) == 2


# --- the ends of a region ---------------------------------------------------------------------

GRIDS: dict[str, tuple[Chain, str]] = {
    "a reshape to rows and columns": (
        lambda x: x[:, 1:].mT.reshape(x.shape[0], 8, 3, 4) + 1,
        "the whole grid",
    ),
    "a linear over the tokens": (
        lambda x: torch.nn.functional.linear(x.mT, torch.ones(5, 13)),
        "the whole grid",
    ),
    "every second patch": (lambda x: x[:, 1::2] * 2, "patch rows are read by position"),
    "a patch in the middle": (lambda x: x[:, 6] * 2, "patch rows are read by position: [6]"),
}


def test_keys_that_are_longer_than_their_values_do_not_fit() -> None:
    def attend(grid: Tensor, x: Tensor) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(grid, 2 * grid, x)

    repaired = repair(lambda x: attend(x.unflatten(1, (3, 4)).flatten(1, 2)[:, None], x[:, None]), 12, 8)
    x, rows = torch.randn(3, 12, 8), rows_of(12, 5)
    kept = ops.gather(x, rows)[:, None]
    expected = torch.nn.functional.scaled_dot_product_attention(x[:, None], 2 * kept, kept)
    torch.testing.assert_close(repaired.at(x, rows), expected)


def test_a_table_whose_length_is_no_number_does_not_fit() -> None:
    def chain(x: Tensor) -> Tensor:
        rows, columns = torch.tensor([[3, 4]])[0].tolist()
        return x * torch.arange(rows * columns).cos()[:, None]

    repaired = repair(chain, 12, 8)
    assert len(repaired.repairs.region_ends) == 1
    x = torch.randn(3, 12, 8)
    torch.testing.assert_close(repaired.at(x, rows_of(12, 5)), chain(x))


def test_an_operator_is_typed_by_its_decomposition_and_leaves_the_batch_free() -> None:
    def chain(x: Tensor) -> Tensor:  # one map for each token, resized
        maps = torch.nn.functional.interpolate(x.unflatten(2, (2, 4)), (3, 5), mode="bilinear")
        return maps.flatten(2).mT.reshape(x.shape[0] * 15, 12)

    repaired = repair(chain, 12, 8)
    assert repaired.repairs.region_ends == []
    kinds = [node.meta["val"] for node in repaired.module.graph.nodes if node.op == "call_function"]
    assert all(isinstance(kind.shape[0], torch.SymInt) for kind in kinds if isinstance(kind, Tensor))
    x, rows = torch.randn(1, 12, 8), rows_of(12, 5)
    torch.testing.assert_close(repaired.at(x, rows[:1]), chain(x)[:, rows[0]])


@pytest.mark.parametrize("name", GRIDS)
def test_what_needs_the_grid_gets_the_whole_stream(name: str) -> None:
    chain, reason = GRIDS[name]
    repaired = repair(chain, 13, 8, prefix=1)
    (end,) = repaired.repairs.region_ends
    assert reason in end
    assert __file__ in end
    x = torch.randn(3, 13, 8)
    torch.testing.assert_close(repaired.at(x, rows_of(13, 5, prefix=1)), chain(x))


READS: dict[str, tuple[Chain, tuple[int, int, tuple[int, ...]]]] = {
    "the first row": (lambda x: x[:, 0], (1, 0, (0,))),
    "the second row": (lambda x: x[:, 1], (2, 0, (1,))),
    "the last row": (lambda x: x[:, -1], (0, 1, (12,))),
    "all but the first three": (lambda x: x[:, 3:], (3, 0, tuple(range(3, 13)))),
    "the last two": (lambda x: x[:, -2:], (0, 2, (11, 12))),
    "all but both ends": (lambda x: x[:, 2:-1], (2, 1, tuple(range(2, 12)))),
}


@pytest.mark.parametrize("name", READS)
def test_protected_rows_may_be_read_by_position(name: str) -> None:
    chain, expected = READS[name]
    repaired = check(chain, 13, 8, prefix=3, suffix=2)
    (read,) = repaired.repairs.reads
    assert (read.front, read.back, read.rows) == expected


def test_a_read_behind_a_slice_counts_the_rows_that_were_sliced_off() -> None:
    repaired = check(lambda x: x[:, 1:][:, 2:], 13, 8, prefix=3)
    assert [(read.front, read.back) for read in repaired.repairs.reads] == [(1, 0), (3, 0)]
    short = repair(lambda x: x[:, 1:][:, 2:] + 0, 13, 8, prefix=2)
    assert len(short.repairs.region_ends) == 1  # row 2 is a patch


def test_a_mean_reads_no_rows_by_position() -> None:
    assert check(lambda x: x.amax(dim=1), 13, 8).repairs.reads == []


def test_the_axes_of_every_value_are_known() -> None:
    repaired = check(lambda x: (heads(x) @ heads(x).mT).mean(dim=-1), 13, 8)
    assert repaired.repairs.axes["matmul"] == (2, 3)
    assert repaired.repairs.axes["mean"] == (2,)


def test_sizes_of_the_new_graph_have_types() -> None:
    repaired = repair(lambda x: x[:, 1:].reshape(x.shape[0] * (x.shape[1] - 1), -1), 13, 8, prefix=1)
    sizes = [node for node in repaired.module.graph.nodes if node.target in (operator.add, operator.mul)]
    assert sizes
    assert all(isinstance(node.meta["val"], torch.SymInt) for node in sizes)
