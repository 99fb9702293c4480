from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunec
from prunec import ops
from prunec.ir import graph
from prunec.ir.program import Planned, ProgramModule, Recognised, Stage
from prunec.policy.site_plan import Plan, Site
from tests.tiny import ViT, assert_a_copy_stands_by_itself, pixels, pruned, recognised


@pytest.fixture(scope="module")
def vit() -> ViT:
    torch.manual_seed(3)
    return ViT().eval()


@pytest.fixture(scope="module")
def dense(vit: ViT) -> Recognised:
    return recognised(vit)


@pytest.fixture(scope="module")
def half(dense: Recognised) -> Planned:
    return pruned(dense, keep=0.5)


def test_the_module_has_the_names_of_the_model(vit: ViT, half: Planned) -> None:
    module = ProgramModule(half)
    assert module.state_dict().keys() == vit.state_dict().keys()
    assert dict(module.named_parameters()).keys() == dict(vit.named_parameters()).keys()
    assert all(one is other for one, other in zip(module.parameters(), vit.parameters(), strict=True))
    assert {name for name, _ in vit.named_modules()} >= {name for name, _ in module.named_modules()}


def test_a_state_dict_goes_there_and_back(half: Planned) -> None:
    other, x = ViT().eval(), pixels()
    module = ProgramModule(pruned(recognised(other)))
    before = module(x)
    first = ProgramModule(half)
    assert not torch.equal(before, first(x))
    assert module.load_state_dict(first.state_dict()).missing_keys == []
    assert torch.equal(module(x), first(x))
    with pytest.raises(RuntimeError, match="Unexpected key"):
        module.load_state_dict({**first.state_dict(), "blocks.2.norm1.weight": torch.ones(16)})


def test_a_deep_copy_stands_by_itself(half: Planned) -> None:
    assert_a_copy_stands_by_itself(ProgramModule(half))


def test_another_precision_reaches_the_graph(half: Planned) -> None:
    module, x = copy.deepcopy(ProgramModule(half)), pixels()
    before = module(x)
    module.to(torch.float64)
    after = module(x.double())
    assert after.dtype == torch.float64
    torch.testing.assert_close(after.float(), before, rtol=0, atol=1e-5)


def test_two_modules_of_one_model_stand_side_by_side(dense: Recognised, half: Planned, vit: ViT) -> None:
    x = pixels()
    whole, short = ProgramModule(dense), ProgramModule(half)
    assert torch.equal(whole(x), vit(x))
    assert not torch.equal(short(x), vit(x))
    pair = nn.ModuleDict({"whole": whole, "short": short})
    assert len(list(pair.parameters())) == len(list(vit.parameters()))  # shared, counted once
    assert len(pair.state_dict()) == 2 * len(vit.state_dict())


