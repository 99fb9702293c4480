"""A file of an artefact that is not the one that was written is refused by its name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from prunec.artefact import artefact, checksums
from prunec.artefact.manifest import MANIFEST, Manifest
from prunec.errors import SourceError
from tests.artefact.saving import rewritten, save

FILES = ("model.safetensors", "notes.bin", "report.html")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def gone(path: Path) -> None:
    path.unlink()


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES: dict[Callable[[Path], None], str] = {
    cut: r"has \d+ bytes, and \d+ were written",
    flipped: r"is not what was written: its checksum differs",
    gone: r"cannot be read: No such file or directory",
    a_pipe: r"cannot be read: it is a pipe, not a file",
}


def written(folder: Path) -> Path:
    return save(folder, **{"notes.bin": bytes(range(256)), "report.html": "<p>"})


def test_every_file_has_its_size_and_checksum(tmp_path: Path) -> None:
    folder = written(tmp_path / "out")
    plain = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    assert plain["checksums"].keys() == set(FILES) == set(plain["files"])
    assert plain["checksums"]["notes.bin"] == {
        "size": 256,
        "sha256": "40aff2e9d2d8922e47afd4648e6967497158785fbd1da870e7110266bf944880",
    }
    assert list(plain)[-1] == "digest"
    manifest = Manifest.read(folder / MANIFEST)
    assert [artefact.fault_of(folder, manifest, name) for name in FILES] == [None] * 3


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_by_its_name(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    folder = written(tmp_path / "out")
    damage(folder / name)
    manifest = Manifest.read(folder / MANIFEST)
    with pytest.raises(
        SourceError, match=rf"^{folder} is no readable prunec artefact: {name} {DAMAGES[damage]}\n"
    ):
        artefact.check(folder, manifest, name)
    others = [other for other in FILES if other != name]
    assert [artefact.fault_of(folder, manifest, other) for other in others] == [None, None]
    if name == "model.safetensors":
        with pytest.raises(SourceError, match=name):
            artefact.read(folder)


def test_a_flipped_bit_anywhere_in_the_manifest_is_refused_or_says_the_same(tmp_path: Path) -> None:
    folder = written(tmp_path / "out")
    path = folder / MANIFEST
    content, before = path.read_bytes(), Manifest.read(path)
    refused = 0
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            found = Manifest.read(path)
        except SourceError:
            refused += 1
        else:
            assert found == before
    assert refused > 0.7 * len(content) / 7  # the rest is space between values


def test_a_truncated_manifest_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path / "out")
    path = folder / MANIFEST
    content = path.read_bytes()
    for length in range(0, len(content) - 2, 61):
        path.write_bytes(content[:length])
        with pytest.raises(SourceError, match=r"out is no readable prunec artefact: prunec\.json "):
            Manifest.read(path)


def test_a_changed_value_of_the_manifest_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path / "out")
    path = folder / MANIFEST
    path.write_text(path.read_text(encoding="utf-8").replace('"shapes"', '"sharps"'), encoding="utf-8")
    with pytest.raises(
        SourceError, match=r"prunec\.json is not what was written: its checksum differs\n  to do: give a"
    ):
        artefact.read(folder)


def test_an_artefact_without_checksums_is_read_as_before(tmp_path: Path) -> None:
    folder = written(tmp_path / "out")
    rewritten(folder, "checksums", "digest")
    assert artefact.read(folder)[0]["checksums"] is None
    flipped(folder / "notes.bin")
    assert artefact.fault_of(folder, Manifest.read(folder / MANIFEST), "notes.bin") is None


def test_a_newer_format_is_refused_before_its_checksum_is_looked_at(tmp_path: Path) -> None:
    folder = written(tmp_path / "out")
    path = folder / MANIFEST
    path.write_text(path.read_text(encoding="utf-8").replace('"format": 1', '"format": 2'), encoding="utf-8")
    with pytest.raises(SourceError, match=r"has format 2, this prunec reads 1\n  to do: write it again"):
        artefact.read(folder)


@pytest.mark.parametrize(
    "record", [{"size": -1, "sha256": "0" * 64}, {"size": 1, "sha256": "0"}, {"size": 1}, {"../x": {}}, 7]
)
def test_a_checksum_that_is_none_is_refused(tmp_path: Path, record: object) -> None:
    folder = written(tmp_path / "out")
    rewritten(folder, checksums={"notes.bin": record})
    with pytest.raises(SourceError, match=r"prunec\.json: checksums"):
        artefact.read(folder)


def test_the_digest_counts_values_and_not_their_layout() -> None:
    one = {"a": 1, "b": [1.5, None], "digest": "x"}
    assert checksums.digest(one) == checksums.digest({"b": [1.5, None], "a": 1})
    assert checksums.digest(one) != checksums.digest({**one, "a": 2})
