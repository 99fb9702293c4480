from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
import timm
import torch
from rich.console import Console
from torch import nn
from transformers import Dinov2Config, Dinov2Model

from prunec.compiler import Compiled, compile_source
from prunec.frontend import sources
from prunec.policy.policy import Policy
from prunec.report.graph_diff import Change, Diff, Section, compare, lines, text, without_changes
from tests import tiny

pytestmark = pytest.mark.usefixtures("recognised_once")

Golden = Callable[[str, str], None]


def shown(compiled: Compiled) -> Diff:
    return compare(compiled.dense, compiled.pruned)


def small(module: nn.Module, policy: str = "norm") -> Diff:
    return shown(
        compile_source(sources.from_module(module.eval()), Policy.load(policy).override(keep_per_site=0.5))
    )


@pytest.fixture(scope="module")
def shapes() -> Compiled:
    source = sources.load("shapes", pretrained=False)
    torch.manual_seed(0)
    nn.init.normal_(source.module.get_parameter("head.weight"))  # zeros in a new model
    return compile_source(source, Policy.load("evit"))


@pytest.fixture(scope="module")
def dinov2() -> Diff:
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64, image_size=70
    )
    return small(Dinov2Model(config))


# --- golden texts -----------------------------------------------------------------------------


def test_shapes_with_evit(shapes: Compiled, golden: Golden) -> None:
    golden("diff_shapes_evit", text(shown(shapes)))


def test_a_rotary_model_with_norm(golden: Golden) -> None:
    diff = small(timm.create_model("eva02_tiny_patch14_224", depth=4, img_size=56))
    assert (diff.inserted, diff.literals, diff.operands) == (17, 12, 12)
    golden("diff_eva02_norm", text(diff))


def test_a_model_that_gets_all_its_tokens_back(dinov2: Diff, golden: Golden) -> None:
    golden("diff_dinov2_norm", text(dinov2))


# --- sections ---------------------------------------------------------------------------------


def test_equal_blocks_are_one_section(shapes: Compiled) -> None:
    sections = shown(shapes).sections
    assert [(section.name, section.repeats) for section in sections] == [
        ("embedding", 1),
        ("block 0", 3),
        ("block 3", 1),
        ("block 4", 2),
        ("block 6", 1),
        ("block 7", 2),
        ("block 9", 1),
        ("block 10", 1),
        ("block 11", 1),  # only the class token's row of it is read
        ("head", 1),
    ]
    assert sum(section.repeats for section in sections[1:-1]) == 12
    structure = compare(shapes.dense).sections
    assert [(section.name, section.repeats) for section in structure] == [
        ("embedding", 1),
        ("block 0", 12),
        ("head", 1),
    ]


def test_blocks_that_differ_stand_by_themselves() -> None:
    model = tiny.ViT(depth=4)
    model.blocks[2].mlp = nn.Sequential(nn.Linear(16, 16), nn.GELU(), tiny.Mlp())
    diff = compare(tiny.recognised(model))
    assert [(section.name, section.repeats) for section in diff.sections[1:-1]] == [
        ("block 0", 2),
        ("block 2", 1),
        ("block 3", 1),
    ]
    said = text(diff)
    assert re.findall(r"^  (blocks? [\d-]+) ", said, re.MULTILINE) == ["blocks 0-1", "block 2", "block 3"]


def test_token_counts(shapes: Compiled) -> None:
    diff = shown(shapes)
    assert [section.tokens for section in diff.sections] == [
        (), (82,), (82, 59), (59,), (59, 43), (43,), (43, 32), (32,), (32, 1), (1,),
    ]  # fmt: skip
    assert [section.before for section in diff.sections] == [0, *[82] * 9]
    assert [site.leaves for site in shapes.pruned.plan.sites] == [59, 43, 32]


def test_a_site_before_its_block_shortens_the_whole_block() -> None:
    dense = tiny.recognised(tiny.ViT(depth=3))
    sections = compare(dense, tiny.pruned(dense, blocks=[1])).sections
    assert [section.tokens for section in sections] == [(), (26,), (14,), (14, 1), (1,)]


def test_the_head_of_a_scattered_model_has_all_tokens(dinov2: Diff) -> None:
    assert dinov2.sections[-1].tokens == (5, 26)
    assert "  head           class token and tokens            26   5 -> 26\n" in text(dinov2)


# --- changes ----------------------------------------------------------------------------------


