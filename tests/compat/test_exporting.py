from __future__ import annotations

import torch
from torch import Tensor, nn

from prunec import compat
from prunec.ir import graph
from tests.tiny import ViT, captured


def test_the_regions_that_may_be_inlined_exist() -> None:
    assert all(hasattr(torch.ops.higher_order, name) for name in compat.INLINABLE_REGIONS)


def test_a_flat_graph_returns_a_tuple() -> None:
    found = captured(ViT()).module(torch.randn(2, 3, 20, 20))
    assert isinstance(found, tuple)
    assert found[0].shape == (2, 7)


def test_only_the_batch_becomes_a_symbol() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return x * scale

    program = captured(Two(), torch.randn(2, 5, 3, 1), torch.randn(3, 1))
    x, scale = program.graph.find_nodes(op="placeholder")
    assert [isinstance(size, torch.SymInt) for size in graph.shape(x)] == [True, False, False, False]
    assert [isinstance(size, torch.SymInt) for size in graph.shape(scale)] == [False, False]
