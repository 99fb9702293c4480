from __future__ import annotations

import pytest
import sympy
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from prunec import compat
from prunec.ir.program import Program
from tests.tiny import ViT, captured

aten = torch.ops.aten


@pytest.fixture(scope="module")
def program() -> Program:
    return captured(ViT())


def test_a_graph_knows_its_fake_mode(program: Program) -> None:
    mode = compat.fake_mode_of(program.graph)
    (x,) = program.graph.find_nodes(op="placeholder")
    assert isinstance(x.meta["val"], FakeTensor)
    assert x.meta["val"].fake_mode is mode
    with pytest.raises(ValueError, match="the graph carries no fake tensors"):
        compat.fake_mode_of(torch.fx.symbolic_trace(nn.Identity()).graph)


def test_a_new_symbol_is_a_size_that_equals_nothing_else(program: Program) -> None:
    mode = compat.fake_mode_of(program.graph)
    one, other = compat.new_symbol(mode, "one", 17), compat.new_symbol(mode, "other", 19)
    assert compat.expression(one).is_Symbol
    assert compat.expression(one) != compat.expression(other)
    assert compat.expression(one * 2 + 1) == 2 * compat.expression(one) + 1
    assert compat.expression(7) == sympy.Integer(7)
    made = compat.fake_like(mode, (one, 4), torch.float64, torch.device("cpu"))
    assert (made.dtype, made.shape[1]) == (torch.float64, 4)
    assert compat.expression(made.shape[0]) == compat.expression(one)


def test_an_attempt_that_forces_a_symbol_is_reported_and_undone(program: Program) -> None:
    mode = compat.fake_mode_of(program.graph)
    size = compat.new_symbol(mode, "forced", 23)
    symbol = compat.expression(size)
    x = compat.fake_like(mode, (2, size), torch.float32, torch.device("cpu"))
    fixed = compat.fake_like(mode, (2, 23), torch.float32, torch.device("cpu"))
    result, forced = compat.evaluate(mode, torch.add, (x, 1), {})
    assert forced == set()
    assert compat.expression(result.shape[1]) == symbol
    result, forced = compat.evaluate(mode, torch.add, (x, fixed), {})
    assert forced == {symbol}
    assert compat.expression(result.shape[1]) in (symbol, 23)
    assert symbol not in mode.shape_env.replacements
    assert compat.expression(x.shape[1]) == symbol  # what PyTorch remembered of the attempt is stale
    assert not mode.shape_env.var_to_range[symbol].is_singleton()
    assert compat.evaluate(mode, torch.add, (x, fixed), {})[1] == {symbol}
    with pytest.raises((RuntimeError, ValueError)):
        compat.evaluate(mode, torch.reshape, (x, (2, 5, 7)), {})


def test_a_size_without_a_value_forces_what_it_is_compared_with(program: Program) -> None:
    mode = compat.fake_mode_of(program.graph)
    size = compat.new_symbol(mode, "compared", 29)
    x = compat.fake_like(mode, (2, size), torch.float32, torch.device("cpu"))
    number = compat.fake_like(mode, (), torch.int64, torch.device("cpu"))
    read, _ = compat.evaluate(mode, aten.item.default, (number,), {})
    table = compat.fake_like(mode, (read,), torch.float32, torch.device("cpu"))
    for _ in range(2):  # the assertion of the first attempt is forgotten
        _, forced = compat.evaluate(mode, torch.mul, (x, table), {})
        assert compat.expression(size) in forced


def test_attention_compares_keys_with_values(program: Program) -> None:
    mode = compat.fake_mode_of(program.graph)
    long, short = (
        compat.fake_like(mode, (2, 1, length, 8), torch.float32, torch.device("cpu")) for length in (31, 17)
    )
    attend = aten.scaled_dot_product_attention.default
    assert compat.evaluate(mode, attend, (short, long, long), {})[0].shape == (2, 1, 17, 8)
    with pytest.raises(RuntimeError):
        compat.evaluate(mode, attend, (long, long, short), {})
