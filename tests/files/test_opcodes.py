from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from torch import nn

from prunec.files.opcodes import Call, parse
from tests.files.reading import read


def test_a_call_is_parsed_and_not_made() -> None:
    """Whatever a name stands for, reading makes an inert value of it."""
    value, _ = parse(
        io.BytesIO(b"\x80\x02cos\nsystem\nX\x09\x00\x00\x00touch ran\x85R}X\x01\x00\x00\x00aK\x01sb.")
    )
    assert isinstance(value, Call)
    assert (value.name, value.args, value.state.pairs) == ("os.system", ("touch ran",), [("a", 1)])
    assert not Path("ran").exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_that_torch_can_be_asked_for(tmp_path: Path, protocol: int) -> None:
    content = {"a": nn.Linear(2, 2), "b": [b"\x00", (1.5, None, True, -(10**12))]}
    found = read(content, tmp_path, pickle_protocol=protocol)
    assert torch.equal(found["a"].weight, content["a"].weight)  # type: ignore[union-attr]
    assert found["b"] == content["b"]
