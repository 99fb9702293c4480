from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from prunec import compat
from prunec.errors import TargetError
from prunec.targets.executorch import ExecuTorch
from tests.targets import cases
from tests.targets.cases import difference, images


@pytest.mark.skipif(importlib.util.find_spec("executorch") is None, reason="needs executorch")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["evit", "tome"])
def test_it_runs_by_its_own_runtime(name: str) -> None:
    program = cases.case(name)
    run = ExecuTorch().lower(program)
    with torch.no_grad():
        for batch in (1, 3):
            assert difference(run(images(batch))[0], program.module(images(batch))[0]) < cases.TOLERANCE


XNNPACK = "executorch.backends.xnnpack.partition"


class Fake:
    """ExecuTorch's package, as far as it is called: what it lowers it runs by PyTorch."""

    def __init__(self) -> None:
        self.lowered: list[Any] = []
        self.partitioners: list[Any] = []

    def modules(self) -> dict[str, ModuleType]:
        names = {
            "executorch": {},
            "executorch.backends": {},
            "executorch.backends.xnnpack": {},
            "executorch.backends.xnnpack.partition": {},
            "executorch.backends.xnnpack.partition.xnnpack_partitioner": {
                "XnnpackPartitioner": lambda: "XNNPACK"
            },
            "executorch.exir": {"to_edge_transform_and_lower": self.lower},
            "executorch.runtime": {"Runtime": SimpleNamespace(get=lambda: self)},
        }
        made = {}
        for name, content in names.items():
            made[name] = ModuleType(name)
            vars(made[name]).update(content)
        return made

    def lower(self, exported: Any, partitioner: Any) -> Any:
        self.lowered.append(exported)
        self.partitioners.append(partitioner)
        buffer = str(len(self.lowered) - 1).encode()
        return SimpleNamespace(to_executorch=lambda: SimpleNamespace(buffer=buffer))

    def load_program(self, content: bytes) -> Any:
        module = self.lowered[int(content)].module()
        method = SimpleNamespace(execute=lambda inputs: [module(*inputs)])
        return SimpleNamespace(load_method={"forward": method}.__getitem__)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    made = Fake()
    for name, module in made.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    return made


def test_each_batch_is_lowered_by_itself_without_sorts(fake: Fake) -> None:
    program = cases.case("evit")
    run = ExecuTorch().lower(program)
    with torch.no_grad():
        for batch in (1, 3, 3):
            assert difference(run(images(batch))[0], program.module(images(batch))[0]) < cases.TOLERANCE
    assert fake.partitioners == [["XNNPACK"]] * 2
    for exported in fake.lowered:
        left = {
            compat.op_name(node.target) for node in compat.every_node(exported) if node.op == "call_function"
        }
        assert not left & {"sort", "argsort", "topk"}


def test_the_file_takes_the_batch_that_was_asked_for(fake: Fake, tmp_path: Path) -> None:
    ExecuTorch().with_batch(3).write(cases.case("evit"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pte"]
    (exported,) = fake.lowered
    shapes = [node.meta["val"].shape for node in exported.graph.nodes if node.target == "pixels"]
    assert shapes == [(3, 3, 24, 24)]


def test_what_it_does_not_take_is_refused(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel. And more")

    monkeypatch.setattr(sys.modules["executorch.exir"], "to_edge_transform_and_lower", fail)
    with pytest.raises(TargetError, match="ExecuTorch does not take this program: no kernel"):
        ExecuTorch().write(cases.case("evit"), tmp_path)
    with pytest.raises(TargetError, match="ExecuTorch does not run programs in which images keep different"):
        ExecuTorch().write(cases.case("cover"), tmp_path)
