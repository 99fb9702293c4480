from __future__ import annotations

import operator
import re
from pathlib import Path

import pytest
import sympy
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

import prunec
from prunec import compat, ops
from prunec.ir import graph
from prunec.ir.program import Program
from tests.tiny import ViT, captured

aten = torch.ops.aten


@pytest.fixture(scope="module")
def program() -> Program:
    return captured(ViT())


def test_only_this_package_touches_what_is_private_in_torch() -> None:
    private = re.compile(r"torch\._(?!_version)|torch\.fx\.experimental|import torch\.utils\._(?!pytree)")
    package = Path(prunec.__file__).parent
    found = {
        f"{path.relative_to(package)}: {line.strip()}"
        for path in package.rglob("*.py")
        if path.parent != package / "compat"
        for line in path.read_text(encoding="utf-8").splitlines()
        if private.search(line) and not line.lstrip().startswith(('"', "#"))
    }
    assert found == set()


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (aten.reshape.default, "reshape"),
        (aten.add.Tensor, "add"),
        (torch.ops.higher_order.wrap_with_set_grad_enabled, "wrap_with_set_grad_enabled"),
        (operator.getitem, "getitem"),
        (ops.gather, "gather"),
        ("weight", "weight"),
    ],
)
def test_the_plain_name_of_an_operator(target: object, name: str) -> None:
    assert compat.op_name(target) == name
    assert compat.is_aten(target) is (name in ("reshape", "add"))


def test_the_regions_that_may_be_inlined_exist() -> None:
    assert all(hasattr(torch.ops.higher_order, name) for name in compat.INLINABLE_REGIONS)


def test_what_changes_its_arguments() -> None:
    assert compat.mutates(aten.add_.Tensor)
    assert not compat.mutates(aten.add.Tensor)
    assert not compat.mutates(operator.add)


def test_what_differs_from_call_to_call() -> None:
    assert compat.is_random(aten.rand.default)
    assert compat.is_random(aten.dropout.default)
    assert not compat.is_random(aten.add.Tensor)
    assert not compat.is_random(operator.getitem)


@pytest.mark.parametrize(
    ("target", "args", "places"),
    [
        (aten.reshape.default, ("x", [2, 3, 4]), [(1, 0), (1, 1), (1, 2)]),
        (aten.expand.default, ("x", [-1, 3]), [(1, 0), (1, 1)]),
        (aten.narrow.default, ("x", 1, 0, 5), [(2,), (3,)]),
        (aten.slice.Tensor, ("x", 1, None, 5), [(3,)]),
        (aten.split_with_sizes.default, ("x", [1, 4], 1), [(1, 0), (1, 1)]),
        (aten.permute.default, ("x", [0, 2, 1]), []),
        (aten.transpose.int, ("x", 1, 2), []),
        (aten.linear.default, ("x", "w"), []),
        (operator.getitem, ("x", 3), []),
    ],
)
def test_where_an_operator_takes_sizes(
    target: object, args: tuple[object, ...], places: list[tuple[int, ...]]
) -> None:
    assert list(compat.symbolic_positions(target, args)) == places


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


def test_an_attempt_that_forces_a_symbol_is_told_and_undone(program: Program) -> None:
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


def test_the_spec_of_inputs_and_outputs_survives(program: Program) -> None:
    leaves, spec = compat.tree_flatten((({"a": 1, "b": (2, 3)},), {}))
    assert leaves == [1, 2, 3]
    assert compat.tree_unflatten(leaves, spec) == (({"a": 1, "b": (2, 3)},), {})
    assert program.interface.in_spec.num_leaves == 1


def test_a_flat_graph_returns_a_tuple(program: Program) -> None:
    found = program.module(torch.randn(2, 3, 20, 20))
    assert isinstance(found, tuple)
    assert found[0].shape == (2, 7)


def test_only_the_batch_becomes_a_symbol() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return x * scale

    program = captured(Two(), torch.randn(2, 5, 3, 1), torch.randn(3, 1))
    x, scale = program.graph.find_nodes(op="placeholder")
    assert [isinstance(size, torch.SymInt) for size in graph.shape(x)] == [True, False, False, False]
    assert [isinstance(size, torch.SymInt) for size in graph.shape(scale)] == [False, False]


def test_a_line_of_source() -> None:
    assert compat.source_text(__file__, 1) == "from __future__ import annotations"
    assert compat.source_text("nowhere.py", 3) == ""
