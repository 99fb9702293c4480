from __future__ import annotations

import torch
from torch import Tensor, nn

from prunec.ops import Learned
from tests.ops.cases import ENDS, TOKENS


class Beside(nn.Module):
    """Each patch beside the mean of those that count."""

    context = takes_valid = True

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        share = torch.ones(x.shape[:2]) if valid is None else valid.to(x.dtype)
        mean = (x * share.unsqueeze(2)).sum(1, keepdim=True) / share.sum(1)[:, None, None]
        return (x - mean) @ self.weight


def test_a_scorer_that_wants_to_know_is_reported_which_patches_count() -> None:
    module, x = Beside(), torch.randn(2, TOKENS, 4)
    learned = Learned(module, "beside", 0)
    assert learned.takes_valid
    valid = torch.rand(2, TOKENS) > 0.4
    valid[:, 3] = True
    found = learned(x, *ENDS, 1, valid, module.weight)
    for image, there, scores in zip(x, valid, found, strict=True):
        patches = there.clone()
        patches[:1] = patches[-2:] = False
        torch.testing.assert_close(scores[patches], module(image[patches][None])[0])
        assert not scores[:1].any()
        assert not scores[-2:].any()
    torch.testing.assert_close(learned(x, *ENDS, 1, None, module.weight)[:, 1:-2], module(x[:, 1:-2]))
