from __future__ import annotations

import shutil

import pytest
import torch
from torch._dynamo.utils import counters

from prunec import compat, targets
from prunec.errors import TargetError
from prunec.ir.program import Program
from prunec.targets import LoweredModule
from prunec.targets.inductor import Inductor
from tests.tiny import ViT, pixels, pruned, recognised


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(5)
    return pruned(recognised(ViT()), scorer="cls_attention", where="after_attention", fate="fuse")


def test_one_compilation_serves_every_batch(program: Program) -> None:
    torch._dynamo.reset()
    counters.clear()
    module = LoweredModule(program, Inductor(regional=False).lower(program))
    with torch.no_grad():
        for batch in (2, 3, 5, 8):
            x = pixels(batch)
            torch.testing.assert_close(module(x), program.module(x)[0], rtol=0, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1
    assert counters["graph_break"] == {}


def test_one_compilation_serves_every_batch_and_every_count() -> None:
    torch.manual_seed(5)
    dynamic = {"selector": "threshold", "fate": "preserve", "reactivate": True, "scorer": "mlp"}
    program = pruned(recognised(ViT(depth=3)), blocks=[1, 2], **dynamic)
    torch._dynamo.reset()
    counters.clear()
    module = LoweredModule(program, Inductor(regional=False).lower(program))
    with torch.no_grad():
        for batch, loudness in ((2, 1.0), (5, 0.1), (8, 4.0)):
            x = pixels(batch) * loudness
            torch.testing.assert_close(module(x), program.module(x)[0], rtol=0, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1
    assert counters["graph_break"] == {}


def test_a_missing_compiler_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(shutil, "which", lambda name: asked.append(name))
    assert Inductor().missing() == "no C++ compiler was found (Debian, Ubuntu: apt-get install g++)"
    assert asked == ["c++", "g++", "clang++"]
    with pytest.raises(TargetError, match=r"target 'inductor' cannot run here: no C\+\+ compiler") as caught:
        targets.load("inductor")
    assert caught.value.remedy == "`prunec targets` lists what can"


def test_any_compiler_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: name if name == "clang++" else None)
    assert Inductor().missing() is None
    assert isinstance(targets.load("inductor"), Inductor)


@pytest.mark.parametrize(("dynamic_batch", "dynamic"), [(True, None), (False, False)])
def test_the_batch_may_be_left_static(
    program: Program, monkeypatch: pytest.MonkeyPatch, dynamic_batch: bool, dynamic: bool | None
) -> None:
    asked: list[dict[str, object]] = []
    marked: list[int] = []

    def compile_(module: object, **options: object) -> object:
        asked.append(options)
        return module

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(compat, "mark_dynamic", lambda leaf: marked.append(leaf.shape[0]))
    run = Inductor(dynamic_batch=dynamic_batch, regional=False).lower(program)
    assert asked == [{"fullgraph": True, "dynamic": dynamic, "options": None}]  # as nothing is ragged
    for batch in (1, 2, 5):
        x = pixels(batch)
        assert torch.equal(run(x)[0], program.module(x)[0])
    assert marked == ([2, 5] if dynamic_batch else [])  # one image is a constant to PyTorch
