from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunec import ops
from prunec.errors import RecognitionError
from prunec.ir import graph
from prunec.ir.program import Program, Recognised
from prunec.passes import run_passes
from prunec.passes.insert_sites import InsertSites
from tests.tiny import Attention, Block, ViT, counts, dialect_of, planned, recognised


@pytest.fixture(scope="module")
def dense() -> Recognised:
    return recognised(ViT(depth=3))


def inserted(dense: Recognised, **choices: Any) -> Program:
    return run_passes((InsertSites(),), planned(dense, **choices))


def site(program: Program, number: int = 0) -> dict[str, torch.fx.Node]:
    nodes = graph.by_name(program.graph)
    names = ("score", "select", "gather", "fuse")
    return {name: nodes[f"{name}_{number}"] for name in names if f"{name}_{number}" in nodes}


def test_a_site_is_a_score_a_select_and_a_gather(dense: Recognised) -> None:
    program = inserted(dense, blocks=[1])
    assert counts(program, "insert sites") == {"sites": 1}
    assert dialect_of(program) == ["token_norm", "select", "gather"]
    made, state = site(program), dense.anatomy.blocks[1].branches[0].state
    assert made["score"].args[0].name == state
    assert made["select"].args == (made["score"], 13, 1, 0, False)
    assert made["gather"].args == (made["score"].args[0], made["select"], 1)


def test_everything_that_read_the_state_reads_what_is_left(dense: Recognised) -> None:
    program = inserted(dense, blocks=[1])
    made = site(program)
    state = made["gather"].args[0]
    before = graph.by_name(dense.graph)[state.name]
    assert set(state.users) == {made["score"], made["gather"]}
    assert {user.name for user in made["gather"].users} == {user.name for user in before.users}
    assert len(before.users) == 2


def test_nothing_else_changes_and_the_program_given_stays(dense: Recognised) -> None:
    text = str(dense.graph)
    program = inserted(dense, blocks=[1])
    assert str(dense.graph) == text
    names = [node.name for node in program.graph.nodes if node.target not in ops.DIALECT]
    assert names == [node.name for node in dense.graph.nodes]


def test_after_the_attention_is_where_the_mlp_reads(dense: Recognised) -> None:
    program = inserted(dense, blocks=[1], where="after_attention", scorer="cls_attention")
    made, block = site(program), dense.anatomy.blocks[1]
    assert made["gather"].args[0].name == block.mlp.state == block.attention.add
    core = block.attention.cores[0]
    assert [str(arg) for arg in made["score"].args] == [core.query, core.key, "0", "None", "None"]
    assert made["score"].target is ops.class_attention


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


def test_fuse_takes_the_score_as_weights(dense: Recognised) -> None:
    program = inserted(dense, blocks=[1], where="after_attention", fate="fuse")
    made = site(program)
    assert dialect_of(program) == ["class_attention", "select", "fuse"]
    assert made["select"].args[-1] is True
    assert made["fuse"].args[1:] == (made["select"], made["score"], 0, 1)


def test_a_random_score_is_of_the_stream(dense: Recognised) -> None:
    made = site(inserted(dense, blocks=[1], scorer="random"))
    assert made["score"].target is ops.random_score
    assert made["score"].args == (made["gather"].args[0], 1)


def test_sites_come_in_order_each_with_its_own_count(dense: Recognised) -> None:
    program = inserted(dense, blocks=[1, 2])
    assert counts(program, "insert sites") == {"sites": 2}
    order = [node.name for node in program.graph.nodes if node.target in ops.DIALECT]
    assert order == ["score_0", "select_0", "gather_0", "score_1", "select_1", "gather_1"]
    assert [site(program, number)["select"].args[1] for number in (0, 1)] == [13, 7]


def test_no_sites_change_nothing(dense: Recognised) -> None:
    program = inserted(dense, keep=1.0)
    assert counts(program, "insert sites") == {"sites": 0}
    assert [node.name for node in program.graph.nodes] == [node.name for node in dense.graph.nodes]


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


def test_the_new_nodes_have_types(dense: Recognised) -> None:
    made = site(inserted(dense, blocks=[1]))
    batch = graph.shape(made["gather"])[0]
    assert isinstance(batch, torch.SymInt)
    assert graph.shape(made["score"])[1:] == graph.shape(made["select"])[1:] == (26,)
    assert graph.shape(made["gather"])[1:] == (26, 16)
    assert made["select"].meta["val"].dtype == torch.int64
