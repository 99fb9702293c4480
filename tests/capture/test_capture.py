from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunec import compat
from prunec.capture.capture import capture
from prunec.errors import CaptureError, UsageError
from prunec.ir import graph
from prunec.ir.program import Program, ProgramModule
from tests.capture.lines import line_of
from tests.tiny import ViT, captured, counts, pixels, run


@pytest.fixture(scope="module")
def vit() -> ViT:
    return ViT().eval()


@pytest.fixture(scope="module")
def program(vit: ViT) -> Program:
    return captured(vit)


def test_the_batch_is_a_symbol(program: Program) -> None:
    (placeholder,) = program.graph.find_nodes(op="placeholder")
    batch = graph.shape(placeholder)[0]
    assert isinstance(batch, torch.SymInt)
    assert compat.expression(batch).is_Symbol
    last = graph.output_node(program.graph).args[0][0]
    assert compat.expression(graph.shape(last)[0]) == compat.expression(batch)
    assert not any(
        isinstance(argument, int) and argument in (2, 52, 50)
        for node in program.graph.nodes
        if graph.op(node) in ("reshape", "view", "expand")
        for argument in node.args[1][:1]
    )


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_any_batch_runs(vit: ViT, program: Program, batch: int) -> None:
    x = pixels(batch)
    torch.testing.assert_close(run(program, x)[0], vit(x), rtol=0, atol=0)


def test_the_model_is_not_changed_and_its_parameters_are_shared(vit: ViT) -> None:
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    names = set(vars(vit))
    made = captured(vit)
    assert set(vars(vit)) == names
    assert all(torch.equal(value, before[name]) for name, value in vit.state_dict().items())
    mine, theirs = dict(made.module.named_parameters()), dict(vit.named_parameters())
    assert mine.keys() == theirs.keys()
    assert all(mine[name] is theirs[name] for name in theirs)
    assert all(mine[name].requires_grad for name in mine)


def test_the_record_counts_the_operators(program: Program) -> None:
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    assert counts(program, "capture") == {"operators": len(calls)}
    assert [stage.name for stage in program.stages] == ["capture"]


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        y[:, 0] = 1.0
        y.add_(x).relu_()
        return y.mul_(3)


def test_operators_in_place_become_functional_with_equal_results() -> None:
    model, x = InPlace(), torch.randn(3, 4)
    made = captured(model, torch.randn(2, 4))
    assert not any(compat.mutates(node.target) for node in made.graph.nodes)
    before = x.clone()
    torch.testing.assert_close(run(made, x)[0], model(x), rtol=0, atol=0)
    assert torch.equal(x, before)


def test_buffers_are_shared_too() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()
    made = captured(model, torch.randn(2, 4))
    model[0].running_mean.fill_(3.0)
    x = torch.randn(3, 4)
    torch.testing.assert_close(run(made, x)[0], model(x), rtol=0, atol=0)


class Lists(ViT):
    """Images one by one, as detectors take them."""

    def forward(self, images: list[Tensor]) -> Tensor:
        return super().forward(torch.stack(images))


def test_images_in_a_list_are_a_batch_that_is_fixed_by_the_example() -> None:
    images = list(pixels(2))
    with pytest.warns(UserWarning, match="one by one in a list"):
        made = captured(Lists(), images)
    assert made.interface.batch is None
    module = ProgramModule(made)
    torch.testing.assert_close(module(images), module(list(torch.stack(images))))
    with pytest.raises(UsageError, match="the inputs nest differently") as caught:
        module([*images, images[0]])
    assert caught.value.remedy == ("expected images[0]=float32[3, 20, 20], images[1]=float32[3, 20, 20]")


