"""A size that is a symbol."""

from __future__ import annotations

import torch


def symbolic_length() -> torch.SymInt:
    class Ones(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    dim = torch.export.Dim("n", min=2, max=64)
    exported = torch.export.export(Ones(), (torch.ones(20, 3),), dynamic_shapes={"x": {0: dim}})
    node = next(node for node in exported.graph.nodes if node.op == "placeholder")
    size = node.meta["val"].shape[0]
    assert isinstance(size, torch.SymInt)
    return size
