"""What a site scores tokens by: which attention, and what that knows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunec import ops
from prunec.errors import RecognitionError
from prunec.ir.program import Recognised
from tests.passes.inserting import inserted, site
from tests.tiny import Attention, Block, ViT, dialect_of, recognised


@pytest.fixture(scope="module")
def dense() -> Recognised:
    return recognised(ViT(depth=3))


def test_before_a_block_the_attention_of_the_one_before_scores(dense: Recognised) -> None:
    made = site(inserted(dense, blocks=[2], scorer="cls_attention"))
    core = dense.anatomy.blocks[1].attention.cores[0]
    assert [arg.name for arg in made["score"].args[:2]] == [core.query, core.key]


def test_before_the_first_block_there_is_no_attention_to_score_by(dense: Recognised) -> None:
    with pytest.raises(RecognitionError, match="no attention stands before block 0") as caught:
        inserted(dense, blocks=[0], scorer="cls_attention")
    assert caught.value.where == "site before block 0"
    assert caught.value.remedy == "start at a later block"
    assert dialect_of(inserted(dense, blocks=[0])) == ["token_norm", "select", "gather"]


def test_a_random_score_is_of_the_stream(dense: Recognised) -> None:
    made = site(inserted(dense, blocks=[1], scorer="random"))
    assert made["score"].target is ops.random_score
    assert made["score"].args == (made["gather"].args[0], 1)


class Spelled(Attention):
    def __init__(self) -> None:
        super().__init__(form="spelled")


def test_attention_that_is_spelled_out_gives_its_map() -> None:
    program = recognised(ViT(lambda: Block(Spelled), prefix=2, suffix=1, read=lambda x: x[:, 1]))
    made = site(inserted(program, blocks=[1], scorer="cls_attention"))
    assert made["score"].target is ops.class_row
    assert made["score"].args[0].name == program.anatomy.blocks[0].attention.cores[0].node
    assert made["score"].args[1] == program.anatomy.class_token == 1
    assert made["select"].args[1:] == (13, 2, 1, False)


class Biased(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.bias = nn.Linear(16, 48), nn.Parameter(torch.randn(2, 26, 26))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=self.bias[None], scale=0.2)
        return out.transpose(1, 2).flatten(2)


def test_the_score_knows_the_mask_and_the_scale_of_the_attention() -> None:
    program = recognised(ViT(lambda: Block(Biased)))
    made = site(inserted(program, blocks=[1], scorer="cls_attention"))
    core = program.anatomy.blocks[0].attention.cores[0]
    assert made["score"].args[3] == core.scale == 0.2
    assert made["score"].args[4].name == core.mask
