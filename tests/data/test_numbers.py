from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from prunec.data import numbers
from prunec.errors import PruneError, UsageError

TENSORS = {"scores": torch.arange(6.0).view(2, 3), "half": torch.ones(2, dtype=torch.bfloat16)}


def test_safetensors_keeps_every_precision(tmp_path: Path) -> None:
    numbers.write(tmp_path / "a.safetensors", TENSORS)
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


def test_npz_is_in_single_precision(tmp_path: Path) -> None:
    numbers.write(tmp_path / "a.npz", TENSORS)
    with np.load(tmp_path / "a.npz") as found:
        assert sorted(found) == ["half", "scores"]
        assert found["half"].dtype == np.float32
        assert found["scores"].tolist() == TENSORS["scores"].tolist()


@pytest.mark.parametrize(
    ("name", "said"), [("a.txt", "no file of numbers"), ("b/a.npz", "no folder"), ("c.npz", "a folder")]
)
def test_a_name_that_cannot_be_written(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "c.npz").mkdir()
    with pytest.raises(UsageError, match=said):
        numbers.check_name(tmp_path / name)
    numbers.check_name(tmp_path / "good.npz")


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    with pytest.raises(PruneError, match=r"could not be written"):
        numbers.write(tmp_path / "gone" / "a.npz", TENSORS)
