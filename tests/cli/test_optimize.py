from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError

import prunec
import prunec.measure.image_sets
from prunec.api import verbs
from prunec.artefact import artefact
from prunec.frontend import sources
from prunec.targets.inductor import Inductor
from prunec.verify import certificate
from tests.cli.running import OPTIMIZE, STEPS, Call, made, message


def masked(text: str) -> str:
    """A report without what differs from run to run."""
    text = re.sub(r"(identity at keep=1.0|permutation of all tokens|own counts): [\d.e+-]+", r"\1: #", text)
    text = re.sub(r"(?m)^(latency +batch \d+), .*$", r"\1, #", text)
    text = re.sub(r"(?m)^(verdict +).*$", r"\1#", text)
    text = re.sub(r"(?m)^WARNING +slower than.*\n", "", text)  # where the machine is busy
    text = re.sub(r" +[\d.]+ ms ±\d+%", " # ms ±#%", text)
    text = re.sub(r"  x\d+\.\d\d$", "  x#", text, flags=re.MULTILINE)
    text = re.sub(r" +\d+\.\d\d?%", " #%", text)
    text = re.sub(r"(KL|relative L2) [\d.]+", r"\1 #", text)
    return re.sub(r"± [\d.]+", "± #", re.sub(r"reaches \d+%", "reaches #%", text))


