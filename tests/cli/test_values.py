from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.cli.running import MODELS, OPTIMIZE, Call, message


def silent(home: Path) -> None:
    """A model that says nothing about its input."""
    (home / "models_of_a_user.py").write_text(f"{MODELS}\n\n{SILENT}", encoding="utf-8")


SILENT = """\
class Silent(TinyViT):
    image_size = None

    def forward(self, image, mask=None):
        return super().forward(image)


def silent():
    model = vit(Silent)
    model.__dict__.pop("image_size", None)
    return model
"""


def test_an_example_that_cannot_be_inferred_is_given_by_the_option_that_is_advised(
    call: Call, home: Path
) -> None:
    silent(home)
    said = message(call("explain", "models_of_a_user:silent"), 2)
    assert "no example input" in said.what
    assert said.where
    assert "--example 2x3x224x224 or --image-size 224" in said.remedy
    for option in (("--example", "2x3x20x20"), ("--example", "image=1x3x20x20"), ("--image-size", "20")):
        assert call("explain", "models_of_a_user:silent", *option).out.startswith("2/2 blocks, 25 patch")
    save_file({"image": torch.zeros(2, 3, 20, 20)}, home / "one.safetensors")
    save_file({"0": torch.zeros(2, 3, 20, 20)}, home / "first.safetensors")
    for file in ("one.safetensors", "first.safetensors"):
        plain = call("graph", "models_of_a_user:silent", "--example", file)
        assert "  blocks 0-1     attention + mlp                   26   26\n" in plain.out
    said = message(call("explain", "models_of_a_user:silent", "--example", "none.safetensors"), 1)
    assert "no such file" in said.what
    dry = call(*OPTIMIZE[:1], "models_of_a_user:silent", *OPTIMIZE[2:], "--image-size", "20x20", "--dry-run")
    assert dry.code == 0


def test_pictures_are_normalised_as_the_options_say(call: Call, home: Path) -> None:
    (home / "images").mkdir()
    Image.new("RGB", (24, 20), (90, 40, 10)).save(home / "images" / "one.png")
    Image.new("RGB", (24, 20), (10, 40, 90)).save(home / "images" / "two.png")
    options = ("--images", "images", "--mean", "0.1,0.2,0.3", "--std", "0.5,0.25,0.5", "--crop", "0.5")
    said = call(*OPTIMIZE, *options, "--json")
    assert said.code == 0
    how = said.json["preprocess"]
    assert (how["mean"], how["std"]) == ([0.1, 0.2, 0.3], [0.5, 0.25, 0.5])
    assert (how["size"], how["scaled"], how["origin"]) == ([20, 20], [40, 40], "the caller")
    warned = [line for line in said.err.splitlines() if line.startswith("prunec: warning")]
    assert warned == ["prunec: warning: there is no model.pt2: left out in this test"]
    assert message(call(*OPTIMIZE, *options[:4], "--std", "1,1"), 2).what.startswith("std is (1.0, 1.0)")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--example", "2x3xy"), "'2x3xy' are no shapes"),
        (("--example", "2x3x20x20", "--image-size", "20"), "leave --image-size out"),
        (("--image-size", "20,20"), "'20,20' is no size such as 224 or 224x160"),
        (("--mean", "a,b"), "'a,b' is no list of numbers such as 0.485,0.456,0.406"),
    ],
)
def test_inputs_that_are_none(call: Call, options: tuple[str, ...], said: str) -> None:
    failed = call(*OPTIMIZE, *options)
    assert (failed.code, failed.out) == (2, "")
    assert said in " ".join(failed.err.replace("│", " ").split())
