from __future__ import annotations

import json

import pytest

from prunec.report.target_table import OnTarget, Parity, TargetTable

RIGHT = Parity(largest=3e-7, mean=1e-7, agreement=1.0, tolerance=1e-4)
WRONG = Parity(largest=0.2, mean=0.03, agreement=0.5, tolerance=1e-4)
TABLE = TargetTable(
    targets=(
        OnTarget("eager", RIGHT, True, dense=0.1, pruned=0.06),
        OnTarget("inductor", RIGHT, True, dense=0.09, pruned=0.04),
        OnTarget("onnx", WRONG, True, dense=0.05, pruned=0.03),
        OnTarget("openvino", refused="openvino not installed"),
    ),
    batch=8,
    taken="inductor",
    fastest_dense="onnx",
    speedup=1.25,
    same_target=2.25,
)


@pytest.mark.parametrize(
    ("largest", "agrees"), [(1e-4, True), (1.1e-4, False), (float("inf"), False), (float("nan"), False)]
)
def test_parity_is_judged_by_the_largest_difference(largest: float, agrees: bool) -> None:
    assert Parity(largest, 0.0, None, 1e-4).agrees is agrees


def test_the_table_as_text() -> None:
    labels, lines = zip(*TABLE.rows(), strict=True)
    assert labels == ("targets", "", "", "", "")
    assert lines == (
        "eager     dense   100.00 ms, pruned    60.00 ms; differs by 3.0e-07 at most, 1.0e-07 on average, "
        "100% of images agree",
        "inductor  dense    90.00 ms, pruned    40.00 ms; differs by 3.0e-07 at most, 1.0e-07 on average, "
        "100% of images agree",
        "onnx      dense    50.00 ms, pruned    30.00 ms; differs by 2.0e-01 at most, 3.0e-02 on average, "
        "50% of images agree, DISAGREES: at most 1e-04 is rounding",
        "openvino  not built: openvino not installed",
        "pruned on inductor is 1.25 times as fast as the dense model on onnx, its fastest target; "
        "2.25 times over dense on inductor (batch 8, one interleaved run)",
    )


def test_what_draws_at_random_is_not_compared() -> None:
    row = OnTarget("eager", None, True, dense=0.1, pruned=0.06)
    assert row.agrees
    assert str(row).endswith("not compared: it draws at random")
    assert not TABLE.targets[2].agrees
    assert not TABLE.targets[3].agrees


def test_the_table_as_json() -> None:
    data = json.loads(json.dumps(TABLE.as_dict()))
    assert (data["taken"], data["fastest_dense"], data["speedup"]) == ("inductor", "onnx", 1.25)
    assert data["same_target_speedup"] == 2.25
    assert data["targets"]["onnx"]["parity"] == {
        "largest": 0.2, "mean": 0.03, "agreement": 0.5, "tolerance": 1e-4, "agrees": False,
    }  # fmt: skip
    assert data["targets"]["openvino"]["refused"] == "openvino not installed"
    assert data["targets"]["openvino"]["pruned_ms"] is None
