from __future__ import annotations

import traceback

import pytest
import torch

from prunec import compat


def test_the_numbers_are_those_of_manual_seed() -> None:
    torch.manual_seed(7)
    expected = torch.randn(5), torch.nn.functional.dropout(torch.ones(9))
    compat.seed(7)
    found = torch.randn(5), torch.nn.functional.dropout(torch.ones(9))
    assert all(map(torch.equal, found, expected))


def test_an_accelerator_draws_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[int] = []
    monkeypatch.setattr(torch, "manual_seed", seeded.append)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    compat.seed(3)
    assert seeded == [3]


def test_where_there_is_none_no_stack_is_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(traceback, "format_stack", lambda: pytest.fail("it was"))
    compat.seed(3)
    assert torch.initial_seed() == 3
