from __future__ import annotations

import torch

from prunec.calibration.importance import PROJECTIONS, Importance
from tests.calibrating import images
from tests.tiny import ViT, recognised


def test_the_importance_is_the_gradient_through_the_block() -> None:
    # by hand, for one site and one projection
    torch.manual_seed(0)
    model = ViT(depth=3).eval()
    dense, x = recognised(model), images(2)
    branches = dense.anatomy.blocks[1].branches
    spans = [(branches[0].state, branches[-1].add)]
    ((states, found),) = Importance(dense, spans, dense.anatomy).run(x)
    start = model.blocks[0](model.embed(x)).detach().requires_grad_()
    end = model.blocks[1](start)
    output = model.head(model.norm(model.blocks[2](end))[:, 0])
    expected = 0.0
    for seed in range(PROJECTIONS):
        torch.manual_seed(seed)
        signs = torch.randint(0, 2, output.shape) * 2.0 - 1
        total = (output * signs).sum() / output.detach().std()
        at_start, at_end = torch.autograd.grad(total, [start, end], retain_graph=True)
        rows = start.detach()[:, 1:]
        effect = (at_start - at_end)[:, 1:] * (rows - rows.mean(dim=1, keepdim=True))
        expected = expected + effect.sum(dim=-1) ** 2
    torch.testing.assert_close(states, start.detach()[:, 1:], rtol=0, atol=1e-5)
    torch.testing.assert_close(found, (expected / PROJECTIONS) ** 0.5, rtol=1e-3, atol=1e-5)
