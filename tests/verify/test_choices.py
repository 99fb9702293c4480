"""Selections of a graph, and what each image's rows are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prunec import ops
from prunec.errors import VerificationError
from prunec.ir import graph
from prunec.ir.program import Planned
from prunec.verify.choices import choices, sites_of


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (torch.tensor([[0, 1], [0, 26]]), "are 0 to 26 of 26"),
        (torch.tensor([[0, 1], [3, 3]]), "are not all different"),
        (torch.tensor([[0, 1]]), "expected int64"),
        (torch.tensor([[0.0, 1.0], [0.0, 1.0]]), "expected int64"),
    ],
)
def test_an_index_is_one(half: Planned, index: Tensor, words: str) -> None:
    sites = sites_of(half)
    values = {sites[0].index.name: index, sites[0].score.name: torch.rand(2, 26)}
    with pytest.raises(VerificationError, match=words):
        choices(half, sites, values)


def test_as_many_selections_as_sites(half: Planned) -> None:
    program = half.replace(module=graph.copy(half.module))
    node = next(node for node in program.graph.nodes if node.target is ops.select)
    node.target = torch.topk
    with pytest.raises(VerificationError, match=r"2 sites.* 1 times"):
        sites_of(program)
