from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from prunec.api.results import Result
from prunec.artefact import card
from tests.api.conftest import saved as saved  # an artefact of a small model


def head_of(text: str) -> dict[str, object]:
    _, head, _ = text.split("---\n", 2)
    return dict(yaml.safe_load(head))


def test_a_card_says_what_was_done_measured_and_how_to_load_it(saved: tuple[Path, Result]) -> None:
    folder, result = saved
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert head_of(text) == {
        "library_name": "prunec",
        "pipeline_tag": "image-classification",
        "tags": ["prunec", "token-pruning", "vision-transformer"],
    }
    assert "policy `evit` (keep 0.5): after attention of block 0: 26 -> 15 tokens." in text
    assert 'torch.export.load("this-folder/model.pt2").module()(image)' in text
    assert "| input | image | B x 3 x 20 x 20 | float32 |" in text
    assert "| output |  | B x 7 | class scores |" in text
    figures = {label: line for label, line in result.report.rows() if label in ("FLOPs", "verdict")}
    assert len(figures) == 2
    assert all(f"| {label} | {line} |" in text for label, line in figures.items())


@pytest.mark.parametrize(
    ("source", "base"),
    [
        ("hf:org/name", "org/name"),
        ("hf-hub:org/name", "org/name"),
        ("hf:./org/name", None),
        ("timm:vit", None),
    ],
)
def test_the_hub_is_told_what_it_was_made_of(
    saved: tuple[Path, Result], source: str, base: str | None
) -> None:
    report = saved[1].report.__class__(**{**vars(saved[1].report), "source": source})
    text = card.text(report, saved[1].description.spec, ["a|b"], portable=False)
    assert head_of(text).get("base_model") == base
    assert "torch.export.load" not in text
    assert "Its 1 classes are named in `labels.json`." in text


def test_inputs_by_name_are_called_by_name(saved: tuple[Path, Result]) -> None:
    spec = saved[1].description.spec
    inputs = [one.model_copy(update={"by_name": True}) for one in spec.inputs]
    text = card.text(saved[1].report, spec.model_copy(update={"inputs": tuple(inputs)}), (), portable=True)
    assert ".module()(image=image)" in text
