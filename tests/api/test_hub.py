"""Artefacts in folders and on the hub; the hub itself is stood in for by folders."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

import prunec
from prunec.api.results import Result
from prunec.errors import PruneError, SourceError, UsageError
from tests.api.making import copied, images, same


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Repositories as folders, and what was asked of them."""
    found = SimpleNamespace(home=tmp_path / "hub", asked=[])

    class Api:
        def __init__(self, token: object = None) -> None:
            found.asked.append(("token", token))

        def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> SimpleNamespace:
            assert exist_ok
            found.asked.append(("private", private))
            full = repo_id if "/" in repo_id else f"me/{repo_id}"
            (found.home / full).mkdir(parents=True, exist_ok=True)
            return SimpleNamespace(repo_id=full)

        def upload_folder(
            self, *, repo_id: str, folder_path: str, commit_message: str, delete_patterns: list[str]
        ) -> str:
            for name in delete_patterns:
                (found.home / repo_id / name).unlink(missing_ok=True)
            shutil.copytree(folder_path, found.home / repo_id, dirs_exist_ok=True)
            return f"https://hub/{repo_id}: {commit_message}"

    def snapshot_download(name: str, *, allow_patterns: list[str], **_: Any) -> str:
        """As the hub does it: links to files elsewhere."""
        if not (found.home / name).is_dir():
            raise OSError(f"404: there is no {name}. Sorry")
        place = tmp_path / "snapshot"
        place.mkdir()
        for path in (found.home / name).iterdir():
            if path.name in allow_patterns:
                (place / path.name).symlink_to(path)
        return str(place)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return found


def test_a_folder_is_saved_and_read(saved: tuple[Path, Result], tmp_path: Path) -> None:
    folder = saved[1].save_pretrained(tmp_path / "out")
    assert (folder / "README.md").read_text(encoding="utf-8").startswith("---\nlibrary_name: prunec\n")
    assert same(prunec.from_pretrained(str(folder), target="eager"), saved[1].module, images(1))
    with pytest.raises(SourceError, match="is no readable prunec artefact"):
        prunec.from_pretrained(tmp_path)


def test_a_model_goes_to_the_hub_and_comes_back(saved: tuple[Path, Result], hub: SimpleNamespace) -> None:
    (hub.home / "org" / "vit").mkdir(parents=True)
    for name in ("labels.json", "notes.md"):  # of an older artefact, and the user's own
        (hub.home / "org" / "vit" / name).write_text("[]", encoding="utf-8")
    said = saved[1].push_to_hub("org/vit", private=True, token="secret", commit_message="first")
    assert said == "https://hub/org/vit: first"
    assert hub.asked == [("token", "secret"), ("private", True)]
    there = {path.name for path in (hub.home / "org" / "vit").iterdir()}
    assert there == {"notes.md", *(path.name for path in saved[0].iterdir())}
    assert same(prunec.from_pretrained("org/vit", target="eager"), saved[1].module, images(1))


def test_saving_may_push_too(saved: tuple[Path, Result], hub: SimpleNamespace, tmp_path: Path) -> None:
    saved[1].save_pretrained(tmp_path / "mine", push_to_hub=True)
    assert (hub.home / "me" / "mine" / "model.pt2").is_file()


def test_what_goes_wrong_is_said(
    saved: tuple[Path, Result], hub: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PruneError, match=r"org/none cannot be had from the hub: 404: there is no org/none"):
        prunec.from_pretrained("org/none")
    hub.home.write_text("no folder", encoding="utf-8")
    with pytest.raises(PruneError, match=r"could not be uploaded to org/vit[\s\S]*to do: log in"):
        saved[1].push_to_hub("org/vit")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match="huggingface_hub is not installed"):
        prunec.from_pretrained("org/vit")
    assert same(prunec.from_pretrained(copied(saved[0], tmp_path / "out")), saved[1].module, images(1))