def test_inserted_nodes_stand_in_the_block_of_their_site(shapes: Compiled) -> None:
    diff = shown(shapes)
    inserted = {
        section.name: [change.text.split(" = ")[0] for change in section.changes if change.kind == "inserted"]
        for section in diff.sections
    }
    assert {name: nodes for name, nodes in inserted.items() if nodes} == {
        "block 3": ["score_0", "select_0", "fuse_0"],
        "block 6": ["score_1", "select_1", "fuse_1"],
        "block 9": ["score_2", "select_2", "fuse_2"],
        "block 11": [  # one row's query, and the layers of keys and values for it
            "layer_norm_22_rows",
            "blocks_11_attn_qkv_weight_rows_1",
            "blocks_11_attn_qkv_bias_rows_1",
            "blocks_11_attn_qkv_weight_rows_2",
            "blocks_11_attn_qkv_weight_rows_3",
            "blocks_11_attn_qkv_bias_rows_2",
            "attend_states",
            "add_22_rows",
        ],
    }
    assert diff.inserted == len(tiny.dialect_of(shapes.pruned)) == 9 + 8


def test_every_inserted_line_is_marked(dinov2: Diff) -> None:
    said = text(dinov2).splitlines()
    inserted = [change.text for section in dinov2.sections for change in section.changes]
    assert {line[6:] for line in said if line.startswith(("    + ", "    ~ "))} == set(inserted)
    assert sum(line.startswith("    + ") for line in said) == dinov2.inserted
    assert [line for line in said if "scatter(" in line] == [
        line for line in said if re.match(r"    \+ \w+_(full|back(_\d)?) = scatter\(", line)
    ]


def test_the_totals_count_repeated_sections_in(shapes: Compiled) -> None:
    diff = shown(shapes)
    literals = sum(
        section.repeats * sum(change.kind == "literal" for change in section.changes)
        for section in diff.sections
    )
    repairs = tiny.counts(shapes.pruned, "repair tokens")
    assert repairs["literals"] == 16
    assert diff.literals == literals == 15  # one was in the shape of keys that are never made


def test_without_a_policy_nothing_changes(shapes: Compiled) -> None:
    for diff in (compare(shapes.dense), compare(shapes.dense, shapes.dense)):
        assert (diff.inserted, diff.literals, diff.operands) == (0, 0, 0)
        assert not any(section.changes for section in diff.sections)
        assert [section.tokens for section in diff.sections] == [(), (82,), (82,)]
        assert text(diff).endswith("  0 inserted, 0 literals made symbolic, 0 tables followed\n")


def test_without_changes_keeps_the_counts(shapes: Compiled) -> None:
    bare = without_changes(shown(shapes))
    assert not any(section.changes for section in bare.sections)
    assert [section.tokens for section in bare.sections] == [s.tokens for s in shown(shapes).sections]
    assert not re.search(r"^    [+~]", text(bare), re.MULTILINE)


# --- forms ------------------------------------------------------------------------------------


def test_dict_is_plain_data(shapes: Compiled) -> None:
    data = json.loads(json.dumps(shown(shapes).as_dict()))
    assert list(data) == ["title", "sections", "inserted", "literals", "operands"]
    assert data["sections"][2]["name"] == "block 3"
    assert data["sections"][2]["tokens"] == [82, 59]
    assert data["sections"][2]["changes"][1] == {
        "kind": "inserted",
        "text": "select_0 = select(score_0, 57, 1, 0, True)",
    }
    assert data["sections"][3]["repeats"] == 2
    assert {change["kind"] for section in data["sections"] for change in section["changes"]} == {
        "inserted",
        "literal",
    }


def test_colour_adds_nothing_but_colour(dinov2: Diff) -> None:
    console = Console(force_terminal=True, highlight=False, soft_wrap=True, color_system="standard")
    with console.capture() as captured:
        for line in lines(dinov2, colour=True):
            console.print(line, markup=True)
    coloured = captured.get()
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured).splitlines() == list(lines(dinov2))
    assert "\x1b[32m    + score_0 = token_norm(" in coloured
    assert "\x1b[33m    ~ reshape [B, 26, -1, 16] -> [B, n, -1, 16]" in coloured


def test_brackets_are_no_markup() -> None:
    change = Change("literal", "view [n * B, 16] -> [red]")
    section = Section("block 0", "attention", 1, (5,), 9, (change,))
    console = Console(force_terminal=True, highlight=False, soft_wrap=True)
    with console.capture() as captured:
        for line in lines(Diff("title [bold]", (section,), 0, 1, 0), colour=True):
            console.print(line, markup=True)
    assert "title [bold]" in captured.get()
    assert "view [n * B, 16] -> [red]" in captured.get()
