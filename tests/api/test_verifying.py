"""What `prunec verify` looks at."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from prunec.api.results import Result
from prunec.api.verifying import Row, verify
from prunec.errors import SourceError
from tests.api.making import copied
from tests.artefact.saving import rewritten

OUTPUTS = "outputs of model.pt2"


def by_name(rows: tuple[Row, ...]) -> dict[str, Row]:
    return {row.what: row for row in rows}


def test_all_is_as_it_was_written(saved: tuple[Path, Result], tmp_path: Path) -> None:
    folder = copied(saved[0], tmp_path / "elsewhere")
    rows = by_name(verify(folder))
    source = "outputs as built from prunec.data.tiny_vit.TinyViT"
    assert [row.what for row in rows.values() if row.verdict != "ok"] == [source]
    assert rows[source] == Row(
        source, "not checked", f"{folder} was made from a module in Python, which no SOURCE names"
    )
    assert rows[OUTPUTS].detail.startswith("largest relative difference ")
    assert rows[OUTPUTS].detail.endswith(", allowed 1e-04")
    assert rows["model.safetensors"].detail == "as it was written"
    assert source not in by_name(verify(folder, rebuild=False))


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "example.safetensors", "model.pt2", "report.json", "report.html", "README.md"],
)
def test_a_flipped_bit_anywhere_is_found(saved: tuple[Path, Result], tmp_path: Path, name: str) -> None:
    folder = copied(saved[0], tmp_path / "out")
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    failed = [row for row in verify(folder, rebuild=False) if row.verdict == "failed"]
    assert failed == [Row(name, "failed", "is not what was written: its checksum differs")]


def test_a_model_that_computes_something_else_fails(saved: tuple[Path, Result], tmp_path: Path) -> None:
    folder = copied(saved[0], tmp_path / "out")
    example = load_file(folder / "example.safetensors")
    assert example.keys() == {"input.0", "output.0"}
    assert torch.equal(saved[1].module(example["input.0"]), example["output.0"])
    save_file({**example, "output.0": example["output.0"] + 0.01}, folder / "example.safetensors")
    rewritten(folder, "checksums")
    rows = by_name(verify(folder, rebuild=False))
    assert rows[OUTPUTS].verdict == "failed"
    assert rows["model.pt2"] == Row("model.pt2", "not checked", "no checksum was written")
    save_file({"input.0": example["input.0"]}, folder / "example.safetensors")
    assert by_name(verify(folder, rebuild=False))[OUTPUTS].detail == "1 outputs, and 0 were recorded"


def test_a_rebuilt_model_is_compared_too(saved: tuple[Path, Result], tmp_path: Path) -> None:
    folder = copied(saved[0], tmp_path / "out")
    rewritten(folder, source="evil:payload", weights="file")
    row = by_name(verify(folder))["outputs as built from evil:payload"]
    assert row.verdict == "not checked"
    assert "reading that may run code" in row.detail


def test_without_a_file_of_its_own(saved: tuple[Path, Result], tmp_path: Path) -> None:
    folder = copied(saved[0], tmp_path / "out")
    rewritten(folder, portable={"file": None, "reason": "it sorts in a way that no file holds"})
    rows = verify(folder, rebuild=False)
    assert rows[-1] == Row("model.pt2", "not checked", "there is none: it sorts in a way that no file holds")


def test_an_older_artefact(saved: tuple[Path, Result], tmp_path: Path) -> None:
    folder = copied(saved[0], tmp_path / "out")
    rewritten(folder, "checksums", "digest", "spec", "portable", files=["model.safetensors"])
    assert verify(folder) == (
        Row("model.safetensors", "not checked", "no checksum was written"),
        Row("outputs", "not checked", "an older prunec wrote it, which recorded none"),
    )


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is no readable prunec artefact"):
        verify(tmp_path / "out")
