from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from prunec.artefact import artefact, placing
from prunec.errors import PruneError, SourceError, UsageError
from tests.artefact.saving import MANIFEST, content, save, state


def failing(*_: Any, **__: Any) -> None:
    raise SafetensorError("No space left on device")


def test_reads_back_what_was_written(tmp_path: Path) -> None:
    folder = artefact.save(tmp_path / "deep" / "out", MANIFEST, state(), {"report.json": "{}\n"})
    assert sorted(content(folder)) == ["model.safetensors", "prunec.json", "report.json"]
    manifest, found = artefact.read(str(folder))
    assert {name: manifest[name] for name in MANIFEST if name not in ("plan", "certificate")} == {
        name: value for name, value in MANIFEST.items() if name not in ("plan", "certificate")
    }
    assert manifest["files"] == ("model.safetensors", "report.json")
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        "a.weight": [[1.0] * 3] * 2,
        "steps": 7,
    }
    assert list(folder.parent.iterdir()) == [folder]  # nothing is left beside it
    assert folder.stat().st_mode & 0o777 == 0o755


def test_replaces_an_older_artefact_as_a_whole(tmp_path: Path) -> None:
    folder = save(tmp_path / "out", 1.0, old="old")
    save(folder, 2.0, new="new")
    assert sorted(content(folder)) == ["model.safetensors", "new", "prunec.json"]
    assert artefact.read(folder)[1]["a.weight"].unique().tolist() == [2.0]
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("files", [{"notes.txt": "mine"}, {"prunec.json": "[tool]"}, {"prunec.json": "{}"}])
def test_refuses_a_foreign_folder_and_leaves_it_alone(tmp_path: Path, files: dict[str, str]) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    before = content(folder)
    with pytest.raises(UsageError) as caught:
        save(folder)
    assert str(caught.value) == (
        f"{folder} exists and is no prunec artefact\n  to do: choose another folder with -o, or remove it"
    )
    assert content(folder) == before
    assert list(tmp_path.iterdir()) == [folder]


def test_refuses_a_file_and_a_place_below_a_file(tmp_path: Path) -> None:
    file = tmp_path / "out"
    file.write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match=r"out exists and is no prunec artefact"):
        placing.check_place(file)
    with pytest.raises(UsageError, match=r"out/below cannot be written: .*/out is a file\n  to do: choose"):
        placing.check_place(file / "below")
    assert file.read_text(encoding="utf-8") == "mine"


def test_a_place_is_checked_without_touching_it(tmp_path: Path) -> None:
    placing.check_place(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    placing.check_place(save(tmp_path / "out"))


def test_nothing_is_left_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artefact, "save_file", failing)
    with pytest.raises(PruneError) as caught:
        save(tmp_path / "out")
    assert type(caught.value) is PruneError
    assert str(caught.value) == (
        f"{tmp_path / 'out'} could not be written: No space left on device\n"
        "  to do: nothing was left behind; is the disk full?"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError("disk"), KeyboardInterrupt()])
def test_the_older_artefact_survives_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    folder = save(tmp_path / "out")
    before = content(folder)

    def stop(*_: Any) -> None:
        raise error

    monkeypatch.setattr(artefact, "save_file", stop)
    with pytest.raises((PruneError, KeyboardInterrupt)):
        save(folder, 2.0)
    assert content(folder) == before
    assert list(tmp_path.iterdir()) == [folder]


def test_the_older_artefact_comes_back_when_the_place_cannot_be_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path / "out")
    before = content(folder)
    rename = Path.rename

    def refusing(self: Path, target: Path) -> Path:
        if Path(target) == folder and not self.name.endswith(".old"):
            raise OSError("busy")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refusing)
    with pytest.raises(PruneError, match=r"out could not be written: busy"):
        save(folder, 2.0)
    assert content(folder) == before
    assert list(tmp_path.iterdir()) == [folder]


def test_tied_and_strided_weights_are_written_each_by_itself(tmp_path: Path) -> None:
    one = torch.arange(6.0).reshape(2, 3)
    tied = {"embed": one, "head": one, "turned": one.t(), "row": one[1], "parameter": torch.nn.Parameter(one)}
    folder = artefact.save(tmp_path / "out", MANIFEST, tied, {})
    found = artefact.read(folder)[1]
    assert found.keys() == tied.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tied.items())


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "{}", '{"name": "an npm package"}'])
def test_a_corrupt_manifest(tmp_path: Path, text: str) -> None:
    folder = save(tmp_path / "out")
    (folder / "prunec.json").write_text(text, encoding="utf-8")
    with pytest.raises(SourceError, match=rf"^{folder} is no readable prunec artefact: .+\n  to do: give a"):
        artefact.read(folder)


def test_a_manifest_of_bytes_that_are_no_text(tmp_path: Path) -> None:
    folder = save(tmp_path / "out")
    (folder / "prunec.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(
        SourceError, match=r"is no readable prunec artefact: prunec.json is not valid JSON: 'utf-8' codec"
    ):
        artefact.read(folder)


@pytest.mark.parametrize("weights", [b"", b"PK\x03\x04 a pickle in a zip", None])
def test_corrupt_or_missing_weights(tmp_path: Path, weights: bytes | None) -> None:
    folder = save(tmp_path / "out")
    (folder / "model.safetensors").unlink()
    if weights is not None:
        (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(SourceError, match=r"is no readable prunec artefact: .+\n  to do: give a folder that"):
        artefact.read(folder)


def test_weights_cut_short(tmp_path: Path) -> None:
    weights = save(tmp_path / "out") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-3])
    with pytest.raises(SourceError, match=r"is no readable prunec artefact"):
        artefact.read(tmp_path / "out")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"/gone is no readable prunec artefact: .*No such file"):
        artefact.read(tmp_path / "gone")


def test_another_format(tmp_path: Path) -> None:
    folder = save(tmp_path / "out")
    (folder / "prunec.json").write_text(json.dumps({**MANIFEST, "format": 2}), encoding="utf-8")
    (folder / "model.safetensors").unlink()  # another format may hold its weights in another way
    with pytest.raises(SourceError) as caught:
        artefact.read(folder)
    assert str(caught.value) == (
        f"{folder} has format 2, this prunec reads 1\n  to do: write it again with this version"
    )


def test_a_manifest_that_lacks_keys(tmp_path: Path) -> None:
    folder = save(tmp_path / "out")
    text = json.dumps({"format": 1, "source": "shapes", "weights": "shipped", "policy": {}, "plan": {}})
    (folder / "prunec.json").write_text(text, encoding="utf-8")
    with pytest.raises(SourceError, match=r"/out/prunec\.json lacks target, certificate\n  to do: write it"):
        artefact.read(folder)
