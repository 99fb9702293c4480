from __future__ import annotations

from typing import Any

import pytest
import torch

from prunec.measure import cost, packed_attention
from prunec.measure.packed_attention import faster_attention
from tests.tiny import Attention, Block, ViT, recognised


@pytest.mark.parametrize(("rows", "padded", "best"), [(1e-3, 2e-3, "rows"), (2e-3, 1e-3, "padded")])
def test_the_faster_one_is_taken_and_both_times_are_reported(
    rows: float, padded: float, best: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_attention, "_measured", lambda *_: {"rows": rows, "padded": padded})
    attention, words = faster_attention(recognised(ViT()))
    assert attention == best
    assert f"rows {1e3 * rows:.2f} ms" in words
    assert f"padded {1e3 * padded:.2f} ms" in words


def test_both_are_run_on_the_models_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: dict[str, Any] = {}

    def measure(calls: dict[str, Any], **_: Any) -> dict[str, cost.Timing]:
        shapes.update({name: call() for name, call in calls.items()})
        return {name: cost.Timing(name, (1.0,)) for name in calls}

    monkeypatch.setattr(cost, "measure", measure)
    faster_attention(recognised(ViT()))
    assert shapes["rows"].shape == shapes["padded"].shape
    torch.testing.assert_close(shapes["rows"], shapes["padded"])


def test_attention_that_is_spelled_out_runs_padded_and_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packed_attention, "_measured", None)
    spelled = ViT(lambda: Block(lambda: Attention(form="spelled")))
    assert faster_attention(recognised(spelled))[0] == "padded"
