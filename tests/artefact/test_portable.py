"""The model as a file of its own: as it was, wherever it is read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

import prunec
from prunec.api.results import Result
from prunec.artefact import portable
from prunec.artefact.portable import Outputs, PortableModule
from prunec.errors import SourceError, TargetError, UsageError
from prunec.frontend.sources import from_module
from prunec.ir.program import ProgramModule
from tests import tiny
from tests.api.conftest import saved as saved  # an artefact of a small model
from tests.api.making import images, values, vit
from tests.artefact.saving import rewritten
from tests.artefact.test_checksums import DAMAGES, cut, flipped, gone


def test_outputs_are_the_same_for_any_number_of_images(saved: tuple[Path, Result]) -> None:
    folder, result = saved
    loaded = prunec.load(folder)
    assert isinstance(loaded, PortableModule)
    for count in (1, 2, 5):
        with torch.no_grad():
            assert torch.allclose(loaded(images(count)), result.module(images(count)), atol=1e-6)
    assert str(loaded).startswith("PortableModule(\n  from model.pt2")
    assert not loaded.training


def test_it_is_a_module_with_the_original_names_that_learns(saved: tuple[Path, Result]) -> None:
    folder, result = saved
    loaded = prunec.load(folder, target="eager")
    before = values(result.module)
    assert loaded.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in loaded.state_dict().items())
    loaded(images(2)).sum().backward()
    assert loaded.get_parameter("head.weight").grad is not None


def test_wrong_inputs_are_named(saved: tuple[Path, Result]) -> None:
    loaded = prunec.load(saved[0], target="eager")
    with pytest.raises(UsageError, match=r"'image' is float32\[3, 3, 21, 20\], expected float32\[B, 3, 20"):
        loaded(torch.zeros(3, 3, 21, 20))
    with pytest.raises(UsageError, match="missing input 'image'"):
        loaded()
    with pytest.raises(UsageError, match="forward has no input 'pixels'"):
        loaded(pixels=images(1))
    assert torch.equal(loaded(image=images(1)), loaded(images(1)))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused(saved: tuple[Path, Result], tmp_path: Path, damage: object) -> None:
    folder = Path(shutil.copytree(saved[0], tmp_path / "out"))
    assert callable(damage)
    damage(folder / portable.FILE)
    with pytest.raises(SourceError, match=rf"^{folder} is no readable prunec artefact: model\.pt2 "):
        prunec.load(folder)


@pytest.mark.parametrize("damage", [cut, flipped, gone])
def test_a_damaged_file_without_a_checksum_is_refused_or_read(
    saved: tuple[Path, Result], tmp_path: Path, damage: object
) -> None:
    folder = Path(shutil.copytree(saved[0], tmp_path / "out"))
    rewritten(folder, "checksums")
    assert callable(damage)
    damage(folder / portable.FILE)
    try:
        assert isinstance(prunec.load(folder, target="eager"), PortableModule)  # a bit of a weight may differ
    except SourceError as error:
        assert f"{folder} is no readable prunec artefact: model.pt2" in str(error)  # noqa: PT017


def test_a_manifest_that_names_another_file_is_refused(saved: tuple[Path, Result], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved[0], tmp_path / "out"))
    rewritten(folder, portable={"file": "other.pt2", "reason": ""})
    with pytest.raises(SourceError, match="does not say what the model takes and gives"):
        prunec.load(folder)
    rewritten(folder, "spec")
    with pytest.raises(SourceError, match="does not say what the model takes and gives"):
        prunec.load(folder)


class Several(tiny.ViT):
    """Outputs by name, some of them nested."""

    def forward(self, pixels: Tensor, scale: float = 1.0) -> dict[str, object]:
        found = super().forward(pixels)
        return {"logits": found * scale, "more": (found[:, :1], {"two": found[:, :2]})}


def test_outputs_by_name_and_options(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = from_module(Several().eval(), {"pixels": tiny.pixels(2), "scale": 2.0})
    measure = prunec.Measure(target="eager", batch=2, rounds=5)
    result = prunec.optimize(source, prunec.Policy.load("norm", keep=0.5), measure=measure)
    loaded = prunec.load(result.save(tmp_path / "out"))
    pixels = tiny.pixels(3)
    with torch.no_grad():
        found, expected = loaded(pixels=pixels, scale=2.0), result.module(pixels, scale=2.0)
    assert torch.allclose(found.logits, expected["logits"], atol=1e-6)
    assert found[0] is found["logits"]
    assert torch.allclose(found.more[1].two, expected["more"][1]["two"], atol=1e-6)
    with pytest.raises(AttributeError, match="the model gives no 'boxes', but logits, more"):
        found.boxes  # noqa: B018
    with pytest.raises(UsageError, match="missing input 'scale'"):
        loaded(pixels=pixels)
    with pytest.raises(UsageError, match=r"input 'scale' is 3\.0, the model was captured with 2\.0"):
        loaded(pixels=pixels, scale=3.0)


def test_what_cannot_be_a_file_is_written_without_one(
    saved: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> None:
        raise TargetError("it sorts in a way that no file holds")

    monkeypatch.setattr(portable, "exported", refuse)
    with pytest.warns(UserWarning, match=r"there is no model\.pt2: it sorts in a way"):
        folder = saved[1].save(tmp_path / "out")
    assert not (folder / portable.FILE).exists()
    assert "there is no model.pt2: it sorts" in (folder / "report.html").read_text(encoding="utf-8")
    with pytest.raises(UsageError, match="which no SOURCE names"):
        prunec.load(folder)
    assert isinstance(prunec.load(folder, vit()), ProgramModule)


def test_outputs_are_a_mapping() -> None:
    found = Outputs({"a": 1, "b": 2})
    assert (dict(found), found.b, found[1], found["a"]) == ({"a": 1, "b": 2}, 2, 2, 1)
