from __future__ import annotations

import pytest
import torch

from prunec import ops
from prunec.ir import graph
from prunec.ir.program import Recognised
from tests.passes.inserting import inserted, site
from tests.tiny import ViT, counts, dialect_of, recognised


@pytest.fixture(scope="module")
def dense() -> Recognised:
    return recognised(ViT(depth=3))


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


def test_fuse_takes_the_score_as_weights(dense: Recognised) -> None:
    program = inserted(dense, blocks=[1], where="after_attention", fate="fuse")
    made = site(program)
    assert dialect_of(program) == ["class_attention", "select", "fuse"]
    assert made["select"].args[-1] is True
    assert made["fuse"].args[1:] == (made["select"], made["score"], 0, 1)


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


def test_the_new_nodes_have_types(dense: Recognised) -> None:
    made = site(inserted(dense, blocks=[1]))
    batch = graph.shape(made["gather"])[0]
    assert isinstance(batch, torch.SymInt)
    assert graph.shape(made["score"])[1:] == graph.shape(made["select"])[1:] == (26,)
    assert graph.shape(made["gather"])[1:] == (26, 16)
    assert made["select"].meta["val"].dtype == torch.int64
