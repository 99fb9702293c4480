from __future__ import annotations

import copy
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Tensor, nn

from prunec import compat
from prunec.capture import capture as capturing
from prunec.capture.capture import capture
from prunec.errors import CaptureError, UsageError
from prunec.ir import graph
from prunec.ir.program import Program, ProgramModule
from tests.tiny import ViT, captured, counts, pixels, run


def line_of(text: str) -> str:
    """`this file:number`, where the text stands for the first time."""
    numbers = [
        number for number, line in enumerate(Path(__file__).read_text().splitlines(), 1) if text in line
    ]
    return f"{__file__}:{numbers[0]}"


@pytest.fixture(scope="module")
def vit() -> ViT:
    return ViT().eval()


@pytest.fixture(scope="module")
def program(vit: ViT) -> Program:
    return captured(vit)


# --- the graph --------------------------------------------------------------------------------


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


class Precisions(nn.Module):
    """Autocast, in it a part of full precision and one without gradients; both are written to in place."""

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self.device, self.first, self.last = device, nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(self.device, dtype=torch.bfloat16):
            y = self.first(x)  # in 16 bits
            y += 0.5
            with torch.autocast(self.device, enabled=False):
                y = y.softmax(dim=-1) + self.last(x)
            with torch.no_grad():
                scale = self.last(y)
                scale.mul_(2)
        return x + y + scale


def test_what_autocast_converts_stands_in_the_graph() -> None:
    model, x = Precisions().eval(), torch.randn(3, 4, 8)
    program = captured(model, x)
    linears = [node for node in program.graph.nodes if graph.op(node) == "linear"]
    kinds = [node.meta["val"].dtype for node in linears]
    assert kinds == [torch.bfloat16, torch.float32, torch.bfloat16]
    assert [str(graph.module_path(node)) for node in linears] == ["first", "last", "last"]
    assert line_of("self.first(x)  # in 16 bits") in str(graph.source_line(linears[0]))
    assert not any(node.op == "call_module" or "wrap_with" in graph.op(node) for node in program.graph.nodes)
    with torch.no_grad():
        assert torch.equal(run(program, x)[0], model(x))


