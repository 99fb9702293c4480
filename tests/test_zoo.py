"""Structures that the table of families lacks: found as written down, exact, and right with fewer tokens.

And the rules by which benchmarks/zoo.py makes models small and keeps its rows.
"""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from prunec.compiler import plan, recognise
from prunec.frontend import sources
from prunec.ir.program import Program, ProgramModule
from prunec.passes import BACK, run_passes
from prunec.policy.policy import Policy
from prunec.verify.certificate import certify, relative_difference
from tests.families import randomise

KEEP, CLASSES, WIDTH, HEADS = 0.6, 10, 48, 3


@dataclass(frozen=True)
class Structure:
    """A model of timm, made small, and what is true of it."""

    model: str
    blocks: int  # with attention, in the stream that is pruned
    tokens: int
    prefix: int
    options: dict[str, Any] = field(default_factory=dict)
    image: tuple[int, int] = (64, 112)

    def build(self) -> nn.Module:
        """The model in eval mode, every parameter filled with numbers that matter."""
        widths = {"embed_dim": WIDTH, "num_heads": HEADS, "depth": self.blocks}
        options = {"num_classes": CLASSES, "img_size": self.image, **widths, **self.options}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old spellings inside timm
            return randomise(timm.create_model(self.model, **options).eval(), seed=1)


STRUCTURES = (
    Structure("cait_xxs24_224", blocks=3, tokens=28, prefix=0),  # the class token enters after the blocks
    # The class token enters after the first block: the longer stream behind it is pruned.
    Structure(
        "convit_tiny",
        blocks=2,
        tokens=17,
        prefix=1,
        image=(64, 64),
        options={"depth": 3, "local_up_to_layer": 1},
    ),
    Structure("vit_base_patch16_xp_224", blocks=3, tokens=29, prefix=1),  # attention and MLP side by side
    Structure("vit_small_patch16_18x2_224", blocks=3, tokens=29, prefix=1),  # two of each, summed
    Structure("vit_relpos_small_patch16_224", blocks=3, tokens=28, prefix=0),
    Structure("vit_pe_core_tiny_patch16_384", blocks=3, tokens=29, prefix=1),
    Structure("aimv2_large_patch14_224", blocks=3, tokens=28, prefix=0, image=(56, 98)),
    Structure("vit_small_patch16_rope_mixed_224", blocks=3, tokens=29, prefix=1),
    Structure("vit_tiny_r_s16_p8_224", blocks=3, tokens=17, prefix=1, image=(128, 128)),
    Structure("xcit_nano_12_p16_224", blocks=3, tokens=28, prefix=0),  # attention over channels
)


@pytest.fixture(scope="module", params=STRUCTURES, ids=lambda structure: structure.model)
def found(request: pytest.FixtureRequest) -> tuple[Structure, nn.Module, Program]:
    structure: Structure = request.param
    model = structure.build()
    return structure, model, recognise(sources.from_module(model))


def test_recognised(found: tuple[Structure, nn.Module, Program]) -> None:
    structure, _, dense = found
    anatomy = dense.anatomy
    assert (anatomy.tokens, anatomy.prefix, anatomy.suffix) == (structure.tokens, structure.prefix, 0)
    assert sum(block.attention is not None for block in anatomy.blocks) >= structure.blocks


def test_certified_and_differentiable(found: tuple[Structure, nn.Module, Program]) -> None:
    structure, model, dense = found
    policy = Policy.load("norm").override(keep_per_site=KEEP)
    pruned = run_passes(BACK, plan(dense, policy))
    assert pruned.plan.sites
    certify(dense, pruned)
    fast, same = ProgramModule(pruned), ProgramModule(dense)
    for batch in (1, 3):
        images = torch.randn(batch, 3, *structure.image, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            expected = model(images)
            assert relative_difference(same(images), expected) < 1e-5
            output = fast(images)
        assert output.shape == expected.shape
        assert relative_difference(output, expected) > 1e-4  # something was dropped
    fast(images).square().sum().backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert missing == []


def test_patches_outweigh_pixels_where_a_model_has_a_stream_of_each() -> None:
    model = timm.create_model("tnt_s_patch16_224", num_classes=CLASSES, depth=2).eval()
    anatomy = recognise(sources.from_module(randomise(model, seed=1))).anatomy
    assert (anatomy.tokens, anatomy.prefix, anatomy.depth) == (197, 1, 2)
    assert ["another stream" in miss.reason for miss in anatomy.unmatched] == [True, True]


def test_two_streams_of_patches_are_not_taken_for_one() -> None:
    model = timm.create_model("crossvit_tiny_240", num_classes=CLASSES, depth=((1, 1, 0), (1, 1, 0))).eval()
    anatomy = recognise(sources.from_module(randomise(model, seed=1))).anatomy
    assert any("another stream" in miss.reason for miss in anatomy.unmatched)


# --- the walk -----------------------------------------------------------------------------------


@pytest.fixture
def walk(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """benchmarks/zoo.py and benchmarks/zoo_models.py."""
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[1] / "benchmarks"), *sys.path])
    return importlib.import_module("zoo"), importlib.import_module("zoo_models")


