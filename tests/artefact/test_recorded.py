from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file

from prunec.artefact import recorded
from prunec.artefact.spec import InputRecord, Spec
from prunec.capture.capture import capture
from prunec.errors import SourceError
from tests import tiny

ONE = torch.ones(1)
SPEC = Spec(
    inputs=(InputRecord(name="x", sizes=(None, 3), dtype="float32"), InputRecord(name="flip", value=True)),
    outputs=(),
)


def test_what_a_program_gives_is_recorded() -> None:
    model = tiny.ViT().eval()
    pixels = tiny.pixels(3)
    program = capture(model, (tiny.pixels(2),))
    found = load(recorded.record(program, (pixels,)))
    assert found.keys() == {"input.0", "output.0"}
    assert torch.equal(found["input.0"], pixels)
    with torch.no_grad():
        assert torch.allclose(found["output.0"], model(pixels), atol=1e-6)


def test_options_come_from_the_spec_and_outputs_in_their_order(tmp_path: Path) -> None:
    outputs = {f"output.{place}": torch.tensor([float(place)]) for place in (10, 2, 0)}
    save_file({"input.0": torch.ones(2, 3), **outputs}, tmp_path / recorded.FILE)
    flat, found = recorded.read(tmp_path, SPEC)
    assert torch.equal(flat[0], torch.ones(2, 3))
    assert flat[1] is True
    assert [float(tensor) for tensor in found] == [0.0, 2.0, 10.0]


@pytest.mark.parametrize(
    "tensors", [None, {"output.0": torch.ones(1)}, {"input.0": torch.ones(1), "output.x": torch.ones(1)}]
)
def test_a_damaged_recording(tmp_path: Path, tensors: dict[str, torch.Tensor] | None) -> None:
    if tensors is not None:
        save_file(tensors, tmp_path / recorded.FILE)
    with pytest.raises(SourceError, match=r"is no readable prunec artefact: example\.safetensors: "):
        recorded.read(tmp_path, SPEC)
