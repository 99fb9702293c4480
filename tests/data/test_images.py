from __future__ import annotations

import builtins
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from prunec.data.images import SUFFIXES, are_numbers
from prunec.errors import SourceError
from tests.data.drawing import MEAN, PLAIN, STD, load_images, names_of, picture, save
from tests.hostile import documents as hostile


def test_every_format_is_read_sorted_and_without_labels(tmp_path: Path) -> None:
    save(tmp_path, *(f"{9 - place}{suffix}" for place, suffix in enumerate(SUFFIXES)), "0.PNG")
    (tmp_path / "notes.txt").write_text("not an image")
    save(tmp_path, ".hidden.png", ".cache/thumb.png")
    found = load_images(tmp_path, 16, MEAN, STD)
    assert names_of(found.paths, tmp_path) == ["0.PNG", "5.webp", "6.bmp", "7.png", "8.jpeg", "9.jpg"]
    assert found.images.shape == (6, 3, 16, 16)
    assert found.images.dtype == torch.float32
    assert (found.labels, found.classes, len(found)) == (None, (), 6)


def test_two_readings_are_equal(tmp_path: Path) -> None:
    save(tmp_path, "b.jpg", "a.png", "c/d.webp")
    first, second = load_images(tmp_path, 16, MEAN, STD), load_images(str(tmp_path), 16, MEAN, STD)
    assert torch.equal(first.images, second.images)
    assert first.paths == second.paths


def test_subfolders_name_the_classes_and_empty_ones_count(tmp_path: Path) -> None:
    save(tmp_path, "zebra/1.png", "ant/2.png", "ant/deep/1.png")
    (tmp_path / "horse").mkdir()
    found = load_images(tmp_path, 8, *PLAIN)
    assert found.classes == ("ant", "horse", "zebra")
    assert found.labels is not None
    assert found.labels.tolist() == [0, 0, 2]
    assert names_of(found.paths, tmp_path) == ["ant/2.png", "ant/deep/1.png", "zebra/1.png"]


def test_subfolders_that_are_numbers_are_the_classes(tmp_path: Path) -> None:
    save(tmp_path, "12/1.png", "3/1.png", "101/1.png")
    found = load_images(tmp_path, 8, *PLAIN)
    assert found.classes == ("3", "12", "101")
    assert found.labels is not None
    assert dict(zip(names_of(found.paths, tmp_path), found.labels.tolist(), strict=True)) == {
        "3/1.png": 3,
        "12/1.png": 12,
        "101/1.png": 101,
    }


def test_a_class_may_be_a_link_to_a_folder_elsewhere(tmp_path: Path) -> None:
    save(tmp_path, "elsewhere/1.png", "set/dog/1.png")
    (tmp_path / "set" / "cat").symlink_to(tmp_path / "elsewhere")
    assert load_images(tmp_path / "set", 8, *PLAIN).classes == ("cat", "dog")
    assert len(load_images(tmp_path / "set", 8, *PLAIN)) == 2


@pytest.mark.parametrize("names", [("all/1.png", "all/2.png"), ("a/1.png", "b/1.png", "loose.png")])
def test_one_subfolder_or_a_loose_image_names_no_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    save(tmp_path, *names)
    assert load_images(tmp_path, 8, *PLAIN).labels is None


def test_a_limit_takes_from_every_class(tmp_path: Path) -> None:
    save(tmp_path, *(f"{name}/{number}.bmp" for name in "abc" for number in range(4)))
    found = load_images(tmp_path, 8, *PLAIN, limit=6)
    assert found.labels is not None
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert len(load_images(tmp_path, 8, *PLAIN, limit=99)) == 12


def refused(folder: Path) -> SourceError:
    with pytest.raises(SourceError) as caught:
        load_images(folder, 8, *PLAIN)
    return caught.value


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.7])
def test_a_truncated_image_is_named(tmp_path: Path, suffix: str, share: float) -> None:
    save(tmp_path, "a.png", f"b{suffix}")
    whole = (tmp_path / f"b{suffix}").read_bytes()
    (tmp_path / f"b{suffix}").write_bytes(whole[: int(share * len(whole))])
    error = refused(tmp_path)
    assert error.what.startswith("the image cannot be read: ")
    assert error.where == str(tmp_path / f"b{suffix}")
    assert error.remedy == "replace the file by a whole one, or move it out of the folder"


def test_something_else_under_an_images_name_is_named(tmp_path: Path) -> None:
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    assert "cannot identify image file" in refused(tmp_path).what


