"""Which models have a reference: the dense graph with the choices of another program."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prunec.ir.program import Program
from prunec.verify.certificate import certify
from tests.tiny import Attention, Block, ViT, pixels, pruned, recognised


class Noisy(ViT):
    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(pixels + torch.rand_like(pixels))


class Paired(ViT):
    """A model that wants two images."""

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.embed(pixels)
        assert x.shape[0] == 2
        return self.head(self.norm(self.blocks(x))[:, 0])


def assert_unproven(program: Program, reason: str) -> None:
    certificate = certify(program, pruned(program))
    assert certificate.own_counts is None
    assert str(certificate.unproven).startswith(reason)
    assert f"not proven at its own counts: {reason}" in str(certificate)


def test_a_model_that_draws_random_numbers_has_no_reference() -> None:
    assert_unproven(recognised(Noisy()), "the model draws random numbers: node rand_like")


def test_nor_has_one_whose_images_cannot_run_by_themselves() -> None:
    with pytest.warns(UserWarning, match="the batch is fixed at 2"):
        program = recognised(Paired())
    assert_unproven(program, "the model's own code fixes the batch")


def test_a_block_that_is_spelled_out_has_a_reference_too() -> None:
    program = recognised(ViT(lambda: Block(lambda: Attention(form="spelled"))), pixels(3))
    certificate = certify(program, pruned(program))
    assert certificate.own_counts is not None
    assert certificate.own_counts < 1e-6
