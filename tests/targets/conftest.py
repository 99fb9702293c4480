from __future__ import annotations

import pytest

from prunec.targets import aoti, onnx, openvino, pt2
from tests.targets import cases


@pytest.fixture
def exported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets get what torch.export made of a case before: it is what takes the time."""
    for module in (aoti, onnx, openvino, pt2):
        monkeypatch.setattr(module, "exported", lambda program: cases.exported_case(cases.name_of(program)))
