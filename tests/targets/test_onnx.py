from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from prunec import targets
from prunec.errors import TargetError
from prunec.targets import FileTarget, onnx
from prunec.targets.onnx import OPSET, Onnx
from prunec.targets.precision import BOUNDS, Precision
from tests.targets import cases
from tests.targets.cases import difference, images
from tests.tiny import ViT, recognised

pytestmark = pytest.mark.skipif(Onnx().missing() is not None, reason="needs the packages of the extra onnx")


@pytest.mark.parametrize(
    "name", ["evit", "cropr", "tome", "dynamic static", "dynamic padded", "dynamic packed"]
)
def test_a_file_runs_any_batch(name: str, tmp_path: Path, exported_once: None) -> None:
    import onnx as format_

    program, target = cases.case(name), targets.load("onnx")
    assert isinstance(target, FileTarget)
    target.write(program, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= set(target.files)
    model = format_.load(tmp_path / "model.onnx")
    assert [(each.domain, each.version) for each in model.opset_import if not each.domain] == [("", OPSET)]
    assert {node.domain for node in model.graph.node} <= {""}
    run = target.read(tmp_path)
    with torch.no_grad():
        for batch in cases.batches(program):
            (found,) = run(images(batch))
            assert difference(found, program.module(images(batch))[0]) < cases.TOLERANCE


@pytest.mark.parametrize("kind", ["int8", "fp16"])
def test_in_another_precision_layers_are_converted_and_sorts_are_not(
    kind: Precision, tmp_path: Path, exported_once: None
) -> None:
    import onnx as format_

    program, target = cases.case("evit"), targets.load("onnx", kind)
    assert isinstance(target, FileTarget)
    target.write(program, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= set(target.files)
    model = format_.load(tmp_path / "model.onnx")
    integers = sum(node.op_type == "MatMulInteger" for node in model.graph.node)
    assert integers == (13 if kind == "int8" else 0)
    weights = {format_.TensorProto.DataType.Name(each.data_type) for each in model.graph.initializer}
    assert ("FLOAT16" in weights) is (kind == "fp16")
    run = target.read(tmp_path)
    with torch.no_grad():
        for batch in cases.BATCHES:
            (found,) = run(images(batch))
            assert found.dtype == torch.float32
            assert difference(found, program.module(images(batch))[0]) < BOUNDS[kind]


def test_without_topk_ranks_are_counted(tmp_path: Path, exported_once: None) -> None:
    import onnx as format_

    program, target = cases.case("evit"), Onnx(ranks=True)
    target.write(program, tmp_path)
    assert "TopK" not in {node.op_type for node in format_.load(tmp_path / "model.onnx").graph.node}
    with torch.no_grad():
        for batch in cases.BATCHES:
            (found,) = target.read(tmp_path)(images(batch))
            assert difference(found, program.module(images(batch))[0]) < cases.TOLERANCE


class Ranked(nn.Module):
    """Columns of small whole numbers by a stable sort: most are equal."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        whole = x.round()
        down = whole.argsort(dim=1, descending=True, stable=True)
        return down, whole.argsort(dim=1, stable=True), whole.sort(dim=-1, stable=True).values


def test_equal_values_are_sorted_as_pytorch_sorts_them(tmp_path: Path) -> None:
    from prunec import compat

    x = torch.rand(3, 50) * 4
    exported = torch.export.export(Ranked(), (x,), strict=False)
    compat.to_onnx(exported, OPSET, onnx.TRANSLATIONS).save(tmp_path / "model.onnx")
    for found, expected in zip(Onnx().read(tmp_path)(x), Ranked()(x), strict=True):
        assert torch.equal(found, expected)


def test_what_has_no_onnx_is_refused(exported_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "TRANSLATIONS", {})
    with pytest.raises(TargetError, match=r"no ONNX for this program: .*sort") as caught:
        Onnx().lower(cases.case("evit"))
    assert caught.value.remedy


def test_it_runs_on_the_cpu_only() -> None:
    program = recognised(ViT().eval())
    program.module.to("meta")
    with pytest.raises(TargetError, match="target onnx runs on the CPU, and the model is on meta"):
        Onnx().lower(program)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else name)
    with pytest.raises(TargetError, match=r"cannot run here: onnx not installed \(pip install 'prunec\[onnx"):
        targets.load("onnx")