class Unchanged(nn.Module):
    """A region without autocast, in which something is written in place."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = x * 2
            y += 1
        return x + y


def test_operators_in_place_become_functional_in_a_region_too() -> None:
    x = torch.randn(3, 8)
    program = captured(Unchanged().eval(), x)
    assert not any(compat.mutates(node.target) for node in program.graph.nodes)
    assert torch.equal(run(program, x)[0], x + (x * 2 + 1))


def test_autocast_of_another_device_is_a_warning_with_the_line() -> None:
    x = torch.empty(3, 4, 8, device="meta")
    exported = compat.export(Precisions("cpu").eval().to("meta"), (x,), {}, 3)
    with pytest.warns(UserWarning, match="does nothing") as seen:
        program = capturing.adopt(exported, (x,), {})
    said = next(str(each.message) for each in seen if "does nothing" in str(each.message))
    assert said.startswith(
        "torch.autocast('cpu') does nothing to an example on meta, so the captured program"
    )
    assert said.endswith("; give an example on that device")
    assert program.stages[0].notes == (said.rpartition("; ")[0],)
    assert line_of("self.first(x)  # in 16 bits") in said
    kinds = {node.meta["val"].dtype for node in program.graph.nodes if graph.op(node) == "linear"}
    assert kinds == {torch.float32}


def test_buffers_are_shared_too() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()
    made = captured(model, torch.randn(2, 4))
    model[0].running_mean.fill_(3.0)
    x = torch.randn(3, 4)
    torch.testing.assert_close(run(made, x)[0], model(x), rtol=0, atol=0)


# --- inputs and outputs -----------------------------------------------------------------------


class Inputs(nn.Module):
    """An image, a pair, and options."""

    def forward(
        self,
        image: Tensor,
        pair: dict[str, Tensor],
        *,
        scale: Tensor,
        flag: bool = False,
        extra: Tensor | None = None,
    ) -> Tensor:
        x = image.mean(dim=(2, 3)) + pair["one"] - pair["two"]
        x = x * scale
        x = x + 1 if flag else x
        return x if extra is None else x + extra


def inputs(batch: int = 2) -> dict[str, Any]:
    pair = {"one": torch.randn(batch, 3), "two": torch.randn(batch, 3)}
    return {"image": torch.randn(batch, 3, 8, 8), "pair": pair, "scale": torch.randn(3), "flag": True}


@pytest.fixture(scope="module")
def mixed() -> ProgramModule:
    given = inputs()
    return ProgramModule(capture(Inputs().eval(), (given.pop("image"),), given))


def test_nested_and_keyword_inputs_may_be_spelled_as_the_model_allows(mixed: ProgramModule) -> None:
    given = inputs(5)
    expected = Inputs()(**given)
    torch.testing.assert_close(mixed(**given), expected)
    image, pair = given.pop("image"), given.pop("pair")
    torch.testing.assert_close(mixed(image, pair, **given), expected)
    torch.testing.assert_close(mixed(image, pair=pair, extra=None, **given), expected)


MISTAKES: list[tuple[dict[str, Any], str, str]] = [
    ({"image": None}, "input 'image' is None, expected float32[B, 3, 8, 8]", "give inputs of that"),
    (
        {"image": torch.zeros(2, 3, 8, 9)},
        "input 'image' is float32[B, 3, 8, 9], expected float32[B, 3, 8, 8]",
        "shape",
    ),
    (
        {"image": torch.zeros(3, 8, 8)},
        "input 'image' is float32[3, 8, 8], expected float32[B, 3, 8, 8]",
        "shape",
    ),
    ({"scale": torch.zeros(4)}, "input 'scale' is float32[4], expected float32[3]", "shape"),
    ({"flag": False}, "input 'flag' is False, the model was captured with True", "transform the model again"),
    (
        {"extra": torch.zeros(3)},
        "input 'extra' was not given at capture, so the graph has no place for it",
        "transform the model again with an example that holds this input",
    ),
    (
        {"pair": {"one": torch.zeros(2, 3)}},
        "the inputs nest differently from the example",
        "expected image=float32[B, 3, 8, 8], pair['one']=float32[B, 3], pair['two']=float32[B, 3], "
        "scale=float32[3], flag=True",
    ),
]


@pytest.mark.parametrize(("changes", "what", "remedy"), MISTAKES)
def test_a_wrong_input_is_named_with_what_was_expected(
    mixed: ProgramModule, changes: dict[str, Any], what: str, remedy: str
) -> None:
    with pytest.raises(UsageError) as caught:
        mixed(**{**inputs(), **changes})
    assert what in caught.value.what
    assert remedy in (caught.value.remedy or "")


def test_a_mapping_may_have_its_entries_in_any_order(mixed: ProgramModule) -> None:
    given = inputs(5)
    turned = {**given, "pair": dict(reversed(given["pair"].items()))}
    torch.testing.assert_close(mixed(**turned), Inputs()(**given))


def test_a_leaf_is_named_by_where_it_is(mixed: ProgramModule) -> None:
    given = inputs()
    given["pair"]["two"] = torch.zeros(2, 4)
    with pytest.raises(UsageError, match=r"input \"pair\['two'\]\" is float32\[B, 4\], expected float32"):
        mixed(**given)


def test_a_missing_input_is_named_with_the_whole_call(mixed: ProgramModule) -> None:
    given = inputs()
    del given["scale"]
    with pytest.raises(UsageError, match="missing input 'scale'") as caught:
        mixed(**given)
    assert (caught.value.remedy or "").startswith(
        "call the model with image=float32[B, 3, 8, 8], pair['one']="
    )


def test_too_many_inputs_are_counted(mixed: ProgramModule) -> None:
    with pytest.raises(UsageError, match="forward takes 5 arguments, got 6"):
        mixed(*range(6))


@dataclass
class Result:
    """What a model of Hugging Face returns, in little."""

    logits: Tensor
    states: tuple[Tensor, ...]


pytree.register_pytree_node(
    Result,
    lambda value: ([value.logits, value.states], None),
    lambda children, _: Result(*children),
    serialized_type_name="tests.capture.test_capture.Result",
)


class Structured(nn.Module):
    def __init__(self, kind: type) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Any:
        if self.kind is Result:
            return Result(x * 2, (x, x + 1))
        if self.kind is tuple:
            return x * 2, None, [x, x + 1]
        return self.kind(logits=x * 2, states=(x, x + 1))


@pytest.mark.parametrize("kind", [Result, dict, OrderedDict, tuple])
def test_outputs_come_back_in_the_structure_of_the_model(kind: type) -> None:
    model, x = Structured(kind), torch.randn(3, 4)
    module = ProgramModule(captured(model, torch.randn(2, 4)))
    found, expected = module(x), model(x)
    assert type(found) is kind
    assert pytree.tree_structure(found) == pytree.tree_structure(expected)
    for one, other in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
        assert one is other is None or torch.equal(one, other)


def test_inputs_without_names_are_numbered() -> None:
    class Any_(nn.Module):  # noqa: N801
        def forward(self, *parts: Tensor) -> Tensor:
            return parts[0] + parts[1]

    made = captured(Any_(), torch.randn(2, 3), torch.randn(2, 3))
    x = torch.randn(4, 3)
    assert torch.equal(ProgramModule(made)(x, x), x + x)
    assert made.interface.call() == "input_0=float32[B, 3], input_1=float32[B, 3]"


class Lists(ViT):
    """Images one by one, as detectors take them."""

    def forward(self, images: list[Tensor]) -> Tensor:
        return super().forward(torch.stack(images))


def test_images_in_a_list_are_a_batch_that_is_fixed_by_the_example() -> None:
    images = list(pixels(2))
    with pytest.warns(UserWarning, match="one by one in a list: the result takes as many as the example"):
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

    with pytest.raises(CaptureError, match="does not look into all that Returns takes and returns") as caught:
        captured(Returns())
    assert caught.value.remedy == ("register the dataclass first: torch.export.register_dataclass(Unknown)")


# --- what cannot be done ----------------------------------------------------------------------


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
    assert f"{line_of('size = int(x.shape[0])')}  size = int(x.shape[0])" in text
    assert text == f"{made.stages[0].notes[0]}; the result runs at this batch only"
    assert made.interface.batch is None
    assert torch.equal(ProgramModule(made)(x), x * 2)
    with pytest.raises(UsageError, match=r"input 'x' is float32\[3, 4\], expected float32\[2, 4\]"):
        ProgramModule(made)(torch.randn(3, 4))


def test_a_line_of_pytorch_is_not_taken_for_one_of_the_model() -> None:
    with pytest.warns(UserWarning, match="at a line that PyTorch did not record; the result runs at this"):
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
    assert caught.value.where.startswith(f"{line_of('if x.sum() > 0')}  if x.sum() > 0:")
    assert "torch.export.draft_export" in (caught.value.remedy or "")
    assert caught.value.__cause__ is not None


def test_an_error_of_the_model_itself_is_told_too() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ZeroDivisionError("no tokens left")

    with pytest.raises(
        CaptureError, match="Broken does not run on the example: ZeroDivisionError: no tokens left"
    ) as caught:
        captured(Broken(), torch.randn(2, 4))
    assert line_of("raise ZeroDivisionError") in (caught.value.where or "")


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
    assert line_of("torch.from_numpy(x.numpy() * 2)") in (caught.value.where or "")
    assert (caught.value.remedy or "").startswith(
        "write that line in operators of PyTorch on tensors, or give"
    )


class Chooses(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[(x.sum(1) > 0).nonzero()[:, 0]] + 1


def test_rows_whose_number_depends_on_values_are_refused_with_the_line() -> None:
    with pytest.raises(CaptureError, match="how many rows this line gives depends on the values") as caught:
        captured(Chooses(), torch.randn(2, 4))
    assert line_of("(x.sum(1) > 0).nonzero()") in (caught.value.where or "")
    assert "torch.topk" in (caught.value.remedy or "")


def test_a_model_may_be_copied_after_it_was_captured(vit: ViT) -> None:
    captured(vit)
    twin, x = copy.deepcopy(vit), pixels()
    assert torch.equal(twin(x), vit(x))
