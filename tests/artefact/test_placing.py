"""Where an artefact is written: nobody else's files are deleted, a kill leaves the old one or the new one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prunec.artefact import artefact, placing
from prunec.errors import PruneError, UsageError
from tests.artefact.saving import MANIFEST, content, rewritten, save, state


def value(folder: Path) -> float:
    return float(artefact.read(folder)[1]["a.weight"][0, 0])


def refused(call: Callable[[], object]) -> UsageError:
    with pytest.raises(UsageError) as caught:
        call()
    assert caught.value.remedy
    return caught.value


# Whose files they are ---------------------------------------------------------------------------------------


def test_the_manifest_lists_the_files(tmp_path: Path) -> None:
    folder = save(tmp_path / "out", notes="mine")
    assert json.loads((folder / "prunec.json").read_text())["files"] == ["model.safetensors", "notes"]


def test_an_empty_folder_is_written_into(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    placing.check_place(tmp_path / "out")
    assert value(save(tmp_path / "out")) == 1.0
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_an_artefact_that_lists_no_files_is_replaced(tmp_path: Path) -> None:
    """As the first version wrote it."""
    folder = save(tmp_path / "out", **{"report.json": "{}", "report.html": ""})
    rewritten(folder, "files", "checksums", "digest")
    assert value(save(folder, 2.0)) == 2.0


@pytest.mark.parametrize("text", ['{"format": 0}', '{"format": 1}', '{"format": 2, "files": ["thesis.tex"]}'])
def test_a_manifest_that_is_none_lets_nothing_be_replaced(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "prunec.json").write_text(text)
    (folder / "thesis.tex").write_text("mine")
    before = content(folder)
    for call in (lambda: placing.check_place(folder), lambda: save(folder)):
        assert refused(call).what == f"{folder} exists and is no prunec artefact"
    assert content(folder) == before
    assert list(tmp_path.iterdir()) == [folder]


def a_file(path: Path) -> None:
    path.write_text("mine")


def a_folder(path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_text("mine")


def a_link(path: Path) -> None:
    path.symlink_to(path.parent.parent / "elsewhere")


FOREIGN = [(kind, name) for kind in (a_file, a_folder, a_link) for name in ("thesis.tex", ".hidden")]
FOREIGN += [(kind, "report.html") for kind in (a_folder, a_link)]  # a file of that name is prunec's own


@pytest.mark.parametrize(("kind", "name"), FOREIGN)
def test_what_prunec_did_not_write_is_named_and_kept(
    tmp_path: Path, kind: Callable[[Path], None], name: str
) -> None:
    (tmp_path / "elsewhere").write_text("mine")
    folder = save(tmp_path / "out")
    kind(folder / name)
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    for call in (lambda: placing.check_place(folder), lambda: save(folder, 2.0)):
        error = refused(call)
        assert error.what == f"{folder} holds {name}, which prunec did not write and will not delete"
        assert error.where == str(folder)
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before
    assert value(folder) == 1.0


def test_many_foreign_files_are_counted(tmp_path: Path) -> None:
    folder = save(tmp_path / "out")
    for number in range(300):
        (folder / f"{number:03}").touch()
    assert "holds 000, 001, 002, 003, 004 and 295 more," in refused(lambda: save(folder)).what


def test_a_file_that_comes_while_the_new_one_is_written_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path / "out")
    write = artefact.save_file

    def meanwhile(*arguments: Any) -> None:
        write(*arguments)
        (folder / "thesis.tex").write_text("mine")

    monkeypatch.setattr(artefact, "save_file", meanwhile)
    assert "holds thesis.tex" in refused(lambda: save(folder, 2.0)).what
    assert (folder / "thesis.tex").read_text() == "mine"
    assert value(folder) == 1.0
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("at", ["before the old one makes way", "before the old one is deleted"])
def test_a_file_that_comes_at_the_last_moment_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    folder, rename = save(tmp_path / "out"), Path.rename

    def meanwhile(self: Path, target: Path) -> Path:
        if at == "before the old one makes way" and self == folder:
            (folder / "thesis.tex").write_text("mine")
        if at == "before the old one is deleted" and Path(target) == folder:
            (tmp_path / ".out.prunec.old" / "thesis.tex").write_text("mine")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", meanwhile)
    assert "holds thesis.tex" in refused(lambda: save(folder, 2.0)).what
    (kept,) = tmp_path.rglob("thesis.tex")
    assert kept.read_text() == "mine"
    assert value(folder) == (1.0 if at == "before the old one makes way" else 2.0)


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path: Path) -> None:
    folder = save(tmp_path / "store" / "out")
    (tmp_path / "link").symlink_to(folder)
    save(tmp_path / "link", 2.0)
    assert (tmp_path / "link").is_symlink()
    assert value(folder) == 2.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "store"]


@pytest.mark.parametrize("name", ["a" * 300, "a\0b", "a\udcff"])
def test_a_name_that_no_folder_can_have(tmp_path: Path, name: str) -> None:
    for call in (lambda: placing.check_place(tmp_path / name), lambda: save(tmp_path / name)):
        assert "cannot be written: " in refused(call).what
    assert list(tmp_path.iterdir()) == []


# Two at once, and one that was killed -----------------------------------------------------------------------


def test_one_process_writes_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, write, told = tmp_path / "out", artefact.save_file, []

    def meanwhile(*arguments: Any) -> None:
        monkeypatch.setattr(artefact, "save_file", write)
        other = threading.Thread(target=lambda: told.append(refused(lambda: save(folder, 2.0)).what))
        other.start()
        other.join()
        write(*arguments)

    monkeypatch.setattr(placing, "_WAIT", 0.0)
    monkeypatch.setattr(artefact, "save_file", meanwhile)
    save(folder, 1.0)
    assert told == [f"another process is writing to {folder}"]
    assert value(folder) == 1.0
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("end", ["new", "old"])
@pytest.mark.parametrize("kind", [a_file, a_folder, a_link])
def test_a_leftover_that_is_not_ours_is_named_and_kept(
    tmp_path: Path, end: str, kind: Callable[[Path], None]
) -> None:
    (tmp_path / "elsewhere").write_text("mine")
    beside = tmp_path / f".out.prunec.{end}"
    beside.mkdir()
    kind(beside / "thesis.tex")
    for call in (lambda: placing.check_place(tmp_path / "out"), lambda: save(tmp_path / "out")):
        assert refused(call).what.startswith(f"{beside} holds thesis.tex, which prunec did not write")
    assert os.path.lexists(beside / "thesis.tex")


def test_checking_a_place_touches_no_leftover(tmp_path: Path) -> None:
    save(tmp_path / "out").rename(tmp_path / ".out.prunec.old")
    placing.check_place(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == [".out.prunec.old"]


def test_reading_restores_an_artefact_that_was_on_its_way_out(tmp_path: Path) -> None:
    save(tmp_path / "out").rename(tmp_path / ".out.prunec.old")
    assert value(tmp_path / "out") == 1.0
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_a_save_that_fails_behind_a_killed_one_leaves_the_old_artefact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "out").rename(tmp_path / ".out.prunec.old")

    def full(*_: Any) -> None:
        raise OSError("disk")

    monkeypatch.setattr(artefact, "save_file", full)
    with pytest.raises(PruneError, match="disk"):
        save(tmp_path / "out", 2.0)
    assert value(tmp_path / "out") == 1.0
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


#: Saves again and again over an artefact, each time killed at a later operation on the file system.
KILLED = """
import json, os, pathlib, sys
from prunec.artefact import artefact
from tests.artefact.saving import save
from tests.artefact.test_placing import value