def test_gradients_reach_the_parameters_and_the_pixels(half: Planned) -> None:
    module, x = copy.deepcopy(ProgramModule(half)), pixels().requires_grad_()
    module(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert [name for name, parameter in module.named_parameters() if parameter.grad is None] == []


def test_it_compiles_as_one_graph(half: Planned) -> None:
    torch._dynamo.reset()
    module = ProgramModule(half)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    for batch in (2, 3, 7):
        x = pixels(batch)
        torch.testing.assert_close(compiled(x), module(x), rtol=0, atol=1e-6)


def test_its_text_is_its_plan(dense: Recognised, half: Planned) -> None:
    assert repr(ProgramModule(half)).startswith(
        "ProgramModule(\n  policy=mine, before block 1: 26 -> 14 tokens\n"
    )
    assert "dense" in repr(ProgramModule(dense))


# --- what only training needs -------------------------------------------------------------------


class Helped(ViT):
    """A second head on the map of patches helps in training; it is computed in eval mode as well."""

    def __init__(self, *, always: bool = False) -> None:
        super().__init__(depth=3)
        self.always, self.drop = always, nn.Dropout(0.5)
        self.helper = nn.Sequential(nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16))

    def forward(self, pixels: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.drop(self.norm(self.blocks(self.embed(pixels))))
        helped = self.helper(x[:, 1:].mT.reshape(-1, 16, 5, 5))
        out = self.head(x[:, 0])
        return (out, helped) if self.training or self.always else out


def read_by(module: nn.Module) -> set[str]:
    """The parameters and buffers that any node of a transformed model reads."""
    nodes = module.__dict__["program"].graph.nodes
    return {node.target for node in nodes if node.op == "get_attr" and node.users}


@pytest.mark.parametrize(("policy", "choices"), [("norm", {"blocks": (1,)}), ("none", {})])
def test_nothing_that_only_training_needs_is_left(policy: str, choices: dict[str, Any]) -> None:
    model = Helped().eval()
    fast = prunec.transform(model, prunec.Policy.load(policy, **choices), example=pixels())
    nodes = fast.__dict__["program"].graph.nodes
    assert read_by(fast) == {name for name in model.state_dict() if not name.startswith("helper.")}
    assert not [node for node in nodes if "batch_norm" in str(node.target) or "dropout" in str(node.target)]
    assert not [node for node in nodes if node.target is ops.scatter]  # for which the map would have asked
    assert fast.state_dict().keys() == model.state_dict().keys()
    assert all(one is other for one, other in zip(fast.parameters(), model.parameters(), strict=True))
    assert fast(pixels(3)).shape == (3, 7)


def test_a_second_head_that_is_an_output_stays() -> None:
    model = Helped(always=True).eval()
    fast = prunec.transform(model, prunec.Policy.load("norm", blocks=(1,)), example=pixels())
    unread = model.state_dict().keys() - read_by(fast)
    assert unread == {"helper.1.num_batches_tracked"}  # counts the steps of training
    assert [node for node in fast.__dict__["program"].graph.nodes if node.target is ops.share]


# --- records ------------------------------------------------------------------------------------


def test_a_program_is_replaced_not_changed(dense: Recognised) -> None:
    other = dense.planned(Plan("mine", "norm", "drop", ()))
    assert isinstance(other, Planned)
    assert not isinstance(dense, Planned)
    assert other.module is dense.module
    with pytest.raises(AttributeError):
        other.plan = None  # type: ignore[misc]


def test_the_texts_of_records() -> None:
    assert str(Site(3, "after_attention", 26, 13, 15)) == "after attention of block 3: 26 -> 15 tokens"
    assert str(Site(3, "before_block", 26, 13, 14)) == "before block 3: 26 -> 14 tokens"
    assert str(Stage("plan", 1.234, {"sites": 2, "notes": 0})) == "plan             1.23 s  sites 2, notes 0"


def test_every_stage_keeps_the_graph_that_it_made(dense: Recognised, half: Planned) -> None:
    stages = {stage.name: stage.graph for stage in half.stages}
    assert half.stages[: len(dense.stages)] == dense.stages
    assert stages["recognise"] == graph.text(dense.graph)  # of before anything was inserted
    assert half.stages[-1].graph == graph.text(half.graph)
    assert "\nselect_0: " not in stages["recognise"]
    assert "\nselect_0: int64[" in stages["insert sites"]
    assert stages["insert sites"] != stages["repair tokens"]
    assert set(half.stages[-1].as_dict()) == {"name", "seconds", "counts", "notes"}


def test_values_are_put_into_a_new_program(dense: Recognised) -> None:
    name = next(name for name, _ in dense.module.named_parameters())
    old = dense.module.get_parameter(name)
    before = old.detach().clone()
    made = dense.with_values({name: torch.zeros(old.shape, dtype=torch.float64)})
    new = made.module.get_parameter(name)
    assert isinstance(made, Recognised)
    assert (new.dtype, new.requires_grad, int(new.count_nonzero())) == (old.dtype, old.requires_grad, 0)
    assert torch.equal(dense.module.get_parameter(name), before)
    others = [path for path, _ in dense.module.named_parameters() if path != name]
    assert all(made.module.get_parameter(path) is dense.module.get_parameter(path) for path in others)
    assert dense.with_values({}) is dense
