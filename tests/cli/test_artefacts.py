"""`prunec run` and `prunec verify`, on an artefact that `prunec optimize` wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.running import OPTIMIZE, Call, message


@pytest.fixture
def out(call: Call, home: Path, own_file: None) -> Path:
    assert call(*OPTIMIZE, "-o", "out").code == 0
    Image.effect_noise((30, 24), 90).convert("RGB").save(home / "a.png")
    return home / "out"


def test_run_verify_and_what_is_wrong(call: Call, out: Path) -> None:
    """One artefact for all: it takes seconds to make."""
    said = call("run", "out", "a.png", "a.png", "--top", "2", "-o", "all.npz")
    assert said.code == 0
    lines = said.out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == ["a.png", "a.png"]
    assert len(lines) == 6
    with np.load("all.npz") as found:
        assert found["output"].shape == (2, 7)
    answers = call("run", "out", "a.png", "--json").json
    assert answers[0]["image"] == "a.png"
    assert len(answers[0]["outputs"][0]["classes"]) == 5

    Path("bad.png").write_bytes(b"no picture")
    said_bad = message(call("run", "out", "a.png", "bad.png"), 1)
    assert "bad.png" in str(said_bad)
    assert "no file of numbers" in str(message(call("run", "out", "a.png", "-o", "all.txt"), 2))
    assert "is no readable prunec artefact" in str(message(call("run", "nowhere", "a.png"), 1))

    table = call("verify", "out")
    assert table.code == 0
    assert "outputs of model.pt2" in table.out
    rows = call("verify", "out", "--no-rebuild", "--json").json
    assert {row["verdict"] for row in rows} == {"ok"}
    content = bytearray((out / "report.html").read_bytes())
    content[5] ^= 1
    (out / "report.html").write_bytes(content)
    damaged = call("verify", "out", "--no-rebuild")
    assert "report.html" in damaged.out
    assert damaged.code == 4
    assert "report.html of out: is not what was written" in damaged.err
