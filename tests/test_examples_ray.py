"""The examples for Ray, on a local cluster of two workers that asks for its token."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

import prunec

ROOT = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray[serve,data]"),
]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artefact") / "out"
    prunec.optimize("shapes", "evit", measure=prunec.Measure(target="eager")).save(folder)
    return folder


def run(*command: object, folder: Path) -> str:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    arguments = [sys.executable, *map(str, command)]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_answer_over_http_is_right_and_bad_bodies_get_400(out: Path, tmp_path: Path) -> None:
    options = ("--artefact", out, "--requests", 180, "--output", tmp_path / "found.json", "--port", 8123)
    run(ROOT / "benchmarks" / "serving.py", *options, folder=ROOT / "benchmarks")
    rows = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["serving"]["rows"]
    assert [row["name"] for row in rows] == ["1 at a time", "4 at a time", "32 at a time"]
    wrong = [check["value"] for row in rows for check in row["checks"] if check["what"] == "wrong answers"]
    assert wrong == [0, 0, 0]


def test_every_file_of_a_folder_has_a_line(out: Path, tmp_path: Path) -> None:
    from PIL import Image

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(5):
        Image.effect_noise((72, 72), 40 + 20 * number).convert("RGB").save(pictures / f"{number}.png")
    (pictures / "bad.png").write_bytes(b"no picture")
    run(
        ROOT / "examples" / "batch_ray" / "classify_folder.py", out, pictures, tmp_path / "answers",
        folder=tmp_path,
    )  # fmt: skip
    lines = [line for path in (tmp_path / "answers").iterdir() for line in path.read_text().splitlines()]
    found = {Path(row["path"]).name: row for row in map(json.loads, lines)}
    assert sorted(found) == ["0.png", "1.png", "2.png", "3.png", "4.png", "bad.png"]
    assert "cannot be read" in found.pop("bad.png")["error"]
    predictor = prunec.Predictor(out)
    for name, row in found.items():
        ((expected,),) = predictor.predict([predictor.read(pictures / name)])
        (answer,) = json.loads(row["outputs"])
        assert [one["class"] for one in answer["classes"]] == [one["class"] for one in expected["classes"]]
