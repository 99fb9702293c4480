"""A small model, and the same with two sites."""

from __future__ import annotations

import pytest
import torch

from prunec.ir.program import Planned, Recognised
from tests.tiny import ViT, pruned, recognised


@pytest.fixture(scope="module")
def dense() -> Recognised:
    torch.manual_seed(1)
    return recognised(ViT(depth=3, read=lambda x: x))


@pytest.fixture(scope="module")
def half(dense: Recognised) -> Planned:
    return pruned(dense, blocks=[1, 2])
