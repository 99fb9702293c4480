from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from prunec import ops
from prunec.compiler import plan
from prunec.errors import VerificationError
from prunec.ir import graph
from prunec.ir.program import Planned, Program, Recognised
from prunec.policy.policy import Policy
from prunec.verify.certificate import TOLERANCE, Certificate, certify, keep_all
from tests.tiny import Attention, Block, ViT, pixels, pruned, recognised


class Tabled(Attention):
    """A table by token, and an output that is mixed over neighbours where `mix` says so."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(26, 16))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.table)


@pytest.fixture(scope="module")
def dense() -> Recognised:
    torch.manual_seed(1)
    return recognised(ViT(lambda: Block(Tabled), read=lambda x: x))


@pytest.fixture
def half(dense: Recognised) -> Planned:
    """A program of its own for each test to break."""
    program = pruned(dense)
    return program.replace(module=graph.copy(program.module))


def find(program: Program, target: object) -> fx.Node:
    return next(node for node in program.graph.nodes if node.target is target)


def test_an_honest_program_passes(dense: Recognised, half: Planned) -> None:
    certificate = certify(dense, half)
    assert certificate.own_counts is not None
    assert max(certificate.identity, certificate.permutation, certificate.own_counts) < 1e-6
    assert (certificate.tolerance, certificate.batch, certificate.unproven) == (1e-5, 2, None)
    assert str(certificate) == (
        f"identity at keep=1.0: {certificate.identity:.1e}, permutation: {certificate.permutation:.1e}, "
        f"own counts: {certificate.own_counts:.1e} (largest relative difference, at most 1e-05)"
    )


def test_it_runs_on_any_input_of_the_user(dense: Recognised, half: Planned) -> None:
    assert certify(dense, half, (pixels(3),)).batch == 3


def test_a_program_without_sites_is_the_same_program(dense: Recognised) -> None:
    certificate = certify(dense, plan(dense, Policy.load("none")))
    assert (certificate.identity, certificate.permutation) == (0.0, 0.0)


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
    dense: Recognised, half: Planned, name: str
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


def test_values_that_are_no_numbers_are_found(dense: Recognised, half: Planned) -> None:
    with pytest.raises(VerificationError, match=": inf, at most 1e-05 is allowed"):
        certify(dense, scaled(half, float("nan")))


def test_a_wrong_shape_is_found(dense: Recognised, half: Planned) -> None:
    last = graph.output_node(half.graph).args[0][0]
    with half.graph.inserting_after(last):
        shorter = half.graph.call_function(torch.narrow, (last, 1, 0, 20))
    last.replace_all_uses_with(shorter, delete_user_cb=lambda user: user is not shorter)
    graph.tidy(half.module)
    with pytest.raises(VerificationError, match=": inf, at most 1e-05 is allowed"):
        certify(dense, half)


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


def half_precision() -> Program:
    torch.manual_seed(1)
    model = ViT(lambda: Block(Tabled), read=lambda x: x)
    return recognised(model.to(torch.bfloat16), pixels().to(torch.bfloat16))


def test_sixteen_bits_may_round_their_own_way_and_the_permutation_is_sharp() -> None:
    program = half_precision()
    half = pruned(program)
    certificate = certify(program, scaled(scaled(half, 3.0), 1 / 3))
    assert 1e-3 < certificate.identity < 2e-2
    assert certificate.permutation < 1e-6
    assert (certificate.tolerance, certificate.permutation_tolerance) == (2e-2, 1e-5)
    assert f"in float32, own counts: {certificate.own_counts:.1e} (largest" in str(certificate)
    assert str(certificate).endswith("(largest relative difference, at most 2e-02 and 1e-05)")
    with pytest.raises(VerificationError, match=r"keep=1\.0: 6.*, at most 2e-02 is allowed"):
        certify(program, scaled(half, 1 + 1 / 16))
    with pytest.raises(VerificationError, match=r"permutation certificate: 7\.8e-03, at most 1e-05 is"):
        certify(program, scaled(half, 1 + 1 / 128))  # less than bfloat16 may round


@pytest.mark.parametrize("name", SABOTAGE)
def test_sabotage_is_found_in_sixteen_bits_too(name: str) -> None:
    program = half_precision()
    half = pruned(program)
    certify(program, half)
    sabotage, _, place = SABOTAGE[name]
    sabotage(half)
    graph.tidy(half.module)
    with pytest.raises(VerificationError, match="differs from the original under") as caught:
        certify(program, half)
    assert (caught.value.where or "").startswith(place)


def test_a_table_of_small_numbers_that_is_not_gathered_is_found_in_sixteen_bits() -> None:
    # Its effect is smaller than bfloat16's own rounding: only the permutation in float32 sees it.
    torch.manual_seed(1)
    model = ViT(lambda: Block(Tabled), read=lambda x: x)
    for block in model.blocks:
        block.attn.table.data.mul_(1e-3).add_(1.0)
    program = recognised(model.to(torch.bfloat16), pixels().to(torch.bfloat16))
    half = pruned(program)
    assert certify(program, half).permutation < 1e-6
    table_not_gathered(half)
    graph.tidy(half.module)
    with pytest.raises(VerificationError, match=r"permutation certificate: .*e-0[345], at most 1e-05"):
        certify(program, half)


def test_the_weights_stay_as_narrow_as_they_were() -> None:
    program = half_precision()
    half = pruned(program)
    certify(program, half)
    for module in (program.module, half.module):
        assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}
        assert all(node.meta["val"].dtype != torch.float32 for node in module.graph.nodes if is_float(node))


def is_float(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor) and node.meta["val"].is_floating_point()


class Upcast(Attention):
    """A softmax in float32 inside a model of another precision, as Hugging Face spells it."""

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1)).softmax(dim=-1, dtype=torch.float32).to(q.dtype)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, t, c))


def test_the_coarsest_precision_of_a_model_decides() -> None:
    program = recognised(ViT(lambda: Block(Upcast)).double(), pixels().double())
    certificate = certify(program, pruned(program))
    assert certificate.tolerance == 1e-5
    assert 1e-9 < certificate.permutation < 1e-6  # float64 alone would refuse it


class Answers(ViT):
    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(pixels).float()


def test_a_sixteen_bit_model_that_answers_in_float32_is_not_held_to_float32() -> None:
    program = recognised(Answers().to(torch.bfloat16), pixels().to(torch.bfloat16))
    certificate = certify(program, scaled(scaled(pruned(program), 1 + 1 / 128), 128 / 129))
    assert (certificate.tolerance, certificate.permutation_tolerance) == (2e-2, 1e-5)


def test_at_its_own_counts_the_program_must_yield_numbers_of_the_same_shapes(
    dense: Recognised, half: Planned
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
