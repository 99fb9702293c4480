from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file

import prunec
import prunec.measure.image_sets
from prunec import cli
from prunec.api import verbs
from prunec.artefact import artefact
from prunec.frontend import sources
from prunec.targets.inductor import Inductor
from prunec.verify import certificate

ROOT = Path(__file__).parents[2]
MODELS = """\
import torch
from torch import nn
from prunec.data.tiny_vit import TinyViT


class Mean(TinyViT):
    def forward(self, image):
        x = self.embed(image)[:, 1:]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class Branching(TinyViT):
    def forward(self, image):
        if image.sum() > 0:
            image = -image
        return super().forward(image)


class Fixed(TinyViT):
    def forward(self, image):
        assert image.shape[0] == 2
        return super().forward(image)


class Convolutions(nn.Module):
    image_size = 20

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.GELU(), nn.Conv2d(8, 7, 5))

    def forward(self, image):
        return self.layers(image).flatten(1)


def vit(kind=TinyViT):
    torch.manual_seed(0)
    model = kind(image_size=20, patch_size=4, dim=16, depth=2, heads=2, num_classes=7)
    nn.init.normal_(model.head.weight)
    return model


def mean():
    return vit(Mean)


def branching():
    return vit(Branching)


def fixed():
    return vit(Fixed)


def convolutions():
    return Convolutions()
"""
EVIT = ("--policy", "evit", "--keep", "0.5", "--blocks", "0")
OPTIMIZE = ("optimize", "models_of_a_user:vit", *EVIT, "--target", "eager", "--rounds", "5", "--batch", "2")
STEPS = [
    "prunec: capture, recognise",
    "prunec: rewrite, certify",
    "prunec: compile dense",
    "prunec: compile pruned",
    "prunec: compile ideal",
    "prunec: measure",
]


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Call = Callable[..., Said]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that the command line runs in: it holds the models, and nothing else of the tests'."""
    (tmp_path / "models_of_a_user.py").write_text(MODELS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("models_of_a_user", None)


@pytest.fixture
def call(home: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Call]:
    level = logging.getLogger("torch").level

    def run(*arguments: str) -> Said:
        code = cli.main(list(arguments))
        return Said(code, *capsys.readouterr())

    yield run
    logging.getLogger("torch").setLevel(level)


def made(home: Path) -> list[str]:
    return sorted(
        path.name for path in home.iterdir() if path.name not in ("models_of_a_user.py", "__pycache__")
    )


def message(said: Said, code: int) -> str:
    """The one message of a failure; nothing else was said but the steps before it."""
    assert said.code == code
    assert said.out == ""
    assert "Traceback" not in said.err
    steps, start, text = said.err.rpartition("prunec: ")
    assert start
    assert steps.splitlines() == STEPS[: len(steps.splitlines())]
    return text.rstrip("\n")


def masked(text: str) -> str:
    """A report without what differs from run to run."""
    text = re.sub(r"(identity at keep=1.0|permutation of all tokens|own counts): [\d.e+-]+", r"\1: #", text)
    text = re.sub(r"(?m)^(latency +batch \d+), .*$", r"\1, #", text)
    text = re.sub(r"(?m)^(verdict +).*$", r"\1#", text)
    text = re.sub(r" +[\d.]+ ms ±\d+%", " # ms ±#%", text)
    text = re.sub(r"  x\d+\.\d\d$", "  x#", text, flags=re.MULTILINE)
    text = re.sub(r" +\d+\.\d\d%", " #%", text)
    return re.sub(r"± [\d.]+", "± #", re.sub(r"reaches \d+%", "reaches #%", text))


# --- optimize ---------------------------------------------------------------------------------


def test_optimize_shapes_from_end_to_end(
    call: Call, home: Path, golden: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prunec.measure.image_sets, "MOST", 256)
    said = call(
        "optimize", "shapes", "--policy", "evit", "--keep", "0.5", "--target", "eager", "--rounds", "5",
        "--output", "out",
    )  # fmt: skip
    assert said.code == 0
    golden("cli_optimize_shapes", masked(said.out))
    assert said.err.splitlines() == [*STEPS, "prunec: compare on images"]
    printed = {name: float(figure) for name, figure in re.findall(r" (\w+) +(\d+\.\d\d)%", said.out)}
    assert printed.keys() == {"dense", "pruned", "random"}
    assert printed["dense"] > 98
    assert printed["pruned"] > 98
    assert printed["random"] < 60
    assert made(home) == ["out"]
    report = json.loads((home / "out" / "report.json").read_text(encoding="utf-8"))
    assert round(100 * report["accuracy"]["pruned"]["accuracy"], 2) == printed["pruned"]
    assert report["accuracy"]["images"] == 256


def test_optimize_json(call: Call, home: Path) -> None:
    said = call(*OPTIMIZE, "--json", "-o", "deep/out")
    assert said.code == 0
    assert set(said.json) >= {
        "source", "weights", "target", "policy", "anatomy", "plan", "stages", "certificate", "flops",
        "images", "accuracy", "latency", "notes", "artefact",
    }  # fmt: skip
    assert said.json == json.loads((home / "deep" / "out" / "report.json").read_text(encoding="utf-8"))
    assert (said.json["source"], said.json["target"]) == ("models_of_a_user:vit", "eager")
    assert [site["leaves"] for site in said.json["plan"]["sites"]] == [15]
    assert said.json["latency"]["rows"].keys() == {"dense", "pruned", "ideal"}
    assert said.json["accuracy"] is None
    assert all(line.startswith("prunec: ") for line in said.err.splitlines())
    assert prunec.load(home / "deep" / "out", trust_source=True)(torch.zeros(1, 3, 20, 20)).shape == (1, 7)


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


# --- graph, explain, policies, targets --------------------------------------------------------


def test_graph(call: Call) -> None:
    plain = call("graph", "models_of_a_user:vit")
    assert (plain.code, plain.err) == (0, "")
    assert "  blocks 0-1     attention + mlp                   26   26\n" in plain.out
    diff = call("graph", "models_of_a_user:vit", *EVIT, "--diff")
    assert "  block 0        attention + mlp                   26   26 -> 15\n" in diff.out
    assert "    + select_0 = select(score_0, 13, 1, 0, True)\n" in diff.out
    # In the last block the query is computed for the class token, and keys and values are not made.
    assert "    + layer_norm_2_rows = rows(layer_norm_2, 1, 0, 1)\n" in diff.out
    assert "    + attend_states = attend_states(getitem_3, layer_norm_2, " in diff.out
    assert "\x1b" not in diff.out


def test_graph_json(call: Call) -> None:
    data = call("graph", "models_of_a_user:vit", *EVIT, "--format", "json").json
    assert list(data) == ["title", "sections", "inserted", "literals", "operands"]
    assert (data["inserted"], data["literals"]) == (3 + 8, 1)
    assert [section["tokens"] for section in data["sections"]] == [[], [26, 15], [15, 1], [1]]
    assert not any(section["changes"] for section in data["sections"])  # they are for --diff


def test_explain(call: Call) -> None:
    said = call("explain", "models_of_a_user:vit")
    assert (said.code, said.err) == (0, "")
    assert said.out == (
        "2/2 blocks, 25 patch tokens + 1 in front protected, head reads class token\n"
        "token axis   dimension 1 of the stream, 26 tokens\n"
        "class token  row 0\n"
        "taps         none\n"
        "\n"
        "block 0   blocks.0                 attention pre-norm fused | mlp pre-norm gelu\n"
        "block 1   blocks.1                 attention pre-norm fused | mlp pre-norm gelu\n"
    )
    data = call("explain", "models_of_a_user:mean", "--json").json
    assert {"blocks", "tokens", "prefix", "head", "taps", "unmatched", "summary"} <= data.keys()
    assert (data["tokens"], data["prefix"], data["class_token"], data["head"]) == (25, 0, None, ["mean"])
    assert data["blocks"][0]["branches"][0]["kind"] == "attention"


def test_policies(call: Call) -> None:
    said = call("policies")
    assert (said.code, said.err) == (0, "")
    rows = [line.split("  ") for line in said.out.splitlines() if not line.startswith(" ")]
    assert [row[0].strip() for row in rows] == ["policy", *prunec.presets()]
    assert said.out.split("\n", 1)[0].split() == ["policy", "summary", "rate", "needs", "fits"]
    assert all(len(line) <= 80 for line in said.out.splitlines())
    assert "…" not in said.out
    told = " ".join(said.out.split())
    assert "Merge uniform at 0.88, a known grid classification windows early adaptive detection and" in told
    data = call("policies", "--json").json
    assert list(data) == list(prunec.presets())
    assert data["evit"]["selector"]["keep"] == 0.7
    assert (data["evit"]["needs"], data["evit"]["fits"][0]) == (["class token"], "classification")


def test_one_policy_is_printed_to_copy_and_edit(call: Call, home: Path) -> None:
    said = call("policies", "algm")
    assert (said.code, said.err) == (0, "")
    assert said.out == prunec.Policy.load("algm").to_yaml()
    (home / "mine.yaml").write_text(said.out, encoding="utf-8")
    assert call("policies", "mine.yaml") == said
    assert call("policies", "mine.yaml", "--json").json == call("policies", "--json").json["algm"]
    assert message(call("policies", "evti"), 2).startswith("there is no policy 'evti'; nearest: evit, svit\n")


def test_the_schema_of_a_policy_file(call: Call) -> None:
    said = call("policies", "--schema")
    assert (said.code, said.err) == (0, "")
    assert said.json["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert set(said.json["properties"]) == set(prunec.Policy.model_fields)
    assert "--schema is of every policy file" in " ".join(call("policies", "evit", "--schema").err.split())


def test_targets(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Inductor, "missing", lambda self: "no compiler")
    said = call("targets")
    assert (said.code, said.err) == (0, "")
    assert [" ".join(line.split()) for line in said.out.splitlines()] == [
        "target summary here",
        "eager the graph as it is, on whatever device the model is on yes",
        "inductor torch.compile with Inductor, CPU and CUDA no compiler",
    ]
    data = call("targets", "--json").json
    assert data["eager"]["missing"] is None
    assert data["inductor"] == {"summary": Inductor.summary, "missing": "no compiler"}


def test_version_and_help(call: Call) -> None:
    assert call("--version") == Said(0, f"prunec {prunec.__version__}\n", "")
    said = call("--help")
    assert (said.code, said.err) == (0, "")
    for command in ("optimize", "graph", "explain", "policies", "targets"):
        assert f"  {command} " in said.out
        assert call(command, "--help").code == 0


# --- inputs and pictures ----------------------------------------------------------------------


def silent(home: Path) -> None:
    """A model that says nothing about its input."""
    (home / "models_of_a_user.py").write_text(f"{MODELS}\n\n{SILENT}", encoding="utf-8")


SILENT = """\
class Silent(TinyViT):
    image_size = None

    def forward(self, image, mask=None):
        return super().forward(image)


def silent():
    model = vit(Silent)
    model.__dict__.pop("image_size", None)
    return model
"""


def test_an_example_that_cannot_be_inferred_is_given_by_the_option_that_is_advised(
    call: Call, home: Path
) -> None:
    silent(home)
    said = message(call("explain", "models_of_a_user:silent"), 2)
    assert said.startswith("no example input can be inferred for this model\n  where: ")
    assert "\n  to do: give --example 2x3x224x224 or --image-size 224 (in Python: example=, " in said
    for option in (("--example", "2x3x20x20"), ("--example", "image=1x3x20x20"), ("--image-size", "20")):
        assert call("explain", "models_of_a_user:silent", *option).out.startswith("2/2 blocks, 25 patch")
    save_file({"image": torch.zeros(2, 3, 20, 20)}, home / "one.safetensors")
    save_file({"0": torch.zeros(2, 3, 20, 20)}, home / "first.safetensors")
    for file in ("one.safetensors", "first.safetensors"):
        plain = call("graph", "models_of_a_user:silent", "--example", file)
        assert "  blocks 0-1     attention + mlp                   26   26\n" in plain.out
    said = message(call("explain", "models_of_a_user:silent", "--example", "none.safetensors"), 1)
    assert said.startswith("there is no such file")
    dry = call(*OPTIMIZE[:1], "models_of_a_user:silent", *OPTIMIZE[2:], "--image-size", "20x20", "--dry-run")
    assert dry.code == 0


def test_pictures_are_normalised_as_the_options_say(call: Call, home: Path) -> None:
    (home / "images").mkdir()
    Image.new("RGB", (24, 20), (90, 40, 10)).save(home / "images" / "one.png")
    Image.new("RGB", (24, 20), (10, 40, 90)).save(home / "images" / "two.png")
    options = ("--images", "images", "--mean", "0.1,0.2,0.3", "--std", "0.5,0.25,0.5", "--crop", "0.5")
    said = call(*OPTIMIZE, *options, "--json")
    assert said.code == 0
    how = said.json["preprocess"]
    assert (how["mean"], how["std"]) == ([0.1, 0.2, 0.3], [0.5, 0.25, 0.5])
    assert (how["size"], how["scaled"], how["origin"]) == ([20, 20], [40, 40], "the caller")
    assert "prunec: warning" not in said.err
    assert message(call(*OPTIMIZE, *options[:4], "--std", "1,1"), 2).startswith("std is (1.0, 1.0) in the")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--example", "2x3xy"), "'2x3xy' are no shapes"),
        (("--example", "2x3x20x20", "--image-size", "20"), "leave --image-size out"),
        (("--image-size", "20,20"), "'20,20' is no size such as 224 or 224x160"),
        (("--mean", "a,b"), "'a,b' is no list of numbers such as 0.485,0.456,0.406"),
    ],
)
def test_inputs_that_are_none(call: Call, options: tuple[str, ...], said: str) -> None:
    failed = call(*OPTIMIZE, *options)
    assert (failed.code, failed.out) == (2, "")
    assert said in " ".join(failed.err.replace("│", " ").split())


