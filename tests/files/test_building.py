from __future__ import annotations

import functools
import io
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from prunec.files import pickles
from tests.files.reading import Stranger, read


def test_what_was_shared_is_shared(tmp_path: Path) -> None:
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    model[1].weight = model[0].weight
    model.append(model[0])
    found = read(model, tmp_path)
    assert found[1].weight is found[0].weight
    assert found[2] is found[0]


def test_whether_a_parameter_is_trained_is_kept(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    model.weight.requires_grad_(False)
    model.weight.no_decay = True  # type: ignore[assignment]
    found = read(model, tmp_path)
    assert (found.weight.requires_grad, found.bias.requires_grad) == (False, True)
    assert found.weight.no_decay is True


def test_a_partial_of_a_layer_is_read(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    model.norm = functools.partial(nn.LayerNorm, eps=1e-6)
    found = read(model, tmp_path).norm
    assert (found.func, found.args, found.keywords) == (nn.LayerNorm, (), {"eps": 1e-6})


@pytest.mark.parametrize(
    "kind", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool]
)
def test_numbers_of_all_kinds_are_read(tmp_path: Path, kind: torch.dtype) -> None:
    tensor = torch.tensor([[0, 1, 1], [1, 0, 1]]).to(kind)
    found = read({"a": tensor, "turned": tensor.t(), "none": tensor[:0]}, tmp_path)
    assert torch.equal(found["a"], tensor)
    assert torch.equal(found["turned"], tensor.t())
    assert found["none"].shape == (0, 3)


def test_a_stranger_inside_the_model_is_not_passed_over(tmp_path: Path) -> None:
    torch.save({"model": {"weight": torch.zeros(1), "own": Stranger("x")}}, tmp_path / "x.pt")
    with pytest.raises(pickles.NotTrusted, match=r"wants .*Stranger"):
        pickles.read(tmp_path / "x.pt", ("model",))


def test_an_unpickled_container_is_a_plain_one(tmp_path: Path) -> None:
    """A state dict may carry attributes of its own, which could take the place of its methods."""
    state = nn.Linear(2, 2).state_dict()
    state.move_to_end = "mine"  # type: ignore[assignment]
    found = read(state, tmp_path)
    assert vars(found) == {}
    assert list(found) == ["weight", "bias"]


def test_gradients_and_hooks_of_tensors_are_left_out(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    torch.save(weight, buffer)
    found = read({"weight": weight}, tmp_path)["weight"]
    assert isinstance(found, Tensor)
    assert found.grad is None
