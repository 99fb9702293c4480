from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from prunec import targets
from prunec.api.on_targets import fastest_target, parity
from prunec.errors import TargetError
from prunec.ir.program import Program
from prunec.measure import cost
from prunec.measure.cost import Timing
from tests.tiny import ViT, pixels, pruned, recognised

Change = Callable[[Tensor], Tensor]


class Fake:
    """A target that runs the graph and changes what it gives."""

    modes = ("static", "padded")

    def __init__(self, change: Change = lambda x: x, absent: str | None = None) -> None:
        self.change, self.absent = change, absent

    def missing(self) -> str | None:
        return self.absent

    def lower(self, program: Program) -> Callable[..., Any]:
        return lambda *flat: tuple(map(self.change, program.module(*flat)))


def failing(x: Tensor) -> Tensor:
    raise TargetError("no such operator", remedy="none")


FAKES = {
    "eager": Fake(),
    "quick": Fake(lambda x: x * (1 + 1e-6)),
    "wrong": Fake(lambda x: x + 1e-2),
    "broken": Fake(failing),
    "absent": Fake(absent="it is not installed"),
}
#: dense and pruned, in seconds; the wrong one would be the fastest.
SECONDS = {"eager": (10.0, 6.0), "quick": (5.0, 4.0), "wrong": (1.0, 0.5)}


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(calls: dict[str, Any], **_: Any) -> dict[str, Timing]:
        kinds = enumerate(("dense", "pruned"))
        times = {f"{kind} {name}": SECONDS[name][place] for place, kind in kinds for name in SECONDS}
        return {name: Timing(name, (times[name],) * 5) for name in calls}

    monkeypatch.setattr(targets, "find", FAKES.__getitem__)
    monkeypatch.setattr(cost, "measure", measured)


def test_the_fastest_that_agrees_is_taken_and_the_baseline_is_the_fastest_dense(fakes: None) -> None:
    dense = recognised(ViT().eval())
    said: list[str] = []
    found = fastest_target(
        dense, pruned(dense), (pixels(),), rounds=5, progress=said.append, names=tuple(FAKES)
    )
    assert found.name == found.table.taken == found.table.fastest_dense == "quick"
    assert found.table.speedup == 5.0 / 4.0
    rows = {row.name: row for row in found.table.targets}
    assert [name for name, row in rows.items() if row.agrees] == ["eager", "quick"]
    assert rows["wrong"].parity is not None
    assert not rows["wrong"].parity.agrees
    assert rows["broken"].refused == "no such operator"
    assert rows["absent"].refused == "it is not installed"
    assert said == [*(f"build on {name}" for name in FAKES), "measure targets"]


def test_a_mode_that_a_target_does_not_run_is_named(fakes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FAKES["quick"], "modes", ("masked",), raising=False)
    dense = recognised(ViT().eval())
    found = fastest_target(
        dense, pruned(dense), (pixels(),), rounds=5, progress=print, names=("eager", "quick")
    )
    assert found.name == "eager"
    assert found.table.targets[1].refused == "it does not run mode static"


def test_parity_is_relative() -> None:
    program = recognised(ViT().eval())
    x = pixels(4)
    (out,) = program.module(x)
    found = parity(program, lambda *flat: (out * 1.5,), (x,))
    assert found is not None
    assert found.largest == pytest.approx(0.5)
    assert found.mean == pytest.approx(0.5)
    assert found.agreement == 1.0
    assert not found.agrees
    other = parity(program, lambda *flat: (-out,), (x,))
    assert other is not None
    assert other.agreement == 0.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_number_that_is_none_disagrees(bad: float) -> None:
    program, x = recognised(ViT().eval()), pixels()
    found = parity(program, lambda *flat: (torch.full((2, 7), bad),), (x,))
    assert found is not None
    assert found.largest == float("inf")


def test_what_draws_at_random_is_not_compared() -> None:
    program, x = recognised(ViT().eval()), pixels()
    random = program.replace(module=program.module)
    module = lambda *flat: (torch.rand(2, 7),)  # noqa: E731
    object.__setattr__(random, "module", module)
    assert parity(random, module, (x,)) is None