def test_an_empty_folder_is_a_place_to_write_to(call: Call, home: Path) -> None:
    (home / "out").mkdir()
    assert call(*OPTIMIZE, "-o", "out").code == 0
    assert (home / "out" / "prunec.json").is_file()


# --- failures ---------------------------------------------------------------------------------


def test_a_model_without_attention(call: Call, home: Path) -> None:
    for arguments in (
        ("explain", "models_of_a_user:convolutions"),
        (*OPTIMIZE[:1], "models_of_a_user:convolutions", *OPTIMIZE[2:]),
    ):
        said = message(call(*arguments), 3)
        assert said.startswith("no residual stream with attention was found in this model\n  where: ")
        assert "\n  to do: prunec works on Vision Transformers: residual blocks with softmax" in said
    assert made(home) == []


def test_a_model_that_cannot_be_captured(call: Call, home: Path) -> None:
    said = message(call("explain", "models_of_a_user:branching"), 1)
    line = 1 + MODELS.splitlines().index("        if image.sum() > 0:")
    what, where, remedy = said.splitlines()
    assert what.startswith("torch.export could not capture Branching: GuardOnDataDependentSymNode: ")
    assert where == f"  where: {home}/models_of_a_user.py:{line}  if image.sum() > 0:"
    assert remedy.startswith(
        "  to do: make that line independent of tensor values (torch.where in place of `if`);"
    )


