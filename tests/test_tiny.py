"""The one thing that must never break, on a two-block transformer, in a second or two."""

from __future__ import annotations

import torch

import prunec
from prunec.compiler import compile_source
from prunec.frontend.sources import from_module
from prunec.policy.policy import Policy
from tests.tiny import ViT, pixels


def by_hand(model: ViT, x: torch.Tensor, keep: int) -> torch.Tensor:
    """Prune before block 1 by the norm of each token, in plain PyTorch."""
    stream = model.blocks[0](model.embed(x))
    best = stream[:, 1:].norm(dim=-1).topk(keep, dim=1).indices.sort(dim=1).values + 1
    kept = torch.stack(
        [torch.cat([image[:1], image[rows]]) for image, rows in zip(stream, best, strict=True)]
    )
    return model.head(model.norm(model.blocks[1](kept))[:, 0])


def test_half_of_the_tokens_go_on_and_the_outputs_are_those_of_the_method_written_by_hand() -> None:
    model, x = ViT().eval(), pixels()
    chosen = Policy.load("norm").override(keep=0.5, blocks=(1,))
    compiled = compile_source(from_module(model, x), chosen)
    assert [str(site) for site in compiled.pruned.plan.sites] == ["before block 1: 26 -> 14 tokens"]
    (logits,) = compiled.pruned.module(x)
    torch.testing.assert_close(logits, by_hand(model, x, keep=13), rtol=0, atol=1e-6)


def test_keeping_everything_is_the_model() -> None:
    model, x = ViT().eval(), pixels(3)
    same = prunec.transform(model, prunec.Policy.load("norm", keep=1.0, blocks=(1,)), example=x)
    torch.testing.assert_close(same(x), model(x), rtol=0, atol=1e-6)
    assert same(pixels(5)).shape == (5, 7)
