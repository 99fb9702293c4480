from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from prunec import targets
from prunec.errors import TargetError
from prunec.targets import FixedBatch
from prunec.targets.onnx import Onnx
from prunec.targets.tensorrt import TensorRt, check
from tests.targets import cases
from tests.targets.cases import difference, images

pytestmark = pytest.mark.skipif(Onnx().missing() is not None, reason="needs the packages of the extra onnx")
FILE = "model.tensorrt.onnx"


@pytest.mark.parametrize("name", ["evit", "tome"])
def test_the_file_has_one_batch_and_gathers_rows_of_a_table(name: str, tmp_path: Path) -> None:
    import onnx

    program = cases.case(name)
    target = TensorRt().with_batch(3)
    assert isinstance(target, FixedBatch)
    target.write(program, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {FILE, f"{FILE}.data"}
    graph = onnx.load(tmp_path / FILE).graph
    kinds = {node.op_type for node in graph.node}
    assert not kinds & {"GatherElements", "GatherND", "NonZero", "Loop", "If"}
    assert not [node for node in graph.node if "add" in str(node.attribute)]  # no scatter that adds
    sizes = [each.dim_value for each in graph.input[0].type.tensor_type.shape.dim]
    assert sizes == [3, 3, 24, 24]
    with torch.no_grad():
        (found,) = target.read(tmp_path)(images(3))
        assert difference(found, program.module(images(3))[0]) < cases.TOLERANCE


def test_longer_streams_than_topk_takes_are_sorted_by_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx

    monkeypatch.setattr("prunec.targets.tensorrt.MOST", 20)
    TensorRt().write(cases.case("evit"), tmp_path)
    assert "TopK" not in {node.op_type for node in onnx.load(tmp_path / FILE).graph.node}
    with torch.no_grad():
        (found,) = TensorRt().read(tmp_path)(images(1))
        assert difference(found, cases.case("evit").module(images(1))[0]) < cases.TOLERANCE


def test_a_file_that_it_would_not_take_is_refused(tmp_path: Path) -> None:
    Onnx().write(cases.case("evit"), tmp_path)
    with pytest.raises(TargetError, match="GatherElements, TopK of a count that is computed, a size"):
        check(tmp_path / "model.onnx")


def test_images_that_keep_different_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="TensorRT does not run programs in which images keep different"):
        TensorRt().write(cases.case("cover"), tmp_path)


def test_it_never_runs_here() -> None:
    assert TensorRt().unwritable() is None
    assert targets.is_only_written("tensorrt")
    for call in (lambda: targets.load("tensorrt"), lambda: TensorRt().lower(cases.case("evit"))):
        with pytest.raises(TargetError, match="prunec writes its file, and trtexec makes the engine of it"):
            call()


class Fake(ModuleType):
    """TensorRT's package, as far as it is called: it notes what it is asked for."""

    def __init__(self, takes: bool) -> None:
        super().__init__("tensorrt")
        self.asked: list[Any] = []
        fake = self

        class Logger:
            WARNING = 2

            def __init__(self, level: int) -> None:
                fake.asked.append(level)

        class Builder:
            def __init__(self, logger: Logger) -> None:
                pass

            def create_network(self, flags: int) -> str:
                fake.asked.append(flags)
                return "network"

            def create_builder_config(self) -> str:
                return "config"

            def build_serialized_network(self, network: str, config: str) -> bytes:
                return f"{network} {config}".encode()

        class OnnxParser:
            num_errors = 1

            def __init__(self, network: str, logger: Logger) -> None:
                pass

            def parse_from_file(self, path: str) -> bool:
                fake.asked.append(Path(path).name)
                return takes

            def get_error(self, place: int) -> str:
                return f"error {place}"

        self.Logger, self.Builder, self.OnnxParser = Logger, Builder, OnnxParser


def test_where_tensorrt_is_installed_the_engine_is_built_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib.machinery import ModuleSpec

    for takes in (True, False):
        fake = Fake(takes)
        fake.__spec__ = ModuleSpec("tensorrt", None)
        monkeypatch.setitem(sys.modules, "tensorrt", fake)
        if takes:
            TensorRt().write(cases.case("evit"), tmp_path)
            assert (tmp_path / "model.plan").read_bytes() == b"network config"
            assert fake.asked == [2, 0, FILE]
        else:
            with pytest.raises(TargetError, match="TensorRT does not take the file: error 0"):
                TensorRt().write(cases.case("evit"), tmp_path)
