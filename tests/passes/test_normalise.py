from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunec.ir import graph
from prunec.ir.program import Program
from prunec.passes import run_passes
from prunec.passes.normalise import Normalise
from tests.tiny import captured, counts, normalised, run, targets_of


class Call(nn.Module):
    """A model that is one function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def exactly_normalised(function: Callable[[Tensor], Tensor]) -> tuple[Program, dict[str, int]]:
    """The normalised program of a function of x: [B, 6, 4], proved equal to the function, bit for bit."""
    program = normalised(Call(function), torch.randn(2, 6, 4))
    for batch in (1, 3):
        x = torch.randn(batch, 6, 4)
        assert torch.equal(run(program, x)[0], function(x))
    return program, counts(program, "normalise")


def attend(x: Tensor, mask: Tensor) -> Tensor:
    query = x.unsqueeze(1)
    return F.scaled_dot_product_attention(query, query, query, attn_mask=mask)


# --- masks ------------------------------------------------------------------------------------


def ones_for_each_image(x: Tensor) -> Tensor:
    """As Hugging Face makes them: one row of True, expanded to the batch."""
    return (torch.arange(6) >= 0)[None, None, None, :].expand(x.shape[0], 1, 6, 6)


def by_keyword(x: Tensor) -> Tensor:
    query = x.unsqueeze(1)
    return F.scaled_dot_product_attention(
        query, query, value=query, attn_mask=ones_for_each_image(x), scale=0.1
    )


NOTHING_HIDDEN: dict[str, Callable[[Tensor], Tensor]] = {
    "expanded": lambda x: attend(x, ones_for_each_image(x)),
    "by keyword": by_keyword,
    "one row": lambda x: attend(x, torch.ones(1, 6, dtype=torch.bool)),
    "from a float": lambda x: attend(x, torch.ones(6).bool().expand(x.shape[0], 1, 6, 6)),
    "additive zeros": lambda x: attend(x, torch.zeros(6, 6)),
    "additive, from True": lambda x: attend(
        x, (torch.ones(1, 6, dtype=torch.bool).logical_not()).float() * -1e9
    ),
}


@pytest.mark.parametrize("name", NOTHING_HIDDEN)
def test_a_mask_that_hides_nothing_is_dropped(name: str) -> None:
    program = normalised(Call(NOTHING_HIDDEN[name]), torch.randn(2, 6, 4))
    assert counts(program, "normalise")["masks"] == 1
    (attention,) = [node for node in program.graph.nodes if "scaled_dot" in node.name]
    assert len(attention.all_input_nodes) == 1
    assert set(targets_of(program)) <= {"unsqueeze", "scaled_dot_product_attention"}
    x = torch.randn(3, 6, 4)
    torch.testing.assert_close(run(program, x)[0], NOTHING_HIDDEN[name](x), rtol=0, atol=1e-6)


def one_hidden(x: Tensor) -> Tensor:
    return attend(x, (torch.arange(6) != 3)[None, None, None, :].expand(x.shape[0], 1, 6, 6))


SOMETHING_HIDDEN: dict[str, Callable[[Tensor], Tensor]] = {
    "one False": one_hidden,
    "all False, from zeros": lambda x: attend(x, torch.zeros(1, 6).bool()),
    "a bias": lambda x: attend(x, torch.arange(36).view(6, 6) / 36),
    "additive ones but for one": lambda x: attend(x, (torch.arange(6)[None] == 2).float()),
    "from the pixels": lambda x: attend(x, (x[:, None, :, 0] > -9).unsqueeze(1).expand(x.shape[0], 1, 6, 6)),
}


@pytest.mark.parametrize("name", SOMETHING_HIDDEN)
def test_a_mask_that_may_hide_something_stays(name: str) -> None:
    program, done = exactly_normalised(SOMETHING_HIDDEN[name])
    assert done["masks"] == 0
    (attention,) = [node for node in program.graph.nodes if "scaled_dot" in node.name]
    assert len(attention.all_input_nodes) == 2


def test_a_mask_that_is_random_stays_whatever_it_happens_to_be() -> None:
    program = normalised(Call(lambda x: attend(x, torch.rand(1, 6) > -1)), torch.randn(2, 6, 4))
    assert counts(program, "normalise")["masks"] == 0


def test_a_mask_that_is_a_parameter_stays() -> None:
    class Biased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(6, 6))

        def forward(self, x: Tensor) -> Tensor:
            return attend(x, self.bias)

    program = normalised(Biased(), torch.randn(2, 6, 4))
    assert counts(program, "normalise")["masks"] == 0


# --- regions ----------------------------------------------------------------------------------


def with_region(x: Tensor) -> Tensor:
    y = x * 2
    with torch.enable_grad():
        first = y + 1
        second = torch.sin(first) * y
    return first * second + y


def test_a_region_is_inlined() -> None:
    before = captured(Call(with_region), torch.randn(2, 6, 4))
    assert "wrap_with_set_grad_enabled" in targets_of(before)
    program, done = exactly_normalised(with_region)
    assert done["regions"] == 1
    assert targets_of(program) == ["mul", "add", "sin", "mul", "mul", "add"]
    assert [node.name for node in program.graph.nodes if node.op == "get_attr"] == []


def test_the_region_may_be_used_twice() -> None:
    def function(x: Tensor) -> Tensor:
        for _ in range(2):
            with torch.enable_grad():
                x = x.cos() + 1
        return x

    program, done = exactly_normalised(function)
    assert done["regions"] == 2
    assert targets_of(program) == ["cos", "add"] * 2


# --- operators that do nothing, and repeats ---------------------------------------------------


def idle(x: Tensor) -> Tensor:
    x = F.dropout(x, 0.1, training=False)
    x = F.dropout(x, 0.0, training=True)
    x = x[:, 0:, :]
    return x.to(torch.float32) + 1


def test_operators_that_do_nothing_are_dropped() -> None:
    program, done = exactly_normalised(idle)
    assert done["no-ops"] >= 4
    assert set(targets_of(program)) <= {"add", "to"}


def busy(x: Tensor) -> Tensor:
    return x[:, 1:], x[:, :5], x[:, ::2], x.to(torch.float64)


def test_slices_that_leave_something_out_stay() -> None:
    program = normalised(Call(busy), torch.randn(2, 6, 4))
    x = torch.randn(3, 6, 4)
    for found, expected in zip(run(program, x), busy(x), strict=True):
        assert torch.equal(found, expected)
        assert found.dtype == expected.dtype


def test_dropout_in_training_stays() -> None:
    program = normalised(Call(lambda x: F.dropout(x, 0.5, training=True)), torch.randn(2, 6, 4))
    assert targets_of(program) == ["dropout"]
    assert 0 < int((run(program, torch.ones(2, 60, 4))[0] == 0).sum()) < 480


def test_what_is_computed_twice_is_computed_once() -> None:
    def function(x: Tensor) -> Tensor:
        table = torch.arange(6).float()
        again = torch.arange(6).float()
        return x * table.sin()[:, None] + x * again.sin()[:, None] + x * again.cos()[:, None]

    program, done = exactly_normalised(function)
    assert done["repeats"] >= 3
    assert targets_of(program).count("arange") == 1
    assert targets_of(program).count("sin") == 1
    assert targets_of(program).count("cos") == 1


def test_a_number_that_is_read_off_a_constant_is_written_down() -> None:
    def function(x: Tensor) -> Tensor:
        rows, columns = torch.tensor([[3, 2]])[0].tolist()
        return x * torch.arange(rows * columns).view(rows, columns).flatten().cos()[:, None]

    program, done = exactly_normalised(function)
    assert done["numbers"] == 3  # rows, columns and their product
    (table,) = (node for node in program.graph.nodes if graph.op(node) == "cos")
    assert tuple(table.meta["val"].shape) == (6,)
    assert all(isinstance(size, int) for size in table.meta["val"].shape)


def assigned(x: Tensor) -> Tensor:
    """Slices that are written in place: a whole one, one of another type, and one that is broadcast."""
    y = torch.empty_like(x)
    y[:] = x.sin()
    y[:, 1] = (x[:, 0] > 0).to(torch.int64)
    y[:, 2:4] = x[:, :1]
    return y


def test_what_is_written_into_a_slice_has_a_gradient() -> None:
    program, done = exactly_normalised(assigned)
    assert done["copies"] == 3
    assert "copy" not in targets_of(program)
    x, y = (torch.ones(2, 6, 4, requires_grad=True) for _ in range(2))
    program.module(x)[0].sum().backward()
    assigned(y).sum().backward()
    assert torch.equal(x.grad, y.grad)


def test_a_number_that_is_read_off_an_input_stays() -> None:
    program = normalised(Call(lambda x: x + x.sum().item()), torch.randn(2, 6, 4))
    assert counts(program, "normalise")["numbers"] == 0
    assert "item" in targets_of(program)


def test_random_numbers_are_drawn_anew_each_time() -> None:
    program = normalised(Call(lambda x: torch.rand_like(x) - torch.rand_like(x)), torch.randn(2, 6, 4))
    assert counts(program, "normalise")["repeats"] == 0
    assert run(program, torch.ones(2, 6, 4))[0].abs().max() > 0.1


def test_equal_numbers_of_different_kinds_are_no_repeats() -> None:
    program, _ = exactly_normalised(
        lambda x: (x * 2).sum(-1, keepdim=True) + (x * 2.5).sum(-1, keepdim=False)[..., None]
    )
    assert targets_of(program).count("sum") == 2


def test_the_program_given_is_not_changed() -> None:
    before = captured(Call(idle), torch.randn(2, 6, 4))
    text = str(before.graph)
    after = run_passes((Normalise(),), before)
    assert str(before.graph) == text != str(after.graph)
    assert [stage.name for stage in after.stages] == ["capture", "normalise"]
