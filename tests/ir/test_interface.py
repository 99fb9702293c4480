"""What goes in and comes out: by name or place, nested, and what is said of an input that does not fit."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from prunec.capture.capture import capture
from prunec.errors import UsageError
from prunec.ir.program import ProgramModule
from tests.tiny import captured


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
    serialized_type_name="tests.ir.test_interface.Result",
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