@pytest.mark.parametrize("keep", ["0", "1.5", "-0.1", "nan"])
def test_keep_out_of_range(call: Call, keep: str) -> None:
    said = message(call("optimize", "shapes", "--policy", "evit", "--keep", keep, "--target", "eager"), 2)
    assert said == (
        f"keep must be in (0, 1], got {float(keep)!r} @ selector.keep\n"
        "  where: an override of policy evit\n"
        "  to do: correct the place named after the @"
    )


def test_an_unknown_policy(call: Call) -> None:
    assert message(call("graph", "models_of_a_user:vit", "--policy", "evti"), 2) == (
        "there is no policy 'evti'; nearest: evit, svit\n"
        "  where: the presets\n"
        "  to do: choose one of algm, ats, bavit, cropr, cropr-drop, diffrate, dtop, dynamic, dynamicvit, "
        "evit, none, norm, pomt, random, representation-shift, svit, tome, "
        "or give the path of a .yaml, .json or .toml file"
    )


def test_a_policy_that_does_not_fit_names_those_that_do(call: Call) -> None:
    assert message(call("graph", "models_of_a_user:mean", "--policy", "evit"), 2) == (
        "policy 'evit' scores tokens by the attention of the class token, and this model's head reads none "
        "(it reads mean)\n"
        "  where: scorer.kind\n"
        "  to do: presets that fit this model: algm, bavit, cropr, cropr-drop, dynamic, "
        "dynamicvit, none, norm, pomt, random, representation-shift, svit, tome"
    )


