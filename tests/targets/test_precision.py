from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, fx

from prunec import ops
from prunec.errors import TargetError, UsageError
from prunec.targets import precision
from prunec.targets.exported import exported
from prunec.targets.precision import BOUNDS, HALVES, Precision, halved
from tests.targets import cases
from tests.targets.cases import difference, images
from tests.tiny import ViT, pixels, recognised


@pytest.mark.parametrize("kind", list(HALVES))
def test_a_dense_program_computes_what_the_model_does_in_that_precision(kind: Precision) -> None:
    model, x = ViT().eval(), pixels(3)
    program = recognised(model)
    found = halved(program, kind)
    expected = copy.deepcopy(model).to(HALVES[kind])(x.to(HALVES[kind]))
    (out,) = found.module(x)
    assert out.dtype == torch.float32
    assert torch.equal(out, expected.float())
    assert {each.dtype for each in found.module.parameters()} == {HALVES[kind]}
    assert {each.dtype for each in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["evit", "cropr", "tome"])
def test_pruned_programs_stay_within_the_bound(name: str) -> None:
    program, x = cases.case(name), images(3)
    (expected,) = program.module(x)
    for kind in HALVES:
        assert difference(halved(program, kind).module(x)[0], expected) < BOUNDS[kind]


def is_learned(node: fx.Node) -> bool:
    return isinstance(node.target, ops.Learned)


def test_scores_and_thresholds_stay_in_single_precision() -> None:
    program = halved(cases.case("dynamic padded"), "bf16")
    own = {name: each for name, each in program.module.state_dict().items() if name.startswith("prunec.")}
    assert {each.dtype for each in own.values()} == {torch.float32}
    scores = [node for node in program.graph.nodes if node.target in ops.SCORES or is_learned(node)]
    assert scores
    for node in scores:
        read = [each for each in node.all_input_nodes if "dtype" in each.kwargs]
        assert [each.kwargs["dtype"] for each in read] == [torch.float32] * len(read) != []


def test_what_torch_export_makes_of_it_is_the_same_and_takes_what_the_model_takes() -> None:
    program, x = halved(cases.case("evit"), "bf16"), images(3)
    with torch.no_grad():
        assert torch.equal(exported(program).module()(x), program.module(x)[0])


class Careful(ViT):
    """Its own code names float32, as many do: for its input, and in a softmax that multiplies."""

    def forward(self, pixels: Tensor) -> Tensor:
        logits = super().forward(pixels.to(self.head.weight.dtype))
        weights = logits.softmax(dim=-1, dtype=torch.float32).to(logits.dtype)
        return weights @ self.head.weight


def test_where_the_model_names_float32_it_stays() -> None:
    program, x = recognised(Careful().eval()), pixels()
    (expected,) = program.module(x)
    assert difference(halved(program, "bf16").module(x)[0], expected) < BOUNDS["bf16"]


class Tied(ViT):
    def __init__(self) -> None:
        super().__init__()
        self.blocks[1].attn.proj.weight = self.blocks[0].attn.proj.weight


def test_tied_weights_stay_tied() -> None:
    module = halved(recognised(Tied().eval()), "bf16").module
    names = [f"blocks.{block}.attn.proj.weight" for block in range(2)]
    assert len({module.get_parameter(name).data_ptr() for name in names}) == 1


def test_other_precisions_leave_it_as_it_is_and_so_does_its_own() -> None:
    program = cases.case("evit")
    assert halved(program, "fp32") is halved(program, "int8") is program
    half = halved(program, "bf16")
    assert halved(half, "bf16") is half


def test_a_model_in_half_precision_is_not_converted() -> None:
    program = recognised(ViT().eval().to(torch.bfloat16), pixels().to(torch.bfloat16))
    with pytest.raises(
        TargetError, match="weights are bfloat16 already, and fp16 is made of float32"
    ) as caught:
        halved(program, "fp16")
    assert caught.value.remedy


def test_an_operator_without_a_kernel_is_named() -> None:
    class Decomposed(ViT):
        def forward(self, pixels: Tensor) -> Tensor:
            return torch.linalg.svdvals(super().forward(pixels).unsqueeze(1))

    with pytest.raises(TargetError, match=r"operator linalg_svdvals.* does not run in bfloat16") as caught:
        halved(recognised(Decomposed().eval()), "bf16")
    assert caught.value.where


def test_names_are_read() -> None:
    assert precision.read("bf16") == "bf16"
    with pytest.raises(UsageError, match="unknown precision 'fp61'; nearest: fp16") as caught:
        precision.read("fp61")
    assert caught.value.remedy == "one of fp32, bf16, fp16, int8"