def test_batches_in_a_list_are_batches() -> None:
    class Halves(ViT):
        def forward(self, halves: list[Tensor]) -> Tensor:
            return super().forward(torch.cat(halves, dim=-1))

    model, halves = Halves().eval(), [pixels()[..., :10], pixels()[..., 10:]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = captured(model, halves)
    x = pixels(5)
    torch.testing.assert_close(
        ProgramModule(made)([x[..., :10], x[..., 10:]]), model([x[..., :10], x[..., 10:]])
    )


@dataclass
class Unknown:
    """A dataclass that is not registered with PyTorch."""

    logits: Tensor


def test_a_dataclass_that_pytorch_does_not_know_is_to_be_registered() -> None:
    class Returns(ViT):
        def forward(self, pixels: Tensor) -> Unknown:
            return Unknown(super().forward(pixels))

    with pytest.raises(CaptureError, match="Returns takes and returns") as caught:
        captured(Returns())
    assert caught.value.remedy == ("register the dataclass first: torch.export.register_dataclass(Unknown)")


def test_a_model_in_training_mode_is_refused() -> None:
    with pytest.raises(UsageError, match="the model is in training mode") as caught:
        capture(ViT().train(), (pixels(),))
    assert caught.value.remedy == "call model.eval() before transforming it"


def test_an_example_without_a_tensor_is_refused() -> None:
    with pytest.raises(UsageError, match="the example holds no tensor"):
        capture(ViT().eval(), (), {"pixels": 3})


def test_a_batch_of_none_is_refused() -> None:
    with pytest.raises(UsageError, match="the example holds no image: its batch is 0"):
        captured(ViT(), pixels(0))


class Fixed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        size = int(x.shape[0])
        return x * size


class FixedInside(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(2, 2, 2)


def test_a_batch_that_the_model_fixes_is_a_warning_with_the_line() -> None:
    x = torch.randn(2, 4)
    with pytest.warns(UserWarning, match="the batch is fixed at 2") as caught:
        made = captured(Fixed(), x)
    text = str(caught[0].message)
    assert f"{line_of(__file__, 'size = int(x.shape[0])')}  size = int(x.shape[0])" in text
    assert text == f"{made.stages[0].notes[0]}; the result runs at this batch only"
    assert made.interface.batch is None
    assert torch.equal(ProgramModule(made)(x), x * 2)
    with pytest.raises(UsageError, match=r"input 'x' is float32\[3, 4\], expected float32\[2, 4\]"):
        ProgramModule(made)(torch.randn(3, 4))


def test_a_line_of_pytorch_is_not_taken_for_one_of_the_model() -> None:
    with pytest.warns(UserWarning, match="PyTorch did not record"):
        captured(FixedInside(), torch.randn(2, 4))


def test_a_batch_that_stays_free_is_no_warning(vit: ViT) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert captured(vit).interface.batch == 2


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x * 2
        return F.relu(x)


def test_a_model_that_cannot_be_captured_names_the_line() -> None:
    with pytest.raises(CaptureError, match=r"torch\.export could not capture Branching") as caught:
        captured(Branching(), torch.randn(2, 4))
    assert caught.value.where is not None
    assert caught.value.where.startswith(f"{line_of(__file__, 'if x.sum() > 0')}  if x.sum() > 0:")
    assert "torch.export.draft_export" in (caught.value.remedy or "")
    assert caught.value.__cause__ is not None


def test_an_error_of_the_model_itself_is_reported_too() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ZeroDivisionError("no tokens left")

    with pytest.raises(CaptureError, match="ZeroDivisionError: no tokens left") as caught:
        captured(Broken(), torch.randn(2, 4))
    assert line_of(__file__, "raise ZeroDivisionError") in (caught.value.where or "")


@pytest.mark.parametrize("example", [pixels().double(), pixels().to("meta"), pixels()[0], pixels(side=6)])
def test_an_example_that_the_model_does_not_take_is_the_reason(vit: ViT, example: Tensor) -> None:
    with pytest.raises(CaptureError, match="ViT does not run on the example") as caught:
        captured(vit, example)
    assert (caught.value.remedy or "").startswith(
        "give an example that the model takes, as it is: of its shape, precision and device"
    )
    assert "tiny.py:" in (caught.value.where or "")


class ThroughNumpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy() * 2)


def test_code_that_is_not_pytorch_is_to_be_written_in_it() -> None:
    with pytest.raises(CaptureError, match=r"torch\.export could not capture ThroughNumpy") as caught:
        captured(ThroughNumpy(), torch.randn(2, 4))
    assert line_of(__file__, "torch.from_numpy(x.numpy() * 2)") in (caught.value.where or "")
    assert (caught.value.remedy or "").startswith(
        "write that line in operators of PyTorch on tensors, or give"
    )


class Chooses(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[(x.sum(1) > 0).nonzero()[:, 0]] + 1


def test_rows_whose_number_depends_on_values_are_refused_with_the_line() -> None:
    with pytest.raises(CaptureError, match="depends on the values") as caught:
        captured(Chooses(), torch.randn(2, 4))
    assert line_of(__file__, "(x.sum(1) > 0).nonzero()") in (caught.value.where or "")
    assert "torch.topk" in (caught.value.remedy or "")


def test_a_model_may_be_copied_after_it_was_captured(vit: ViT) -> None:
    captured(vit)
    twin, x = copy.deepcopy(vit), pixels()
    assert torch.equal(twin(x), vit(x))
