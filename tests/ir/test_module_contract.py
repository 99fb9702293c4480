"""What a transformed model is as a module: copied, saved, converted, trained, and called wrongly.

On models of timm and Hugging Face, for the toys in tests/ir/test_program.py have neither tables nor casts.
"""

from __future__ import annotations

import copy
import functools
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import prunec
from prunec.targets import LoweredModule
from prunec.targets.eager import Eager
from prunec.targets.inductor import Inductor
from tests.families import FAMILIES, Family, difference, tensors
from tests.tiny import ViT, assert_a_copy_stands_by_itself, pixels

pytestmark = pytest.mark.usefixtures("recognised_once")

NAMES = ("timm_vit", "timm_beit", "hf_vit", "hf_siglip")


def family(name: str) -> Family:
    return next(each for each in FAMILIES if each.name == name)


@dataclass(frozen=True)
class Case:
    """A model, and what prunec makes of it."""

    family: Family
    model: nn.Module
    fast: nn.Module

    def call(self, module: nn.Module, images: Tensor) -> list[Tensor]:
        args, kwargs = self.family.call(images)
        with torch.no_grad():
            return tensors(module(*args, **kwargs))


def transform(name: str, model: nn.Module | None = None, dtype: torch.dtype = torch.float32) -> Case:
    chosen = family(name)
    model = (chosen.model() if model is None else model).to(dtype)
    args, kwargs = chosen.call(chosen.images(2).to(dtype))
    fast = prunec.transform(
        model, prunec.Policy.load(chosen.policy, keep_per_site=0.5, blocks=(1, 2)), example=kwargs or args
    )
    return Case(chosen, model, fast)


known = functools.cache(transform)  # for tests that change nothing of it


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest) -> Case:
    return known(request.param)


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


# --- copies and weights -------------------------------------------------------------------------


def test_a_deep_copy_has_tensors_of_its_own(case: Case) -> None:
    images = case.family.images(3)
    before = case.call(case.fast, images)
    twin = copy.deepcopy(case.fast)
    assert list(twin.state_dict()) == list(case.model.state_dict())
    own, others = (
        {tensor.data_ptr() for tensor in (*module.parameters(), *module.buffers())}
        for module in (twin, case.fast)
    )
    assert not own & others
    assert same(case.call(twin, images), before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.5)
    assert not same(case.call(twin, images), before)
    assert same(case.call(case.fast, images), before)


def test_tied_weights_stay_tied_in_a_copy() -> None:
    model = ViT().eval()
    model.blocks[1].mlp.up.weight = model.blocks[0].mlp.up.weight
    twin = copy.deepcopy(prunec.transform(model, prunec.Policy.load("norm", blocks=(1,)), example=pixels()))
    assert twin.get_parameter("blocks.1.mlp.up.weight") is twin.get_parameter("blocks.0.mlp.up.weight")


