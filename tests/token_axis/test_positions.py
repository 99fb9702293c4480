"""Rows that a call reads by constant position, on the way through a graph."""

from __future__ import annotations

import torch
from torch import Tensor

from prunec.probing.rows import RowRead
from tests.token_axis.repairing import repair


def reads(chain: object) -> list[RowRead]:
    return repair(chain, 13, 8, prefix=3).repairs.reads  # type: ignore[arg-type]


def test_a_row_and_an_element_of_a_split_are_read_by_position() -> None:
    (one,) = reads(lambda x: x[:, 0])
    assert (one.front, one.back, one.rows) == (1, 0, (0,))
    assert any(read.rows == (0, 1) for read in reads(lambda x: x.split([2, 11], dim=1)[0]))


def test_what_computes_or_keeps_the_length_reads_nothing_by_position() -> None:
    def mean(x: Tensor) -> Tensor:
        return x.mean(1)

    assert reads(mean) == []
    assert reads(torch.sin) == []