def test_blocks_that_the_model_does_not_have(call: Call) -> None:
    said = message(call(*OPTIMIZE, "--blocks", "1,2"), 2)
    assert said.startswith("block 2 does not exist, the model has blocks 0 to 1 @ sites.blocks\n  where: ")


def test_an_image_that_cannot_be_read(call: Call, home: Path) -> None:
    (home / "images").mkdir()
    Image.new("RGB", (24, 20)).save(home / "images" / "a.png")
    (home / "images" / "b.png").write_bytes(b"not a picture")
    said = message(call(*OPTIMIZE, "--images", "images"), 1)
    assert re.match(
        r"the image cannot be read: .+\n  where: images/b\.png\n  to do: replace the file by a whole one",
        said,
    )
    assert made(home) == ["images"]


def test_an_unknown_and_an_absent_target(call: Call, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert message(call(*OPTIMIZE, "--target", "inducter"), 1) == (
        "unknown target 'inducter'; nearest: inductor\n  to do: targets: eager, inductor"
    )
    monkeypatch.setattr(Inductor, "missing", lambda self: "no C++ compiler was found")
    assert message(call(*OPTIMIZE, "--target", "inductor"), 1) == (
        "target 'inductor' cannot run here: no C++ compiler was found\n"
        "  to do: `prunec targets` lists what can"
    )
    assert made(home) == []


def test_a_model_that_differs_is_never_written(
    call: Call, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(  # the class token is shuffled with the patches
        certificate, "keep_all", lambda score, *_: torch.arange(score.shape[1]).roll(1).expand(score.shape)
    )
    said = message(call(*OPTIMIZE, "-o", "out"), 4)
    what, where, remedy = said.splitlines()
    assert re.fullmatch(
        r"the rewritten model differs from the original under keep=1\.0: \S+, at most 1e-05 is allowed", what
    )
    assert where.startswith("  where: ")
    assert remedy.startswith("  to do: the model was not changed and nothing was returned;")
    assert made(home) == []


@pytest.mark.parametrize("place", ["a file", "a folder", "below a file"])
def test_a_place_that_is_taken_is_known_before_the_work(
    call: Call, home: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr(sources, "load", None)
    if place == "a folder":
        (home / "out").mkdir()
    mine = home / "out" / "mine.txt" if place == "a folder" else home / "out"
    mine.write_text("mine", encoding="utf-8")
    said = message(call(*OPTIMIZE, "-o", "out/below" if place == "below a file" else "out"), 2)
    if place == "below a file":
        assert (
            said
            == f"out/below cannot be written: {home}/out is a file\n  to do: choose another folder with -o"
        )
    else:
        assert said == (
            "out exists and is no prunec artefact\n  to do: choose another folder with -o, or remove it"
        )
    assert made(home) == ["out"]


def test_no_half_written_folder_is_left(call: Call, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(artefact, "save_file", full)
    assert message(call(*OPTIMIZE, "-o", "out"), 1) == (
        "out could not be written: No space left on device\n"
        "  to do: nothing was left behind; is the disk full?"
    )
    assert made(home) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Usage:"),
        (("prune",), "'prune'"),
        (("optimize",), "SOURCE"),
        (("optimize", "shapes"), "'--policy'"),
        (("optimize", "shapes", "-p", "evit", "--keep", "half"), "'--keep'"),
        (("optimize", "shapes", "-p", "evit", "--rounds", "1"), "'--rounds'"),
        *(
            (("optimize", "shapes", "-p", "evit", *option), "are for a plan")
            for option in (("--sites", "2"), ("--first", "1"), ("--fast",), ("--latency-table", "t.json"))
        ),
        (
            ("optimize", "shapes", "-p", "dynamic", "--latency", "0.6", "--buckets", "64"),
            "a schedule is planned for a mode without options",
        ),
        (("optimize", "shapes", "-p", "evit", "--blocks", "3;6"), "'3;6' is no list of block numbers"),
        (("graph", "shapes", "--diff"), "--diff needs a --policy to compare with"),
        (("graph", "shapes", "--format", "xml"), "'--format'"),
        (("explain", "shapes", "--jsn"), "--jsn"),
    ],
)
def test_usage(call: Call, arguments: tuple[str, ...], said: str) -> None:
    result = call(*arguments)
    assert (result.code, result.out) == (2, "")
    assert said in result.err.replace("`", "'")
    assert "Traceback" not in result.err


def test_an_unknown_source(call: Call) -> None:
    said = message(call("explain", "models_of_a_user:vti"), 1)
    assert said.startswith(
        "models_of_a_user has no function 'vti'; nearest: vit\n  where: source 'models_of_"
    )


def test_an_unexpected_exception_is_one_message(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("no [red]tokens[/red]")

    monkeypatch.setattr(sources, "load", stop)
    assert message(call("explain", "shapes"), 1) == (
        "ZeroDivisionError: no [red]tokens[/red]\n"
        "  to do: this is a fault of prunec; PRUNEC_TRACEBACK=1 shows where, please report it"
    )
    monkeypatch.setenv("PRUNEC_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        call("explain", "shapes")


def test_an_interrupt_is_no_traceback(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sources, "load", stop)
    said = call("explain", "shapes")
    assert said.code not in (0, 2, 3, 4, 5)
    assert said.out == ""
    assert "Traceback" not in said.err


@pytest.mark.filterwarnings("default")
def test_a_warning_is_one_line_of_chatter(call: Call) -> None:
    said = call("explain", "models_of_a_user:fixed")
    assert said.code == 0
    assert said.out.startswith("2/2 blocks, ")
    (line,) = said.err.splitlines()
    assert line.startswith(
        "prunec: warning: the batch is fixed at 2: the model's own code made it a constant at "
    )
    assert line.endswith("assert image.shape[0] == 2; the result runs at this batch only")


# --- as a process -----------------------------------------------------------------------------


def process(home: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "prunec", *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=home
    )


def test_a_real_failure(home: Path) -> None:
    out, err = (running := process(home, "explain", "models_of_a_user:convolutions")).communicate()
    assert message(Said(running.returncode, out, err), 3).startswith("no residual stream with attention")


def test_a_broken_pipe_is_quiet(home: Path) -> None:
    running = process(home, "policies", "--json")
    assert running.stdout is not None
    assert running.stderr is not None
    running.stdout.close()
    assert running.stderr.read() == ""
    running.stderr.close()
    assert running.wait() in (0, 1)


# --- modes ------------------------------------------------------------------------------------

SVIT = ["--policy", "svit"]


def test_optimize_in_a_mode(call: Call, home: Path) -> None:
    said = call(
        "optimize", "models_of_a_user:vit", *SVIT, "--untrained", "--target", "eager", "--rounds", "5",
        "--batch", "2", "--mode", "padded", "--buckets", "16,20", "-o", "out", "--json",
    )  # fmt: skip
    assert said.code == 0
    expected = {"mode": "padded", "buckets": [16, 20], "bound": None, "attention": None}
    assert said.json["plan"]["lowering"] == expected
    assert made(home) == ["out"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--mode", "paked"], "unknown mode 'paked'; nearest: packed"),
        (["--mode", "packed", "--buckets", "8,16"], "buckets is an option of mode padded, got mode packed"),
        (["--buckets", "8,x"], "--buckets"),
        (["--mode", "static"], "it can run one image at a time, not 8"),
        (["--mode", "padded", "--bound", "9"], "max_tokens is an option of mode packed, got mode padded"),
    ],
)
def test_a_mode_that_cannot_be(call: Call, home: Path, options: list[str], words: str) -> None:
    said = call("optimize", "models_of_a_user:vit", *SVIT, "--untrained", "--target", "eager", *options)
    assert said.code == 2
    assert said.out == ""
    assert words in said.err
    assert made(home) == []


def test_graph_in_a_mode(call: Call) -> None:
    said = call("graph", "models_of_a_user:vit", *SVIT, "--mode", "packed", "--diff")
    assert (said.code, said.err) == (0, "")
    assert " = rows_of(" in said.out
    assert " = pick(" in said.out
