from __future__ import annotations

import json
from pathlib import Path

import timm
import torch

import prunec
from prunec import compat


def test_a_line_of_source() -> None:
    assert compat.source_text(__file__, 1) == "from __future__ import annotations"
    assert compat.source_text("nowhere.py", 3) == ""


def test_messages_point_at_files_of_the_user_and_of_model_libraries_alone() -> None:
    assert compat.is_users(__file__)
    assert compat.is_users(timm.__file__)
    for file in (torch.__file__, prunec.__file__, compat.__file__, "<string>"):
        assert not compat.is_users(file)
    assert not compat.is_users(str(Path(prunec.__file__).parent / "passes" / "liveness.py"))
    assert compat.is_users(json.__file__)