def test_optimize_shapes_from_end_to_end(
    call: Call,
    home: Path,
    own_file: None,
    golden: Callable[[str, str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prunec.measure.image_sets, "MOST", 256)
    said = call(
        "optimize", "shapes", "--policy", "evit", "--keep", "0.125", "--target", "eager", "--rounds", "5",
        "--output", "out",
    )  # fmt: skip
    assert said.code == 0
    golden("cli_optimize_shapes", masked(said.out))
    assert said.err.splitlines() == STEPS
    printed = {name: float(figure) for name, figure in re.findall(r" (\w+) +(\d+\.\d\d)%", said.out)}
    assert printed.keys() == {"dense", "pruned", "random"}
    assert printed["dense"] > 98
    assert printed["pruned"] > 98
    assert printed["random"] < 60
    assert made(home) == ["out"]
    report = json.loads((home / "out" / "report.json").read_text(encoding="utf-8"))
    assert round(100 * report["accuracy"]["pruned"]["accuracy"], 2) == printed["pruned"]
    assert report["accuracy"]["images"] == 256


def test_optimize_json(call: Call, home: Path, own_file: None) -> None:
    said = call(*OPTIMIZE, "--json", "-o", "deep/out")
    assert said.code == 0
    assert set(said.json) >= {
        "source", "weights", "target", "policy", "anatomy", "plan", "stages", "certificate", "flops",
        "images", "accuracy", "latency", "notes", "artefact",
    }  # fmt: skip
    written = json.loads((home / "deep" / "out" / "report.json").read_text(encoding="utf-8"))
    assert {**written, "artefact": "deep/out"} == said.json  # the folder itself does not say where it lies
    assert (said.json["source"], said.json["target"]) == ("models_of_a_user:vit", "eager")
    assert [site["leaves"] for site in said.json["plan"]["sites"]] == [15]
    assert said.json["latency"]["rows"].keys() == {"dense", "pruned", "ideal"}
    assert said.json["accuracy"]["images"] == 32
    assert "Shapes scenes" in said.json["images"]
    assert all(line.startswith("prunec: ") for line in said.err.splitlines())
    built = prunec.load(home / "deep" / "out", trust_source=True)
    alone = prunec.load(home / "deep" / "out")
    assert torch.allclose(built(torch.ones(1, 3, 20, 20)), alone(torch.ones(1, 3, 20, 20)), atol=1e-6)


def test_optimize_writes_where_the_names_say_and_measures_on_images(call: Call, home: Path) -> None:
    for label in ("1", "4"):
        (home / "images" / label).mkdir(parents=True)
        Image.new("RGB", (24, 20), (90, 40 * int(label), 10)).save(home / "images" / label / "one.png")
    threads = torch.get_num_threads()
    said = call(*OPTIMIZE, "--images", "images", "--threads", "1")
    assert said.code == 0
    assert torch.get_num_threads() == threads
    assert "\naccuracy     on 2 images of images\n" in said.out
    assert said.out.endswith("\nartefact     prunec-out/models_of_a_user-vit-evit\n")
    assert (home / "prunec-out" / "models_of_a_user-vit-evit" / "prunec.json").is_file()


def test_dry_run_compiles_and_writes_nothing(call: Call, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verbs, "optimize", None)
    said = call(*OPTIMIZE, "--dry-run")
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    assert lines[:3] == [
        "2/2 blocks, 25 patch tokens + 1 in front protected, head reads class token",
        "mode static",
        "after attention of block 0: 26 -> 15 tokens",
    ]
    assert [line.split("  ")[0] for line in lines[3:]] == [
        "capture", "normalise", "flatten grid", "recognise", "plan", "insert sites", "repair tokens",
        "liveness", "fold_key_value", "certify",
    ]  # fmt: skip
    data = call(*OPTIMIZE, "--dry-run", "--json").json
    assert list(data) == ["plan", "stages"]
    assert data["plan"]["sites"][0]["leaves"] == 15
    assert data["stages"][-1]["name"] == "certify"
    assert made(home) == []


def test_an_empty_folder_is_a_place_to_write_to(call: Call, home: Path) -> None:
    (home / "out").mkdir()
    assert call(*OPTIMIZE, "-o", "out").code == 0
    assert (home / "out" / "prunec.json").is_file()


@pytest.mark.parametrize("keep", ["0", "1.5", "-0.1", "nan"])
def test_keep_out_of_range(call: Call, keep: str) -> None:
    said = message(call("optimize", "shapes", "--policy", "evit", "--keep", keep, "--target", "eager"), 2)
    assert f"got {float(keep)!r}" in said.what
    assert said.what.endswith("@ keep")
    assert "evit" in said.where


def test_blocks_that_the_model_does_not_have(call: Call) -> None:
    said = message(call(*OPTIMIZE, "--blocks", "1,2"), 2)
    assert "block 2" in said.what
    assert "0 to 1" in said.what
    assert said.what.endswith("@ sites.blocks")


def test_an_image_that_cannot_be_read(call: Call, home: Path) -> None:
    (home / "images").mkdir()
    Image.new("RGB", (24, 20)).save(home / "images" / "a.png")
    (home / "images" / "b.png").write_bytes(b"not a picture")
    said = message(call(*OPTIMIZE, "--images", "images"), 1)
    assert "cannot be read" in said.what
    assert said.where == "images/b.png"
    assert said.remedy
    assert made(home) == ["images"]


def test_an_unknown_and_an_absent_target(call: Call, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = message(call(*OPTIMIZE, "--target", "inducter"), 1)
    assert "'inducter'" in unknown.what
    assert "nearest: inductor" in unknown.what
    assert "eager, inductor" in unknown.remedy
    monkeypatch.setattr(Inductor, "missing", lambda self: "no C++ compiler was found")
    absent = message(call(*OPTIMIZE, "--target", "inductor"), 1)
    assert "'inductor'" in absent.what
    assert "no C++ compiler was found" in absent.what
    assert "prunec targets" in absent.remedy
    assert made(home) == []


def test_a_model_that_differs_is_never_written(
    call: Call, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(  # the class token is shuffled with the patches
        certificate, "keep_all", lambda score, *_: torch.arange(score.shape[1]).roll(1).expand(score.shape)
    )
    said = message(call(*OPTIMIZE, "-o", "out"), 4)
    assert "keep=1.0" in said.what
    assert "1e-05" in said.what
    assert said.where
    assert "not changed" in said.remedy
    assert made(home) == []


@pytest.mark.parametrize("place", ["a file", "a folder", "below a file"])
def test_a_place_that_is_taken_is_known_before_the_work(
    call: Call, home: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr(sources, "read", None)
    if place == "a folder":
        (home / "out").mkdir()
    mine = home / "out" / "mine.txt" if place == "a folder" else home / "out"
    mine.write_text("mine", encoding="utf-8")
    said = message(call(*OPTIMIZE, "-o", "out/below" if place == "below a file" else "out"), 2)
    assert (f"{home}/out is a file" if place == "below a file" else "out exists") in said.what
    assert "-o" in said.remedy
    assert made(home) == ["out"]


def test_no_half_written_folder_is_left(
    call: Call, home: Path, own_file: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(artefact, "save_file", full)
    said = message(call(*OPTIMIZE, "-o", "out"), 1)
    assert "No space left on device" in said.what
    assert said.remedy
    assert made(home) == []


CHAOTIC = ("optimize", "models_of_a_user:chaotic", *OPTIMIZE[2:], "-o", "out")


def test_what_is_worse_than_zeros_is_shown_and_not_written(call: Call, home: Path) -> None:
    said = call(*CHAOTIC)
    assert said.code == 5
    assert made(home) == []
    assert said.out.startswith("WARNING ")
    assert "outputs are worse than zeros" in said.out
    assert "artefact" not in said.out
    what, _, remedy = said.err.rpartition("prunec: ")[2].partition("to do: ")
    assert "relative L2" in what
    assert "nothing was written" in what
    assert "--force" in remedy
    as_data = call(*CHAOTIC, "--json")
    assert as_data.code == 5
    assert as_data.json["useless"]
    assert as_data.json["artefact"] is None


def test_what_is_worse_than_zeros_is_written_by_force(call: Call, home: Path) -> None:
    said = call(*CHAOTIC, "--force")
    assert said.code == 0
    assert said.out.startswith("WARNING ")
    assert made(home) == ["out"]
    assert json.loads((home / "out" / "report.json").read_text(encoding="utf-8"))["useless"]


def test_a_metric_of_ones_own(call: Call, home: Path) -> None:
    (home / "metrics_of_a_user.py").write_text(
        "def best(output, labels):\n    assert labels is None\n    return output.max(1).values\n",
        encoding="utf-8",
    )
    said = call(*OPTIMIZE, "--metric", "metrics_of_a_user:best", "--json", "-o", "out")
    assert said.code == 0
    found = said.json["accuracy"]
    assert found["metric"] == "best"
    assert all("metric" in found[name] for name in ("dense", "pruned", "random", "spread"))


def test_a_metric_that_is_none_is_known_before_the_work(call: Call, home: Path) -> None:
    said = message(call(*OPTIMIZE, "--metric", "metrics_of_nobody:best"), 2)
    assert "metrics_of_nobody" in said.what
    assert "--metric" in said.where
    assert said.remedy
    assert made(home) == []


SVIT = ["--policy", "svit"]


def test_optimize_in_a_mode(call: Call, home: Path) -> None:
    said = call(
        "optimize", "models_of_a_user:vit", *SVIT, "--no-calibrate", "--target", "eager", "--rounds", "5",
        "--batch", "2", "--mode", "padded", "--buckets", "16,20", "-o", "out", "--json",
    )  # fmt: skip
    assert said.code == 0
    expected = {"mode": "padded", "buckets": [16, 20], "max_tokens": None, "attention": None}
    assert said.json["plan"]["lowering"] == expected
    assert made(home) == ["out"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--mode", "paked"], "nearest: packed"),
        (["--mode", "packed", "--buckets", "8,16"], "buckets"),
        (["--buckets", "8,x"], "--buckets"),
        (["--mode", "static"], "one image at a time"),
        (["--mode", "padded", "--max-tokens", "9"], "max_tokens"),
    ],
)
def test_a_mode_that_cannot_be(call: Call, home: Path, options: list[str], words: str) -> None:
    said = call("optimize", "models_of_a_user:vit", *SVIT, "--no-calibrate", "--target", "eager", *options)
    assert said.code == 2
    assert said.out == ""
    assert words in said.err
    assert made(home) == []