def test_a_row_of_the_walk(walk: tuple[Any, Any]) -> None:
    zoo, models = walk
    row = zoo.examine(models.Case("timm", "vision_transformer", "vit_tiny_patch16_224"))
    assert (row["verdict"], row["reason"]) == ("transformed", "")
    assert (row["blocks"], row["tokens"], row["prefix"], row["batches"]) == (4, 29, 1, [1, 2, 3])
    assert row["literals"] > 0
    assert row["permutation"] < 1e-5
    text = zoo.markdown(
        {"versions": zoo.versions(), "policy": "norm", "keep": 0.6, "date": "", "left": 0, "rows": [row]}
    )
    assert "| vision_transformer | vit_tiny_patch16_224 | 4 / 4 | 29 | 1 + 0 |" in text


def test_stages_are_narrowed_by_one_factor_and_keep_two_heads(walk: tuple[Any, Any]) -> None:
    _, models = walk
    options = {"embed_dims": (128, 256, 512), "num_heads": (4, 8, 16)}
    assert models._narrow(options) == {"embed_dims": (64, 128, 256), "num_heads": (2, 4, 8)}
    assert models._narrow({"embed_dim": 352, "num_heads": (8, 16)}) == {"embed_dim": 88, "num_heads": (2, 4)}
    assert models._narrow({"dims": [96, 192]}) == {"dims": [32, 64]}
    assert models._narrow({"embed_dim": 96, "num_heads": (3, 6)}) == {}  # the first stage has three


def test_sizes_inside_a_configuration_are_made_small_too(walk: tuple[Any, Any]) -> None:
    _, models = walk
    built = models.build(models.Case("timm", "naflexvit", "naflexvit_base_patch16_gap"))
    assert len(built.module.blocks) == models.BLOCKS
    assert built.module.embed_dim == models.WIDTH
    assert sum(parameter.numel() for parameter in built.module.parameters()) < 1e6


def test_a_large_image_is_cut_where_the_model_takes_a_smaller_one(walk: tuple[Any, Any]) -> None:
    class Takes(nn.Module):
        pretrained_cfg = {"input_size": (3, 300, 300)}  # noqa: RUF012

        def __init__(self, least: int) -> None:
            super().__init__()
            self.least = least

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.shape[-1] >= self.least
            return x

    _, models = walk
    assert [models._image_of(Takes(least)).shape[-1] for least in (1, 101, 151)] == [100, 150, 300]


def test_rows_of_another_compiler_are_not_kept(
    walk: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo, _ = walk
    monkeypatch.setattr(zoo, "RECORD", tmp_path / "zoo.json")
    made = {**zoo.versions(), "prunec": "0.1.0 at 1234567"}
    monkeypatch.setattr(zoo, "versions", lambda: made)
    rows = [
        {"name": name, "compiler": made["prunec"] + more} for name, more in (("same", ""), ("other", "8"))
    ]
    zoo.RECORD.write_text(json.dumps({"versions": made, "rows": rows}), encoding="utf-8")
    assert list(zoo._known()) == ["same"]
    monkeypatch.setattr(zoo, "versions", lambda: {**made, "torch": "0"})
    assert zoo._known() == {}
    monkeypatch.setattr(zoo, "versions", lambda: {**made, "prunec": made["prunec"] + "+"})
    assert zoo._known() == {}
