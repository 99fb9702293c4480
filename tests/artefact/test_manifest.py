"""Manifests: every key is checked, and whatever stands there gives a plain error or an artefact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prunec import targets
from prunec.artefact import artefact
from prunec.artefact.manifest import Manifest
from prunec.errors import PolicyError, PruneError, SourceError
from prunec.policy.lowering import from_dict
from prunec.policy.policy import Policy

#: As `Result.save` writes it.
WRITTEN: dict[str, Any] = {
    "format": 1,
    "source": "shapes",
    "weights": "shipped",
    "target": "eager",
    "policy": Policy.load("norm").model_dump(mode="json"),
    "plan": {
        "policy": Policy.load("norm").model_dump(mode="json", exclude_none=True),
        "sites": [
            {
                "block": 3, "where": "before_block", "tokens": 82, "keep": 57, "leaves": 58, "ragged": False,
                "step": 0, "known": True,
            }
        ],
        "notes": ["no site at block 11"],
        "rejoin": None,
        "lowering": {"mode": "padded", "buckets": [64, 128], "max_tokens": None, "attention": None},
    },
    "certificate": {
        "identity": 1e-7, "permutation": 2e-7, "tolerance": 1e-5, "seconds": 0.5, "batch": 2,
        "permutation_tolerance": None, "padding": None,
    },
    "arch": "",
    "versions": {"prunec": "0.1.0", "torch": "2.11.0"},
    "files": ["model.safetensors", "report.json"],
}  # fmt: skip
PATHS = [
    *((key,) for key in WRITTEN),
    *((key, inner) for key in WRITTEN if isinstance(WRITTEN[key], dict) for inner in WRITTEN[key]),
    *(("plan", "lowering", key) for key in WRITTEN["plan"]["lowering"]),
    *(("plan", "sites", key) for key in WRITTEN["plan"]["sites"][0]),
]
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(10**18, 10**70) | st.text() | st.characters()
    | st.floats() | st.sampled_from(["padded", "eager", "norm", "\ud800", "\x00", "a" * 5000]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    plain = {key: value for key, value in WRITTEN.items() if key not in ("format", "files")}
    state = {"a": torch.ones(2)}
    return artefact.save(tmp_path_factory.mktemp("manifest") / "out", plain, state, {"report.json": "{}"})


def write(folder: Path, manifest: Any) -> None:
    (folder / "prunec.json").write_text(json.dumps(manifest), encoding="utf-8")


def changed(path: tuple[str, ...], value: Any) -> Any:
    manifest = json.loads(json.dumps(WRITTEN))
    place = manifest
    for key in path[:-1]:
        place = place[key][0] if key == "sites" else place[key]
    place[path[-1]] = value
    return manifest


def reads(folder: Path) -> dict[str, Any]:
    """All that loading takes from a manifest before it builds a model."""
    manifest, _ = artefact.read(folder)
    policy, options = Policy.load(manifest["policy"]), manifest["plan"].get("lowering", {})
    from_dict(policy, options, can=targets.load("eager").modes)
    targets.load(manifest["target"])
    assert all(isinstance(manifest[key], str) for key in ("source", "weights", "target", "arch"))
    return manifest


def test_what_is_written_is_read(folder: Path) -> None:
    write(folder, WRITTEN)
    manifest = reads(folder)
    for key in ("source", "weights", "target", "policy", "certificate", "arch", "versions"):
        assert manifest[key] == WRITTEN[key]
    assert manifest["plan"]["lowering"] == {**WRITTEN["plan"]["lowering"], "buckets": (64, 128)}


def test_older_artefacts_say_bound(tmp_path: Path) -> None:
    old = {"mode": "packed", "bound": 99}
    (tmp_path / "prunec.json").write_text(
        json.dumps({**WRITTEN, "plan": {**WRITTEN["plan"], "lowering": old}})
    )
    lowering = Manifest.read(tmp_path / "prunec.json").plan.lowering
    assert (lowering.mode, lowering.max_tokens) == ("packed", 99)


def test_an_older_one_lists_no_files_and_a_newer_one_says_more(folder: Path) -> None:
    write(folder, {key: value for key, value in WRITTEN.items() if key not in ("files", "arch", "versions")})
    assert reads(folder)["files"] == ()
    write(folder, {**WRITTEN, "colour": {"deep": [1]}, "plan": {**WRITTEN["plan"], "colour": 1}})
    assert "colour" not in reads(folder)


@pytest.mark.parametrize("path", PATHS, ids=".".join)
def test_anything_in_place_of_any_value_is_read_or_refused(folder: Path, path: tuple[str, ...]) -> None:
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(ANYTHING)
    def check(value: Any) -> None:
        write(folder, changed(path, value))
        try:
            reads(folder)
        except PruneError as error:
            assert len(str(error)) < 6000  # noqa: PT017
            str(error).encode()

    check()


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("source",), 7, "prunec.json: source: Input should be a valid string"),
        (("source",), "a\nb", "prunec.json: source: String should match"),
        (("target",), ["eager"], "prunec.json: target: Input should be a valid string"),
        (("policy",), "evit", "prunec.json: policy: Input should be a valid dictionary"),
        (("plan",), [], "prunec.json: plan: Input should be a valid dictionary"),
        (("plan", "lowering"), "static", "prunec.json: plan.lowering: Input should be"),
        (("plan", "lowering", "mode"), "fast", "prunec.json: plan.lowering.mode: Input should be 'static'"),
        (
            ("plan", "lowering", "buckets"),
            [0],
            "prunec.json: plan.lowering.buckets.0: Input should be greater",
        ),
        (
            ("plan", "lowering", "max_tokens"),
            10**20,
            "prunec.json: plan.lowering.max_tokens: Input should be less",
        ),
        (("plan", "sites", "block"), -1, "prunec.json: plan.sites.0.block: Input should be greater"),
        (("certificate", "identity"), "small", "prunec.json: certificate.identity: Input should be a valid"),
        (("versions", "torch"), 2, "prunec.json: versions.torch: Input should be a valid string"),
        (("files",), ["../thesis.tex"], "prunec.json: files.0: String should match pattern"),
        (("format",), True, "has format True, this prunec reads 1"),
        (("format",), "1", "has format '1', this prunec reads 1"),
    ],
    ids=lambda value: ".".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_names_the_key(folder: Path, path: tuple[str, ...], value: Any, words: str) -> None:
    write(folder, changed(path, value))
    with pytest.raises(SourceError) as caught:
        artefact.read(folder)
    assert words in caught.value.what
    assert str(folder) in caught.value.what
    assert caught.value.remedy


def test_a_mistake_in_the_policy_names_the_manifest(folder: Path) -> None:
    write(folder, changed(("policy", "fate"), "burn"))
    with pytest.raises(PolicyError, match="fate must be drop") as caught:
        artefact.read(folder)
    assert caught.value.where == f"{folder / 'prunec.json'}, policy"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[" * 10_000, "prunec.json is nested more than 32 levels deep"),
        ('{"format": 1, "format": 1}', "prunec.json is not valid JSON: the key 'format' is given twice"),
        ('{"format": 1, "plan": NaN}', "prunec.json is not valid JSON: NaN is no number"),
        ('{"format": ' + "1" * 5000 + "}", "prunec.json is not valid JSON: Exceeds the limit"),
        ('{"source": "' + "a" * 2_000_000 + '"}', "prunec.json cannot be read: it is larger than 1 MB"),
        (json.dumps({f"k{n}": 1 for n in range(50_000)}), "prunec.json holds more than 20000 values"),
    ],
)
def test_a_hostile_file(folder: Path, content: str, words: str) -> None:
    (folder / "prunec.json").write_text(content)
    with pytest.raises(SourceError) as caught:
        artefact.read(folder)
    assert words in caught.value.what