def test_folders_without_images(tmp_path: Path) -> None:
    assert refused(tmp_path / "absent").what == "there is no such folder"
    assert refused(tmp_path).what == "the folder is empty"
    (tmp_path / "notes.txt").touch()
    error = refused(tmp_path)
    assert error.what == "none of its 1 files is an image"
    assert error.remedy == "put jpg, png, bmp or webp images there, or name another folder"
    assert refused(tmp_path / "notes.txt").what == "this is a file, not a folder"


def test_without_pillow_the_remedy_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == "PIL":
            raise ModuleNotFoundError("No module named 'PIL'", name="PIL")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert refused(tmp_path).remedy == "pip install pillow"


def test_pillow_is_imported_only_where_it_is_used() -> None:
    code = "import sys, prunec.data.images; print('PIL' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("width", "height", "words"),
    [
        (10_000, 10_000, "it has 10000 x 10000 pixels, more than 60 million"),
        (
            1,
            60_000,
            "it would have, scaled to cover the model's input, 72 x 4320000 pixels, more than 60 million",
        ),
        (
            60_000,
            1,
            "it would have, scaled to cover the model's input, 4320000 x 72 pixels, more than 60 million",
        ),
        (40_000, 40_000, "it has far more than 60 million pixels"),
    ],
)
def test_a_picture_that_is_too_large_is_named(tmp_path: Path, width: int, height: int, words: str) -> None:
    (tmp_path / "one.png").write_bytes(hostile.png(width, height))
    with pytest.raises(SourceError) as caught:
        load_images(tmp_path, 72, MEAN, STD)
    assert caught.value.what == f"the image cannot be read: {words}"
    assert caught.value.where == str(tmp_path / "one.png")
    assert "move it out of the folder" in str(caught.value.remedy)


def test_a_picture_just_below_the_bound_is_read(tmp_path: Path) -> None:
    (tmp_path / "long.png").write_bytes(hostile.png(100, 12_000))
    (tmp_path / "large.png").write_bytes(hostile.png(4_096, 1_024))
    assert load_images(tmp_path, 72, *PLAIN).images.eq(0).all()


@pytest.mark.parametrize(
    "content",
    [hostile.EPS, b"GIF89a" + bytes(40), b"8BPS\x00\x01" + bytes(60), b"II*\x00" + bytes(60), b"BM"],
)
def test_only_the_four_formats_are_tried(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*_: Any, **__: Any) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "check_call", started)
    (tmp_path / "one.png").write_bytes(content)
    assert "cannot identify image file as jpg, png, bmp or webp images" in refused(tmp_path).what


def test_a_picture_may_have_the_name_of_another_of_the_four(tmp_path: Path) -> None:
    picture().save(tmp_path / "one.png")
    (tmp_path / "one.png").rename(tmp_path / "one.jpg")
    assert len(load_images(tmp_path, 8, *PLAIN)) == 1


@pytest.mark.parametrize("where", [".", "below"])
def test_what_is_no_file_is_named(tmp_path: Path, where: str) -> None:
    (tmp_path / where).mkdir(exist_ok=True)
    place = tmp_path / where / "one.png"
    for make, words in (
        (hostile.pipe, "it is a pipe, not a file"),
        (hostile.device, "it is a device, not a file"),
        (hostile.a_socket, "it is a socket, not a file"),
        (hostile.nowhere, "Too many levels of symbolic links"),
    ):
        make(place)
        error = refused(tmp_path)
        assert (error.what, error.where) == (f"the image cannot be read: {words}", str(place))
        place.unlink()
    hostile.folder(place)
    assert refused(tmp_path).what == "the folder is empty"


def test_a_link_to_a_folder_that_holds_it_is_named(tmp_path: Path) -> None:
    save(tmp_path, "set/dog/1.png")
    for target in (tmp_path / "set", tmp_path, Path("/")):
        (tmp_path / "set" / "again").symlink_to(target)
        error = refused(tmp_path / "set")
        assert error.what == "the link leads back to a folder that it lies in"
        assert error.where == str(tmp_path / "set" / "again")
        (tmp_path / "set" / "again").unlink()
    (tmp_path / "set" / "dog" / "deep").symlink_to(tmp_path)  # links further down are not followed
    assert len(load_images(tmp_path / "set", 8, *PLAIN)) == 1


def test_a_class_whose_number_is_too_large_is_a_name(tmp_path: Path) -> None:
    save(tmp_path, f"{'9' * 30}/1.png", "1/1.png")
    found = load_images(tmp_path, 8, *PLAIN)
    assert found.labels is not None
    assert dict(zip(found.classes, range(2), strict=True)) == {"1": 0, "9" * 30: 1}
    assert not are_numbers(found.classes)
    assert are_numbers(["1", "12"])
