from __future__ import annotations

import io

import pytest
import torch

from prunec.files.opcodes import Named, Stored
from prunec.files.storages import Numbers, number_type


def stored(kind: str = "torch.FloatStorage", **changes: object) -> Stored:
    place = {"word": "storage", "kind": Named(kind), "key": "0", "device": "cpu", "count": 3, **changes}
    return Stored(tuple(place.values()))


def test_numbers_are_read_once_and_shared() -> None:
    content = torch.tensor([1.0, 2.0, 3.0])
    file = io.BytesIO(b"head" + content.numpy().tobytes())
    numbers = Numbers(file, 16, {"0": (4, 12)})
    assert torch.equal(numbers.of("0").view(torch.float32), content)
    assert numbers.of("0") is numbers.of("0")


@pytest.mark.parametrize("size", [12, 16])
def test_a_file_that_is_cut_short_gives_no_numbers(size: int) -> None:
    numbers = Numbers(io.BytesIO(b"head1234"), size, {"0": (4, 12)})
    with pytest.raises(ValueError, match="cut short"):
        numbers.of("0")


def test_the_kind_of_numbers_is_known_by_the_name_of_their_storage() -> None:
    assert number_type(stored()) == ("0", torch.float32)
    assert number_type(stored("torch.BFloat16Storage", key="7")) == ("7", torch.bfloat16)


@pytest.mark.parametrize("changes", [{"word": "module"}, {"key": 0}])
def test_what_is_no_storage_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="no tensor's numbers"):
        number_type(stored(**changes))


@pytest.mark.parametrize("kind", ["torch.QUInt8Storage", "os.system"])
def test_a_kind_that_is_not_read_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="a kind that prunec does not read"):
        number_type(stored(kind))
