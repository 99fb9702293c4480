from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from prunec import graph, ops
from prunec.certificate import TOLERANCE, Certificate, certify, keep_all, relative_difference
from prunec.errors import VerificationError
from prunec.program import Program
from tests.tiny import Attention, Block, ViT, pixels, pruned, recognised


class Tabled(Attention):
    """A table by token, and an output that is mixed over neighbours where `mix` says so."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(26, 16))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.table)


@pytest.fixture(scope="module")
def dense() -> Program:
    torch.manual_seed(1)
    return recognised(ViT(lambda: Block(Tabled), read=lambda x: x))


@pytest.fixture
def half(dense: Program) -> Program:
    """A program of its own for each test to break."""
    program = pruned(dense)
    return program.replace(module=graph.copy(program.module))


def find(program: Program, target: object) -> fx.Node:
    return next(node for node in program.graph.nodes if node.target is target)


def test_an_honest_program_passes(dense: Program, half: Program) -> None:
    certificate = certify(dense, half)
    assert max(certificate.identity, certificate.permutation) < 1e-6
    assert (certificate.tolerance, certificate.batch) == (1e-5, 2)
    assert str(certificate) == (
        f"identity at keep=1.0: {certificate.identity:.1e}, permutation: {certificate.permutation:.1e} "
        "(largest relative difference, at most 1e-05)"
    )


def test_it_runs_on_any_input_of_the_user(dense: Program, half: Program) -> None:
    assert certify(dense, half, (pixels(3),)).batch == 3


def test_a_program_without_sites_is_the_same_program(dense: Program) -> None:
    certificate = certify(dense, dense)
    assert (certificate.identity, certificate.permutation) == (0.0, 0.0)


# --- sabotage ---------------------------------------------------------------------------------


def table_not_gathered(program: Program) -> None:
    """Right while everything is kept in order, wrong in any other."""
    take = find(program, ops.take)
    take.replace_all_uses_with(take.args[0])


def table_gathered_by_rows_off_by_one(program: Program) -> None:
    take = find(program, ops.take)
    table, index, *rest = take.args
    with program.graph.inserting_before(take):
        shifted = program.graph.call_function(
            torch.remainder, (program.graph.call_function(operator.add, (index, 1)), 26)
        )
    shifted.prepend(shifted.args[0])
    take.args = (table, shifted, *rest)


def order_not_restored(program: Program) -> None:
    back = find(program, ops.scatter)
    back.replace_all_uses_with(back.args[1])


def scattered_off_by_one(program: Program) -> None:
    back = find(program, ops.scatter)
    with program.graph.inserting_before(back):
        rolled = program.graph.call_function(torch.roll, (back.args[2], 1, 1))
    back.args = (*back.args[:2], rolled, back.args[3])


def mixed_over_neighbours(program: Program) -> None:
    """A convolution over the token axis, which the compiler would have to undo the order for."""
    gather = find(program, ops.gather)
    with program.graph.inserting_after(gather):
        mixed = program.graph.call_function(blur, (gather,))
    gather.replace_all_uses_with(mixed, delete_user_cb=lambda user: user is not mixed)


def blur(x: Tensor) -> Tensor:
    return x + 0.1 * x.roll(1, dims=1)


def weights_changed(program: Program) -> None:
    linear = next(
        node
        for node in program.graph.nodes
        if graph.op(node) == "linear" and "mlp" in graph.module_path(node)
    )
    with program.graph.inserting_after(linear):
        scaled = program.graph.call_function(operator.mul, (linear, 1.01))
    linear.replace_all_uses_with(scaled, delete_user_cb=lambda user: user is not scaled)


# what is broken; under which comparison it shows; the first operator of the model that comes out wrong
SABOTAGE: dict[str, tuple[Callable[[Program], None], str, str]] = {
    "a table not gathered": (
        table_not_gathered,
        "the permutation certificate",
        "node mul_1 in blocks.1.attn",
    ),
    "a table off by one": (table_gathered_by_rows_off_by_one, "keep=1.0", "node mul_1 in blocks.1.attn"),
    "an order not restored": (order_not_restored, "the permutation certificate", ""),
    "rows put back off by one": (scattered_off_by_one, "keep=1.0", ""),
    "neighbours mixed": (mixed_over_neighbours, "keep=1.0", "node layer_norm_2 in blocks.1.norm1"),
    "weights changed": (weights_changed, "keep=1.0", "node gelu in blocks.0.mlp"),
}


@pytest.mark.parametrize("name", SABOTAGE)
def test_sabotage_is_found_and_the_first_wrong_node_is_named(
    dense: Program, half: Program, name: str
) -> None:
    sabotage, comparison, place = SABOTAGE[name]
    certify(dense, half)
    sabotage(half)
    graph.tidy(half.module)
    with pytest.raises(VerificationError, match=f"differs from the original under {comparison}: ") as caught:
        certify(dense, half)
    assert (caught.value.where or "").startswith(place)
    assert "nothing was returned" in (caught.value.remedy or "")
    assert caught.value.exit_code == 4


def test_values_that_are_no_numbers_are_found(dense: Program, half: Program) -> None:
    with pytest.raises(VerificationError, match=": inf, at most 1e-05 is allowed"):
        certify(dense, scaled(half, float("nan")))


def test_a_wrong_shape_is_found(dense: Program, half: Program) -> None:
    last = graph.output_node(half.graph).args[0][0]
    with half.graph.inserting_after(last):
        shorter = half.graph.call_function(torch.narrow, (last, 1, 0, 20))
    last.replace_all_uses_with(shorter, delete_user_cb=lambda user: user is not shorter)
    graph.tidy(half.module)
    with pytest.raises(VerificationError, match=": inf, at most 1e-05 is allowed"):
        certify(dense, half)


# --- its parts --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_tolerance_is_that_of_the_precision(dtype: torch.dtype) -> None:
    model = ViT().eval().to(dtype)
    program = recognised(model, pixels().to(dtype))
    certificate = certify(program, pruned(program))
    assert certificate.tolerance == TOLERANCE[dtype]
    assert certificate.permutation <= certificate.tolerance


def scaled(program: Program, factor: float) -> Program:
    """The program with its first output times a number."""
    program = program.replace(module=graph.copy(program.module))
    last = graph.output_node(program.graph).args[0][0]
    with program.graph.inserting_after(last):
        product = program.graph.call_function(operator.mul, (last, factor))
    last.replace_all_uses_with(product, delete_user_cb=lambda user: user is not product)
    graph.tidy(program.module)
    return program


def test_bfloat16_may_differ_by_its_own_rounding_and_no_more() -> None:
    program = recognised(ViT().to(torch.bfloat16), pixels().to(torch.bfloat16))
    half = pruned(program)
    assert 0 < certify(program, scaled(half, 1 + 1 / 128)).identity < 2e-2
    with pytest.raises(VerificationError, match="at most 2e-02 is allowed"):
        certify(program, scaled(half, 1 + 1 / 16))


def test_at_its_own_counts_the_program_must_yield_numbers_of_the_same_shapes(
    dense: Program, half: Program
) -> None:
    last = graph.output_node(half.graph).args[0][0]
    select = find(half, ops.select)
    with half.graph.inserting_after(last):
        dropped = half.graph.call_function(fails_when_short, (last, select))
    last.replace_all_uses_with(dropped, delete_user_cb=lambda user: user is not dropped)
    graph.tidy(half.module)
    with pytest.raises(
        VerificationError, match="output 0 of the pruned model holds values that are not finite"
    ):
        certify(dense, half)


def fails_when_short(x: Tensor, index: Tensor) -> Tensor:
    return x if index.shape[1] == x.shape[1] else x / 0


def test_differences_are_relative_to_the_largest_value() -> None:
    expected = torch.tensor([1.0, -100.0])
    assert relative_difference(torch.tensor([2.0, -100.0]), expected) == pytest.approx(0.01)
    assert relative_difference(expected, expected) == 0.0
    assert relative_difference(expected[:1], expected) == float("inf")
    assert relative_difference(expected * float("nan"), expected) == float("inf")
    assert relative_difference(torch.empty(0, 3), torch.empty(0, 3)) == 0.0
    assert relative_difference(torch.zeros(2), torch.zeros(2)) == 0.0


def test_a_permutation_moves_patches_only_each_image_its_own_way() -> None:
    score = torch.rand(4, 20)
    rows = keep_all(score, 2, 3, torch.Generator().manual_seed(0))
    assert rows[:, :2].tolist() == [[0, 1]] * 4
    assert rows[:, -3:].tolist() == [[17, 18, 19]] * 4
    assert rows.sort(dim=1).values.tolist() == [list(range(20))] * 4
    assert len({tuple(image) for image in rows.tolist()}) == 4
    assert keep_all(score, 2, 3, None).tolist() == [list(range(20))] * 4


def test_it_is_data() -> None:
    assert Certificate(0.0, 1e-7, 1e-5, 0.1, 2) == Certificate(0.0, 1e-7, 1e-5, 0.1, 2)
