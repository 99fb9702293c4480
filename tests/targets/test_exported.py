from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import ExportedProgram

from prunec import compat
from prunec.errors import TargetError
from prunec.ir import graph
from prunec.ir.program import Program
from prunec.targets.exported import exported
from tests import tiny
from tests.targets import cases
from tests.targets.cases import difference, images
from tests.tiny import ViT, pixels, recognised


@pytest.mark.parametrize("name", ["dense", *cases.CASES])
def test_only_operators_of_aten_are_left_and_they_compute_the_same(name: str) -> None:
    program = cases.case(name)
    found = cases.exported_case(name)
    assert operators(found) == {"aten"}
    model = found.module()
    with torch.no_grad():
        for batch in cases.batches(program):
            x = images(batch)
            assert difference(model(x), program.module(x)[0]) < 1e-6, batch


def operators(found: ExportedProgram) -> set[str]:
    """The libraries of all operators; functions of Python must be of Python's own."""
    for node in found.graph.nodes:
        if node.op == "call_function" and compat.library_of(node.target) is None:
            assert node.target.__module__ in ("_operator", "math", "builtins", "torch"), node.target
    return {compat.library_of(node.target) for node in compat.every_node(found)} - {None}


def test_nothing_in_it_says_where_it_was_made() -> None:
    for node in cases.exported_case("evit").graph.nodes:
        assert "prunec" not in str(node.meta), node


def test_a_batch_that_is_asked_for_is_the_only_one() -> None:
    program = cases.case("evit")
    model = exported(program, batch=3).module()
    x = images(3)
    assert difference(model(x), program.module(x)[0]) < 1e-6
    with pytest.raises(Exception, match=r"size\(\)\[0\] == 3|shape"):
        model(images(8))


def test_one_image_at_a_time_stays_that() -> None:
    (node,) = [
        node
        for node in cases.exported_case("dynamic static").graph.nodes
        if node.op == "placeholder" and node.target == "pixels"
    ]
    assert node.meta["val"].shape[0] == 1


class Scaled(ViT):
    """Two tensors, one of them by name, and a flag."""

    def forward(self, pixels: Tensor, loud: bool, *, scale: Tensor) -> Any:  # type: ignore[override]
        x = super().forward(pixels) * scale
        outputs = Outputs(logits=x * (2 if loud else 1))
        outputs["more"] = [x + 1]
        return outputs


class Outputs(OrderedDict):  # type: ignore[type-arg]
    """What a library returns: a mapping of a type of its own."""


torch.utils._pytree.register_pytree_node(
    Outputs,
    lambda own: (list(own.values()), list(own)),
    lambda values, names: Outputs(zip(names, values, strict=True)),
    serialized_type_name="tests.Outputs",
)


def test_it_is_called_as_the_model_and_returns_plain_containers() -> None:
    program = tiny.recognised(Scaled(), pixels(), True, scale=torch.rand(2, 1))
    x, scale = pixels(5), torch.rand(5, 1)
    found = exported(program).module()(x, True, scale=scale)
    expected, more = program.module(x, True, scale)
    assert list(found) == ["logits", "more"]
    assert type(found) is dict
    assert torch.equal(found["logits"], expected)
    assert torch.equal(found["more"][0], more)


def test_weights_go_by_the_models_own_names_and_are_its_own() -> None:
    model = ViT().eval()
    found = exported(recognised(model))
    assert found.state_dict.keys() == model.state_dict().keys()
    assert found.state_dict["head.weight"].data_ptr() == model.head.weight.data_ptr()


@torch.library.custom_op("tests_of_targets::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    """An operator that only this process knows."""
    return 2 * x


@twice.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Foreign(ViT):
    """It calls an operator of another library."""

    def forward(self, pixels: Tensor) -> Tensor:
        return twice(super().forward(pixels))


def test_an_operator_of_another_library_is_refused() -> None:
    with pytest.raises(TargetError, match="operator twice is of tests_of_targets, and no part") as caught:
        exported(recognised(Foreign()))
    assert caught.value.where is not None
    assert caught.value.where.startswith("node twice")
    assert caught.value.remedy == "choose another target: inductor and eager run every program"


def with_last_call(function: Callable[[Tensor], Tensor]) -> Program:
    """A program that calls a function on its output."""
    program = recognised(ViT())
    module = graph.copy(program.module)
    output = graph.output_node(module.graph)
    with module.graph.inserting_before(output):
        last = module.graph.call_function(function, output.args[0])  # type: ignore[arg-type]
    output.args = ((last,),)
    module.recompile()
    return program.replace(module=module)


def of_two(x: Tensor) -> Tensor:
    return x.reshape(2, 7)


def by_value(x: Tensor) -> Tensor:
    return x * 2 if x.sum() > 0 else x


def test_a_batch_that_is_fixed_on_the_way_is_refused() -> None:
    with pytest.raises(TargetError, match="fixes the batch of this program at 2") as caught:
        exported(with_last_call(of_two))
    assert "give the batch" in str(caught.value.remedy)


def test_what_cannot_be_exported_is_refused_with_pytorchs_reason() -> None:
    with pytest.raises(TargetError, match=r"torch\.export does not take this program: ") as caught:
        exported(with_last_call(by_value))
    assert caught.value.__cause__ is not None
    assert caught.value.remedy
