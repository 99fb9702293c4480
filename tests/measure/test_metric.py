from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from prunec.errors import UsageError
from prunec.measure import metric as own


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "metrics_to_read.py").write_text(
        "def half(output, labels):\n    return 0.5\n\n\nnumber = 3\n", encoding="utf-8"
    )
    (tmp_path / "metrics_with_a_mistake.py").write_text("import nothing_of_that_name\n", encoding="utf-8")


@pytest.mark.usefixtures("here")
def test_a_metric_is_found_in_the_working_folder() -> None:
    found = own.read("metrics_to_read:half")
    assert own.name_of(found) == "half"
    assert own.values(found, torch.zeros(3, 2), None, 3).tolist() == [0.5] * 3


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("half", "does not name a function"),
        ("metrics_to_read:", "does not name a function"),
        (":half", "does not name a function"),
        ("no_such_module_anywhere:half", "cannot be imported"),
        ("metrics_with_a_mistake:half", "nothing_of_that_name"),
        ("metrics_to_read:haf", "nearest: half"),
        ("metrics_to_read:number", "no function 'number'"),
    ],
)
def test_a_metric_that_is_none(spec: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        own.read(spec)
    assert spec in (caught.value.where or "")
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (0.25, [0.25, 0.25]),
        (1, [1, 1]),
        (torch.tensor(2.0), [2, 2]),
        (torch.tensor([1, 3]), [1, 3]),
        ([1.0, 3.0], [1, 3]),
    ],
)
def test_a_number_for_all_or_for_each(given: Any, expected: list[float]) -> None:
    assert own.values(lambda *_: given, None, None, 2).tolist() == expected


@pytest.mark.parametrize("given", [None, "good", torch.zeros(3), torch.zeros(2, 1), {"f1": 1.0}])
def test_what_is_no_number_is_refused(given: Any) -> None:
    def mine(output: Any, labels: Any) -> Any:
        return given

    with pytest.raises(UsageError, match="for 2 images") as caught:
        own.values(mine, None, None, 2)
    assert caught.value.where == "metric mine"
    assert "[2]" in (caught.value.remedy or "")


def test_what_a_metric_raises_is_told() -> None:
    def broken(output: Any, labels: Any) -> float:
        raise KeyError("logits")

    with pytest.raises(UsageError, match="KeyError: 'logits'"):
        own.values(broken, {}, None, 2)


def test_the_first_images_of_an_output() -> None:
    output = {"logits": torch.arange(8).view(4, 2), "scale": torch.ones(3), "loss": torch.tensor(1.0), "n": 4}
    cut = own.first_images(output, batch=4, images=3)
    assert cut["logits"].shape == (3, 2)
    assert cut["scale"].shape == (3,)
    assert (cut["loss"].item(), cut["n"]) == (1, 4)
