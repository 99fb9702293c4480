from __future__ import annotations

import sys

import pytest
import timm
import torch
from huggingface_hub import constants
from torch import nn

from prunec.data import tiny_vit
from prunec.errors import SourceError
from prunec.frontend import source_reading, sources
from tests.frontend.models import VIT, check_runs


def test_no_network_means_random_weights_and_says_so() -> None:
    source = sources.load(VIT)
    assert source.weights == "random"
    (note,) = source.notes
    assert "the weights are random (they could not be loaded: " in note
    assert "accuracy figures would mean nothing" in note
    assert constants.HF_HUB_OFFLINE is False  # as it was before


@pytest.mark.parametrize("answers", [True, False])
def test_a_hub_that_does_not_answer_is_not_asked_again(
    answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline: list[bool] = []

    def create_model(name: str, pretrained: bool) -> nn.Module:
        offline.append(constants.HF_HUB_OFFLINE)
        return tiny_vit.TinyViT()

    monkeypatch.setattr(source_reading, "hub_answers", lambda: answers)
    monkeypatch.setattr(timm, "create_model", create_model)
    source = sources.load(VIT)
    assert (source.weights, source.notes, offline) == ("pretrained", (), [not answers])
    check_runs(source)


def test_a_hub_that_cannot_be_reached_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    assert source_reading.hub_answers() is False


def test_random_as_asked_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_reading, "hub_answers", lambda: pytest.fail("asked the hub"))
    assert sources.load(VIT, pretrained=False).notes == (
        "the weights are random (as asked); accuracy figures would mean nothing",
    )


def test_random_weights_are_the_same_every_time_and_leave_the_random_state_alone() -> None:
    torch.manual_seed(1)
    first = sources.load(VIT, pretrained=False).module.head.weight
    after = torch.rand(1)
    torch.manual_seed(2)
    assert torch.equal(sources.load(VIT, pretrained=False).module.head.weight, first)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)


@pytest.mark.parametrize(
    ("package", "extra", "spec"), [("timm", "timm", VIT), ("transformers", "hf", "hf:a/b")]
)
def test_a_missing_package_names_the_pip_line(
    package: str, extra: str, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SourceError) as caught:
        sources.load(spec)
    assert caught.value.what == f"{package} is not installed"
    assert caught.value.remedy == f"pip install 'prunec[{extra}]'"


@pytest.mark.parametrize("place", ["~nobody-at-all/x", "x" * 4000])
@pytest.mark.parametrize("spec", ["{}.safetensors", "{}.pt", "{}.pt2", "hf:{}", "local-dir:{}"])
def test_what_can_be_no_path(spec: str, place: str) -> None:
    with pytest.raises(SourceError, match="can be no path") as error:
        sources.load(spec.format(place))
    assert len(str(error.value)) < 1000
