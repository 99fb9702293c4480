from __future__ import annotations

import pytest
import torch

from prunec.frontend.source import ImageSet
from prunec.measure.labels import fitting

ABC = ("cat", "dog", "eel")


def pictures(labels: list[int], *folders: str, names: tuple[str, ...] = ()) -> ImageSet:
    numbers = all(folder.isdecimal() for folder in folders)
    classes = None if numbers else len(folders)
    return ImageSet(
        torch.zeros(len(labels), 3, 2, 2), torch.tensor(labels), "", classes, folders, None, names
    )


@pytest.mark.parametrize(
    ("found", "labels"),
    [
        (pictures([0, 6], "0", "6"), [0, 6]),
        (pictures([0, 1, 1], *"abcdefg"), [0, 1, 1]),
        (pictures([0, 1], "dog", "eel", names=(*ABC, *"wxyz")), [1, 2]),  # by name, however few
        (
            pictures([0, 1], "Black_Bear", "tench", names=("tench, Tinca tinca", "black bear", *"vwxyz")),
            [1, 0],
        ),
    ],
)
def test_labels_that_fit_and_need_no_words(found: ImageSet, labels: list[int]) -> None:
    numbers, said = fitting(found, 7)
    assert numbers is not None
    assert (numbers.tolist(), said) == (labels, "")


def test_other_names_in_sorted_order_are_reported() -> None:
    numbers, said = fitting(pictures([2, 0], "n01", "n02", "n03", names=ABC), 3)
    assert numbers is not None
    assert numbers.tolist() == [2, 0]
    assert said == (
        "the folders are not called as the model's classes: in sorted order they are taken for 0 to 2"
    )


@pytest.mark.parametrize(
    ("found", "classes", "words"),
    [
        (
            pictures([0, 7], "0", "7"),
            7,
            "1 of 2 folders are no classes of the model, which has 0 to 6: 7; number",
        ),
        (
            pictures([0, 1], "cat", "ox"),
            3,
            "2 folders name classes (cat, ox), and the model has 3; call them by",
        ),
        (
            pictures([0, 1], "cat", "ox", "yak", names=ABC),
            3,
            "2 of 3 folders are none of the model's 3 classes: ox, yak; call them as the model does",
        ),
        (pictures([0, 1], "a", "b"), None, "the model gives no scores of classes; leave them out"),
    ],
)
def test_labels_that_do_not_fit_are_reported(found: ImageSet, classes: int | None, words: str) -> None:
    numbers, said = fitting(found, classes)
    assert numbers is None
    assert said.startswith(f"the folders' labels are not used, so accuracy is not measured: {words}")


def test_a_name_of_two_classes_is_that_of_none() -> None:
    numbers, said = fitting(pictures([0, 1], "crane", "ox", names=("crane", "crane")), 2)
    assert numbers is not None
    assert said.startswith("the folders are not called as the model's classes")


def test_no_labels_need_no_words() -> None:
    assert fitting(ImageSet(torch.zeros(1, 3, 2, 2), None, ""), 7) == (None, "")