class Offset(ViT):
    """A buffer at the root of the module tree, that no state_dict holds."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("offset", torch.randn(16), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embed(pixels) + self.offset))[:, 0])


def test_a_copy_converts_its_buffers_and_takes_new_ones() -> None:
    model, x = Offset().eval(), pixels()
    fast = prunec.transform(model, prunec.Policy.load("norm", blocks=(1,)), example=x)
    twin = copy.deepcopy(fast).double()
    assert list(fast.state_dict()) == list(model.state_dict())
    with torch.no_grad():
        assert difference(twin(x.double()).float(), fast(x)) < 1e-5
        twin.offset = torch.zeros(16, dtype=torch.float64)
        assert difference(twin(x.double()).float(), fast(x)) > 1e-3


@pytest.mark.parametrize("target", [Eager(), Inductor()])
def test_a_copy_of_a_lowered_module_runs_its_own_weights(
    target: Eager | Inductor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    program = prunec.transform(
        ViT().eval(), prunec.Policy.load("norm", blocks=(1,)), example=pixels()
    ).program
    assert_a_copy_stands_by_itself(LoweredModule(program, target.lower(program)))


@pytest.mark.parametrize("assign", [False, True])
def test_weights_go_from_one_model_to_the_other_by_their_names(case: Case, assign: bool) -> None:
    images, other = case.family.images(3), case.family.build().eval()
    expected = case.call(transform(case.family.name, other).fast, images)
    fast = copy.deepcopy(case.fast)
    assert not same(case.call(fast, images), expected)
    state = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    fast.load_state_dict(state, assign=assign)
    assert same(case.call(fast, images), expected)
    restored = case.family.build().eval()
    restored.load_state_dict(fast.state_dict())
    assert same(case.call(restored, images), case.call(other, images))


def test_two_policies_of_one_model_stand_side_by_side(case: Case) -> None:
    images = case.family.images(3)
    before, dense = case.call(case.fast, images), case.call(case.model, images)
    args, kwargs = case.family.call(case.family.images(2))
    second = prunec.transform(
        case.model, prunec.Policy.load("norm", keep=0.25, blocks=(2,)), example=kwargs or args
    )
    found = case.call(second, images)
    assert same(case.call(case.fast, images), before)
    assert same(case.call(case.model, images), dense)
    assert not same(found, before)
    shared = dict(case.model.named_parameters())
    for module in (case.fast, second):
        assert all(shared[name] is parameter for name, parameter in module.named_parameters())
    alone = prunec.transform(
        copy.deepcopy(case.model), prunec.Policy.load("norm", keep=0.25, blocks=(2,)), example=kwargs or args
    )
    assert same(case.call(alone, images), found)


# --- on disk ------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [pickle.dump, torch.save], ids=["pickle", "torch.save"])
def test_a_pickle_is_refused_with_what_to_do(case: Case, write: Callable[[Any, Any], None]) -> None:
    with pytest.raises(prunec.UsageError, match="a transformed model cannot be pickled") as caught:
        write(case.fast, io.BytesIO())
    assert "prunec.load" in (caught.value.remedy or "")
    assert "state_dict()" in (caught.value.remedy or "")


def test_its_weights_are_saved_like_any_others(case: Case, tmp_path: Path) -> None:
    torch.save(case.fast.state_dict(), tmp_path / "weights.pt")
    restored = case.family.build()
    restored.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert same(list(restored.parameters()), list(case.model.parameters()))


@pytest.mark.parametrize("name", ["timm_vit", "hf_vit"])
def test_an_artefact_gives_the_module_again(name: str, tmp_path: Path) -> None:
    case = known(name)
    result = prunec.optimize(
        case.model,
        prunec.Policy.load(case.family.policy, keep_per_site=0.5, blocks=(1, 2)),
        measure=prunec.Measure(target="eager", batch=2, rounds=1),
    )
    images = case.family.images(3)
    loaded = prunec.load(result.save(tmp_path / "out"), model=case.family.build())
    assert list(loaded.state_dict()) == list(case.model.state_dict())
    assert same(case.call(loaded, images), case.call(case.fast, images))


# --- precision and device -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["timm_beit", "hf_vit", "hf_dinov2", "hf_siglip", "hf_clip"])
def test_a_converted_module_equals_the_converted_model_transformed(name: str) -> None:
    case, images = known(name), family(name).images(3).bfloat16()
    expected = case.call(transform(name, copy.deepcopy(case.model), torch.bfloat16).fast, images)
    found = case.call(copy.deepcopy(case.fast).to(torch.bfloat16), images)
    assert {value.dtype for value in found} == {torch.bfloat16}
    assert same(found, expected)


@pytest.mark.parametrize("name", ["timm_eva02", "timm_dinov3", "hf_vit_eager"])
def test_a_graph_that_names_its_precision_refuses_another(name: str) -> None:
    case = known(name)
    nodes = case.fast.program.graph.nodes
    if not any(torch.float32 in [*node.args, *node.kwargs.values()] for node in nodes):
        pytest.skip(f"older releases of timm and transformers name no precision in {name}")
    fast, images = copy.deepcopy(case.fast).to(torch.bfloat16), case.family.images(2).bfloat16()
    with pytest.raises(prunec.UsageError) as caught:
        case.call(fast, images)
    assert caught.value.what == (
        "the weights are bfloat16 now, and the graph converts to float32, in which it was captured"
    )
    assert ".py:" in (caught.value.where or "")
    assert "prunec.transform(model.to(torch.bfloat16), ...)" in (caught.value.remedy or "")
    case.call(fast.float(), case.family.images(2))  # and back again
    case.call(transform(name, copy.deepcopy(case.model), torch.bfloat16).fast, images)


@pytest.mark.parametrize("name", ["timm_vit", "timm_dinov3", "hf_vit_eager", "hf_siglip"])
def test_what_the_graph_makes_itself_moves_with_the_weights(name: str) -> None:
    # The meta device refuses operands of another one, as a GPU does: row numbers, zeros, buffers.
    case = known(name)
    images, twin = case.family.images(3), copy.deepcopy(case.fast).to("meta")
    found, expected = case.call(twin, images.to("meta")), case.call(case.fast, images)
    assert [value.shape for value in found] == [value.shape for value in expected]
    assert {value.device.type for value in found} == {"meta"}


# --- training mode ------------------------------------------------------------------------------


def noisy() -> nn.Module:
    """A model that would compute something else in training mode."""
    options = {"drop_rate": 0.5, "proj_drop_rate": 0.5, "attn_drop_rate": 0.5, "drop_path_rate": 0.5}
    sizes = {"img_size": 64, "embed_dim": 48, "num_heads": 3, "depth": 3}
    return timm.create_model("vit_tiny_patch16_224", **sizes, **options)


def test_training_mode_changes_nothing_but_the_flag() -> None:
    model, x = noisy().eval(), torch.randn(2, 3, 64, 64)
    fast = prunec.transform(model, prunec.Policy.load("evit", keep=0.5, blocks=(1,)), example=x)
    assert not any(part.training for part in fast.modules())
    before = fast(x)
    with pytest.warns(UserWarning, match="no dropout and no stochastic depth"):
        assert fast.train() is fast
    assert fast.eval().train() is fast  # said once
    assert all(part.training for part in fast.modules())
    assert not any(part.training for part in model.modules())
    assert torch.equal(fast(x), before)
    assert not torch.equal(model.train()(x), model(x))  # as it would without prunec
    assert torch.equal(fast.eval()(x), before)
    assert not any(part.training for part in fast.modules())


def test_training_mode_keeps_the_statistics_of_batch_norm() -> None:
    class Stem(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.vit = nn.BatchNorm2d(3), ViT()

        def forward(self, image: Tensor) -> Tensor:
            return self.vit(self.norm(image))

    model, x = Stem().eval(), pixels() + 3
    with pytest.warns(UserWarning, match="batch norm keeps its statistics"):
        fast = prunec.transform(model, prunec.Policy.load("norm", blocks=(1,)), example=x).train()
    before = fast(x)
    assert torch.equal(model.norm.running_mean, torch.zeros(3))
    assert torch.equal(fast(x), before)


def test_it_learns_in_training_mode() -> None:
    fast, x = (
        copy.deepcopy(prunec.transform(noisy(), prunec.Policy.load("evit", blocks=(1,)))),
        torch.randn(4, 3, 64, 64),
    )
    with pytest.warns(UserWarning, match="gradients flow as usual"):
        fast.train()
    optimiser = torch.optim.SGD(fast.parameters(), lr=0.05)
    losses = []
    for _ in range(5):
        loss = nn.functional.cross_entropy(fast(x), torch.arange(4))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert all(parameter.grad is not None for parameter in fast.parameters())
    assert losses[-1] < 0.8 * losses[0]


# --- wrong calls --------------------------------------------------------------------------------


def wrong(module: nn.Module, *args: Any, **kwargs: Any) -> prunec.UsageError:
    with pytest.raises(prunec.UsageError) as caught:
        module(*args, **kwargs)
    return caught.value


def test_a_wrong_image_is_answered_with_the_expected_one(case: Case) -> None:
    name = "pixel_values" if case.family.name.startswith("hf") else "x"
    height, width = case.family.image
    expected = f"float32[B, 3, {height}, {width}]"
    image = case.family.images(2)
    wrongs = {
        f"float32[B, 3, {height}, {width - 16}]": image[..., :-16],
        f"float64[B, 3, {height}, {width}]": image.double(),
        f"bfloat16[B, 3, {height}, {width}]": image.bfloat16(),
        f"uint8[B, 3, {height}, {width}]": image.to(torch.uint8),
        "on meta": image.to("meta"),
        "'image.png'": "image.png",
        "None": None,
    }
    for what, value in wrongs.items():
        error = wrong(case.fast, **{name: value})
        start = f"input {name!r} is {what}, expected {expected}"
        assert error.what == start + (" on cpu" if what == "on meta" else "")
    assert wrong(case.fast, image.double()).remedy == (
        f"prepare it as for the model itself, or convert it: {name}.to(torch.float32)"
    )
    assert wrong(case.fast, image.to("meta")).remedy == (
        f"move it to where the weights are: {name}.to('cpu')"
    )


def test_a_missing_a_double_and_a_foreign_input_are_answered_with_the_expected_call(case: Case) -> None:
    name = "pixel_values" if case.family.name.startswith("hf") else "x"
    height, width = case.family.image
    image = case.family.images(2)
    remedy = f"call the model with {name}=float32[B, 3, {height}, {width}]"
    foreign = (
        "'labels' was not given at capture" if name == "pixel_values" else "forward has no input 'labels'"
    )
    mistakes = [
        ("missing input", wrong(case.fast)),
        ("is given twice", wrong(case.fast, image, **{name: image})),
        (foreign, wrong(case.fast, image, labels=torch.zeros(2))),
        ("arguments, got 9", wrong(case.fast, *[image] * 9)),
    ]
    for what, error in mistakes:
        assert what in error.what
        assert (error.remedy or "").startswith(remedy)


def test_after_a_conversion_the_expected_precision_is_the_new_one() -> None:
    case = known("timm_vit")
    fast, image = copy.deepcopy(case.fast).to(torch.bfloat16), case.family.images(2)
    error = wrong(fast, image)
    assert error.what == "input 'x' is float32[B, 3, 64, 112], expected bfloat16[B, 3, 64, 112]"
    assert "bfloat16[B, 3, 64, 112]" in (wrong(fast).remedy or "")
    assert fast(image.bfloat16()).dtype == torch.bfloat16


def test_the_precision_follows_weights_that_the_model_shares() -> None:
    case = transform("timm_vit")
    case.model.double()
    assert case.fast(case.family.images(2).double()).dtype == torch.float64
    assert "expected float64" in wrong(case.fast, case.family.images(2)).what


def test_autocast_takes_any_floating_image() -> None:
    case = known("timm_vit")
    image = case.family.images(2)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert difference(case.fast(image.bfloat16()), case.fast(image)) < 2e-2
        assert "uint8" in wrong(case.fast, image.to(torch.uint8)).what


def test_an_image_of_bytes_that_the_model_scales_itself_stays_one() -> None:
    class Bytes(ViT):
        def forward(self, image: Tensor) -> Tensor:
            return super().forward(image.to(self.head.weight.dtype) / 255)

    image = torch.randint(0, 256, (2, 3, 20, 20), dtype=torch.uint8)
    with pytest.raises(prunec.RecognitionError, match="takes no image tensor"):
        prunec.transform(Bytes().eval(), prunec.Policy.load("norm", blocks=(1,)), example=image)


def test_a_narrow_image_that_the_model_widens_is_expected_as_it_was() -> None:
    class Widens(ViT):
        def forward(self, image: Tensor) -> Tensor:
            return super().forward(image.float())

    image = pixels().half()
    fast = prunec.transform(Widens().eval(), prunec.Policy.load("norm", blocks=(1,)), example=image)
    assert fast(image).dtype == torch.float32
    assert wrong(fast, image.float()).what == (
        "input 'image' is float32[B, 3, 20, 20], expected float16[B, 3, 20, 20]"
    )


@pytest.mark.parametrize("name", ["timm_vit", "hf_siglip"])
def test_the_checks_break_no_graph(name: str) -> None:
    torch._dynamo.reset()
    case = known(name)
    compiled = torch.compile(case.fast, fullgraph=True, backend="eager")
    for batch in (2, 3, 5):
        images = case.family.images(batch)
        assert difference(case.call(compiled, images), case.call(case.fast, images)) < 1e-6


def test_a_model_may_call_its_parameters_whatever_it_likes() -> None:
    class Named(ViT):
        def __init__(self) -> None:
            super().__init__()
            self.weights, self.conversions = nn.Parameter(torch.ones(7)), nn.Parameter(torch.ones(7))

        def forward(self, pixels: Tensor) -> Tensor:
            return super().forward(pixels) * self.weights * self.conversions

    model = Named().eval()
    fast = prunec.transform(model, prunec.Policy.load("norm", keep=1.0), example=pixels())
    with torch.no_grad():
        torch.testing.assert_close(fast(pixels(3)).shape, model(pixels(3)).shape)
    assert {"weights", "conversions"} <= set(fast.state_dict())
