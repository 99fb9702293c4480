from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from prunec import targets
from prunec.api.on_targets import Chosen, fastest_target, not_taken, parity
from prunec.errors import TargetError
from prunec.ir.program import Program
from prunec.measure import cost
from prunec.measure.cost import Timing
from prunec.targets.precision import BOUNDS, Precision
from tests.tiny import ViT, pixels, pruned, recognised

Change = Callable[[Tensor], Tensor]


class Fake:
    """A target that runs the graph and changes what it gives."""

    modes = ("static", "padded")
    precisions = ("fp32", "bf16", "fp16")
    precision = "fp32"

    def __init__(self, change: Change = lambda x: x, absent: str | None = None) -> None:
        self.change, self.absent = change, absent

    def within(self, precision: str) -> Fake:
        """The same in another precision, which is less exact."""
        made = Fake(lambda x: self.change(x) * (1 + LOSS.get(precision, 0)), self.absent)
        made.precision = precision
        return made

    def missing(self) -> str | None:
        return self.absent

    def lower(self, program: Program) -> Callable[..., Any]:
        return lambda *flat: tuple(map(self.change, program.module(*flat)))


def failing(x: Tensor) -> Tensor:
    raise TargetError("no such operator", remedy="none")


#: What is lost by a precision, relative to the outputs.
LOSS = {"bf16": 1e-2, "fp16": 1.0}
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
def faster() -> float:
    """How many times as fast half precision is."""
    return 2.0


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch, faster: float) -> None:
    def measured(calls: dict[str, Any], **_: Any) -> dict[str, Timing]:
        kinds = enumerate(("dense", "pruned"))
        times = {
            f"{kind} {name}{half}": SECONDS[name][place] / (faster if half else 1)
            for place, kind in kinds
            for name in SECONDS
            for half in ("", " bf16", " fp16")
        }
        return {name: Timing(name, (times[name],) * 5) for name in calls}

    monkeypatch.setattr(targets, "find", lambda name, precision="fp32": FAKES[name].within(precision))
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
    slow = Fake()
    monkeypatch.setattr(slow, "modes", ("masked",), raising=False)
    monkeypatch.setattr(slow, "within", lambda precision: slow, raising=False)
    monkeypatch.setitem(FAKES, "quick", slow)
    dense = recognised(ViT().eval())
    found = fastest_target(
        dense, pruned(dense), (pixels(),), rounds=5, progress=print, names=("eager", "quick")
    )
    assert found.name == "eager"
    assert found.table.targets[1].refused == "it does not run mode static"


def in_precision(precision: Precision, *names: str) -> Chosen:
    dense = recognised(ViT().eval())
    return fastest_target(
        dense, pruned(dense), (pixels(),), rounds=5, progress=str, names=names, precision=precision
    )


def test_a_precision_is_taken_where_it_is_faster_and_the_baseline_has_it_too(fakes: None) -> None:
    found = in_precision("bf16", "eager", "quick")
    assert (found.name, found.precision) == ("quick", "bf16")
    assert found.table.taken == found.table.fastest_dense == "quick bf16"
    assert found.table.speedup == pytest.approx(2.5 / 2.0)
    rows = {row.name: row for row in found.table.targets}
    assert list(rows) == ["eager", "quick", "eager bf16", "quick bf16"]
    assert rows["quick bf16"].parity is not None
    assert rows["quick bf16"].parity.largest == pytest.approx(1e-2, rel=0.01)
    assert rows["quick bf16"].parity.tolerance == BOUNDS["bf16"]
    x = pixels()
    assert torch.equal(found.dense(x)[0], found.lowered["dense"](x)[0] / (1 + LOSS["bf16"]))


@pytest.mark.parametrize("faster", [0.5])
def test_a_precision_that_is_not_faster_is_left(fakes: None, faster: float) -> None:
    found = in_precision("bf16", "quick")
    assert (found.name, found.precision) == ("quick", "fp32")
    assert not_taken(found.table, "bf16") == (
        "precision bf16 was asked for and is not used: it is not faster: 8000.00 ms, quick 4000.00 ms"
    )


def test_a_precision_that_loses_too_much_is_left(fakes: None) -> None:
    found = in_precision("fp16", "quick")
    assert found.precision == "fp32"
    assert "quick fp16: differs by 1.0e+00 at most" in not_taken(found.table, "fp16")


def test_a_precision_that_no_target_has_is_named(fakes: None) -> None:
    found = in_precision("int8", "eager")
    assert not_taken(found.table, "int8").endswith("eager int8: it runs in fp32, bf16, fp16, and not in int8")


def test_where_nothing_is_built_the_reason_is_raised(fakes: None) -> None:
    with pytest.raises(TargetError, match="target 'absent': it is not installed"):
        in_precision("bf16", "absent")


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