home = pathlib.Path(sys.argv[1])
folder, write = home / "out", artefact.save_file
WATCHED = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod")

def killed_at(number):
    left = number
    def count(event, arguments):
        nonlocal left
        reading = event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        if event in WATCHED and str(arguments[0]).startswith(str(home)) and not reading:
            left -= 1
            if left < 0:
                os._exit(9)
    def half(state, path):
        (path.parent / ".tmpAbC123").write_bytes(b"half")
        (path.parent / ".tmpAbC123").unlink()
        write(state, path)
    artefact.save_file = half
    child = os.fork()
    if child == 0:
        sys.addaudithook(count)
        save(folder, 2.0, **{"report.html": "new", "model.pt2": b"new"})
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

found = []
for number in range(1000):
    save(folder, 1.0, **{"report.json": "old"})
    code = killed_at(number)
    names = sorted(path.name for path in home.iterdir())
    after = value(folder)
    saved = value(save(folder, 3.0))
    clean = [path.name for path in home.iterdir()] == ["out"]
    found.append({"code": code, "names": names, "after": after, "saved": saved, "clean": clean})
    if code != 9:
        break
print(json.dumps(found))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a kill is tried in a copy of the process")
def test_a_kill_at_any_step_leaves_the_old_artefact_or_the_new_one(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parents[1])}
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(run.stdout)
    assert [step["code"] for step in found] == [9] * (len(found) - 1) + [0]
    assert len(found) > 15
    assert {step["saved"] for step in found} == {3.0}
    assert all(step["clean"] for step in found)
    after = [step["after"] for step in found]
    assert set(after) == {1.0, 2.0}
    assert after == sorted(after)
    without = [step["names"] for step in found if "out" not in step["names"]]
    assert without  # between the two renames: reading restored it
    assert all(names == [".out.prunec.lock", ".out.prunec.new", ".out.prunec.old"] for names in without)


def test_a_killed_first_save_leaves_nothing_that_stays(tmp_path: Path) -> None:
    beside = tmp_path / ".out.prunec.new"
    beside.mkdir()
    for name in ("prunec.json", ".tmpAbC123"):
        (beside / name).write_text('{"form')
    save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    assert torch.equal(artefact.read(tmp_path / "out")[1]["a.weight"], state()["a.weight"])
    assert MANIFEST["source"] == artefact.read(tmp_path / "out")[0]["source"]
