"""Rows that only fill a batch up: hidden from whatever would see them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prunec import ops
from prunec.errors import PolicyError, VerificationError
from prunec.verify.certificate import _padding, certify
from tests.passes.padding import Biased, program_of, score_of
from tests.tiny import Attention, Block, ViT, pixels, recognised, run


def test_a_bias_between_tokens_moves_with_them_and_padding_is_hidden_on_top_of_it() -> None:
    torch.manual_seed(0)
    model = ViT(lambda: Block(Biased), depth=2).eval()
    program = program_of(model, blocks=[1])
    images = pixels(4) * torch.linspace(0.3, 2, 4).view(4, 1, 1, 1)
    with torch.no_grad():
        expected = []
        for image in images:
            x = model.blocks[0](model.embed(image[None]))[0]
            kept = score_of(program)(0, x) > 0
            kept[0] = True
            model.blocks[1].attn.rows = kept.nonzero()[:, 0]
            x[kept] = model.blocks[1](x[kept][None])[0]
            expected.append(model.head(model.norm(x)[0]))
    model.blocks[1].attn.rows = None
    torch.testing.assert_close(run(program, images)[0], torch.stack(expected), rtol=0, atol=1e-5)


def test_what_lets_tokens_meet_gets_all_of_them() -> None:
    class Mixing(ViT):
        def forward(self, pixels: Tensor) -> Tensor:
            x = self.embed(pixels)
            for block in self.blocks:
                x = block(x)
                x = x + x.cumsum(dim=1) / 10  # has a type on any number of rows
            return self.head(self.norm(x)[:, 0])

    torch.manual_seed(0)
    model = Mixing(depth=3).eval()
    dense = recognised(model)
    program = program_of(model, blocks=[1])
    sums = [node for node in program.graph.nodes if "cumsum" in str(node.target)]
    assert [node.meta["val"].shape[1] for node in sums] == [26] * 3
    certify(dense, program)


def test_the_certificate_sees_padding_that_is_not_hidden() -> None:
    torch.manual_seed(0)
    model = ViT(depth=2).eval()
    program = program_of(model, blocks=[1])
    assert _padding(program, program, program.interface.example, 2) < 1e-6  # type: ignore[operator]
    for node in list(program.graph.nodes):
        if node.target is ops.key_mask:
            node.replace_all_uses_with(None)  # type: ignore[arg-type]  # FX takes a constant here
            program.graph.erase_node(node)
    program.module.recompile()
    with pytest.raises(VerificationError, match="see each other's padding"):
        certify(recognised(model), program)


class Folded(Attention):
    """Images and heads on one axis; attention spelled out or fused."""

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        query, key, value = self.qkv(x).reshape(b, t, 3, 2, c // 2).permute(2, 0, 3, 1, 4).flatten(1, 2)
        if self.form == "fused":
            out = F.scaled_dot_product_attention(query, key, value)
        else:
            out = torch.bmm(torch.bmm(query, key.mT).softmax(dim=-1), value)
        return self.proj(out.view(b, 2, t, -1).transpose(1, 2).reshape(b, t, c))


def test_padding_is_hidden_where_images_and_heads_are_on_one_axis() -> None:
    torch.manual_seed(0)
    model = ViT(lambda: Block(lambda: Folded(form="spelled")), depth=2).eval()
    program = program_of(model, blocks=[1])
    (hidden,) = (node for node in program.graph.nodes if node.target is ops.fill)
    assert hidden.args[2:] == (float("-inf"), 2, 0, 2)  # the keys of both heads of each image
    certificate = certify(recognised(model), program)
    assert certificate.padding is not None
    hidden.replace_all_uses_with(hidden.args[0])  # type: ignore[arg-type]
    program.module.recompile()
    with pytest.raises(VerificationError, match="see each other's padding"):
        certify(recognised(model), program)


def test_fused_attention_with_images_and_heads_on_one_axis_is_refused() -> None:
    with pytest.raises(PolicyError, match="attention with images on its first axis"):
        program_of(ViT(lambda: Block(Folded), depth=2), blocks=[1])


def test_a_stream_that_fixes_its_batch_is_certified_without_the_padding() -> None:
    program = program_of(ViT(depth=2).eval(), blocks=[1])
    fixed = program.replace(
        interface=program.interface.__class__(**{**vars(program.interface), "batch": None})
    )
    assert _padding(fixed, fixed, fixed.interface.example, 2) is None
