from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from prunec import compat
from prunec.capture import capture as capturing
from prunec.ir import graph
from tests.capture.lines import line_of
from tests.tiny import captured, run


class Precisions(nn.Module):
    """Autocast, in it a part of full precision and one without gradients; both are written to in place."""

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self.device, self.first, self.last = device, nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(self.device, dtype=torch.bfloat16):
            y = self.first(x)  # in 16 bits
            y += 0.5
            with torch.autocast(self.device, enabled=False):
                y = y.softmax(dim=-1) + self.last(x)
            with torch.no_grad():
                scale = self.last(y)
                scale.mul_(2)
        return x + y + scale


def test_what_autocast_converts_stands_in_the_graph() -> None:
    model, x = Precisions().eval(), torch.randn(3, 4, 8)
    program = captured(model, x)
    linears = [node for node in program.graph.nodes if graph.op(node) == "linear"]
    kinds = [node.meta["val"].dtype for node in linears]
    assert kinds == [torch.bfloat16, torch.float32, torch.bfloat16]
    assert [str(graph.module_path(node)) for node in linears] == ["first", "last", "last"]
    assert line_of(__file__, "self.first(x)  # in 16 bits") in str(graph.source_line(linears[0]))
    assert not any(node.op == "call_module" or "wrap_with" in graph.op(node) for node in program.graph.nodes)
    with torch.no_grad():
        assert torch.equal(run(program, x)[0], model(x))


class Unchanged(nn.Module):
    """A region without autocast, in which something is written in place."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = x * 2
            y += 1
        return x + y


def test_operators_in_place_become_functional_in_a_region_too() -> None:
    x = torch.randn(3, 8)
    program = captured(Unchanged().eval(), x)
    assert not any(compat.mutates(node.target) for node in program.graph.nodes)
    assert torch.equal(run(program, x)[0], x + (x * 2 + 1))


def test_autocast_of_another_device_is_a_warning_with_the_line() -> None:
    x = torch.empty(3, 4, 8, device="meta")
    exported = compat.export(Precisions("cpu").eval().to("meta"), (x,), {}, 3)
    with pytest.warns(UserWarning, match="does nothing") as seen:
        program = capturing.adopt(exported, (x,), {})
    said = next(str(each.message) for each in seen if "does nothing" in str(each.message))
    assert said.startswith(
        "torch.autocast('cpu') does nothing to an example on meta, so the captured program"
    )
    assert said.endswith("; give an example on that device")
    assert program.stages[0].notes == (said.rpartition("; ")[0],)
    assert line_of(__file__, "self.first(x)  # in 16 bits") in said
    kinds = {node.meta["val"].dtype for node in program.graph.nodes if graph.op(node) == "linear"}
    assert kinds == {torch.float32}
