from __future__ import annotations

from pathlib import Path

import prunec
from tests.cli.running import EVIT, MODELS, OPTIMIZE, Call, made, message


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


def test_graph_of_two_stages(call: Call) -> None:
    said = call("graph", "models_of_a_user:vit", *EVIT, "--stages", "recognise", "insert sites")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("--- recognise\n+++ insert sites\n")
    assert "\n+select_0: int64[" in said.out
    plain = call("graph", "models_of_a_user:vit", "--stages", "capture", "recognise")
    assert plain.out.startswith("--- capture\n+++ recognise\n")


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


def test_a_model_without_attention(call: Call, home: Path) -> None:
    for arguments in (
        ("explain", "models_of_a_user:convolutions"),
        (*OPTIMIZE[:1], "models_of_a_user:convolutions", *OPTIMIZE[2:]),
    ):
        said = message(call(*arguments), 3)
        assert "no residual stream" in said.what
        assert said.where
        assert "Vision Transformers" in said.remedy
    assert made(home) == []


def test_a_model_that_cannot_be_captured(call: Call, home: Path) -> None:
    said = message(call("explain", "models_of_a_user:branching"), 1)
    line = 1 + MODELS.splitlines().index("        if image.sum() > 0:")
    assert "could not capture Branching" in said.what
    assert "GuardOnDataDependentSymNode" in said.what
    assert said.where == f"{home}/models_of_a_user.py:{line}  if image.sum() > 0:"
    assert "torch.where" in said.remedy


def test_an_unknown_policy(call: Call) -> None:
    said = message(call("graph", "models_of_a_user:vit", "--policy", "evti"), 2)
    assert "'evti'" in said.what
    assert "nearest: evit, svit" in said.what
    assert ", ".join(prunec.presets()) in said.remedy
    assert ".yaml" in said.remedy


def test_a_policy_that_does_not_fit_names_those_that_do(call: Call) -> None:
    said = message(call("graph", "models_of_a_user:mean", "--policy", "evit"), 2)
    assert "class token" in said.what
    assert "mean" in said.what
    assert said.where == "scorer.kind"
    class_token = {"ats", "diffrate", "dtop", "evit"}
    assert ", ".join(sorted(set(prunec.presets()) - class_token)) in said.remedy


SVIT = ["--policy", "svit"]


def test_graph_in_a_mode(call: Call) -> None:
    said = call("graph", "models_of_a_user:vit", *SVIT, "--mode", "packed", "--diff")
    assert (said.code, said.err) == (0, "")
    assert " = rows_of(" in said.out
    assert " = unpad(" in said.out
