"""The command line as tests run it, and the models of a user that it is run on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]

MODELS = """\
import torch
from torch import nn
from prunec.data.tiny_vit import TinyViT


class Mean(TinyViT):
    def forward(self, image):
        x = self.embed(image)[:, 1:]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class Branching(TinyViT):
    def forward(self, image):
        if image.sum() > 0:
            image = -image
        return super().forward(image)


class Chaotic(TinyViT):
    def forward(self, image):
        return torch.sin(3 * super().forward(image))


class Fixed(TinyViT):
    def forward(self, image):
        assert image.shape[0] == 2
        return super().forward(image)


class Convolutions(nn.Module):
    image_size = 20

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.GELU(), nn.Conv2d(8, 7, 5))

    def forward(self, image):
        return self.layers(image).flatten(1)


def vit(kind=TinyViT):
    torch.manual_seed(0)
    model = kind(image_size=20, patch_size=4, dim=16, depth=2, heads=2, num_classes=7)
    nn.init.normal_(model.head.weight)
    return model


def mean():
    return vit(Mean)


def branching():
    return vit(Branching)


def chaotic():
    return vit(Chaotic)


def fixed():
    return vit(Fixed)


def convolutions():
    return Convolutions()


class Detector(nn.Module):
    # cannot be captured whole: what it does depends on the numbers
    def __init__(self):
        super().__init__()
        self.body = vit()

    def forward(self, image):
        found = self.body(image / 2)
        return found if float(found.sum()) > 1e9 else found + 1


def detector():
    return Detector().eval()
"""

PLANNER_MODELS = """\
import torch
from torch import nn
from prunec.data.tiny_vit import TinyViT


def vit(seed=0):
    torch.manual_seed(seed)
    model = TinyViT(image_size=32, patch_size=4, dim=32, depth=4, heads=2, num_classes=7)
    nn.init.normal_(model.head.weight)
    return model


def other():
    return vit(1)
"""

PLANNED = ("models_of_a_planner:vit", "--policy", "evit", "--target", "eager", "--batch", "2")
CODE = {"models_of_a_user": MODELS, "models_of_a_planner": PLANNER_MODELS}
EVIT = ("--policy", "evit", "--keep", "0.5", "--blocks", "0")

OPTIMIZE = ("optimize", "models_of_a_user:vit", *EVIT, "--target", "eager", "--rounds", "5", "--batch", "2")

STEPS = [
    "prunec: capture, recognise",
    "prunec: rewrite, certify",
    "prunec: compile dense",
    "prunec: compile pruned",
    "prunec: compile ideal",
    "prunec: measure",
    "prunec: compare on images",
]
#: What is warned of models that nobody trained.
UNTRAINED = "prunec: warning: no better than random tokens"


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        def refuse(name: str) -> None:
            raise ValueError(f"{name} is no JSON")

        return json.loads(self.out, parse_constant=refuse)


Call = Callable[..., Said]


def made(home: Path) -> list[str]:
    """What a command left in its folder."""
    own = {"__pycache__", *(f"{name}.py" for name in CODE)}
    return sorted(path.name for path in home.iterdir() if path.name not in own)


class Message(NamedTuple):
    """What a failure says: what is wrong, where, and what to do."""

    what: str
    where: str
    remedy: str


def message(said: Said, code: int) -> Message:
    """The one message of a failure; nothing else was said but the steps before it."""
    assert said.code == code
    assert said.out == ""
    assert "Traceback" not in said.err
    steps, start, text = said.err.rpartition("prunec: ")
    assert start
    done = [line for line in steps.splitlines() if not line.startswith(UNTRAINED)]
    assert done == STEPS[: len(done)]
    what, _, remedy = text.rstrip("\n").partition("\n  to do: ")
    what, _, where = what.partition("\n  where: ")
    return Message(what, where, remedy)


def failure(said: Said, code: int) -> str:
    """The message of a failure that more was said before."""
    assert said.code == code
    assert "Traceback" not in said.err
    assert "fault of prunec" not in said.err
    return said.err.rpartition("prunec: ")[2]
