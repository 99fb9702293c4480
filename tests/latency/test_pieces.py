from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunec.ir import graph
from prunec.ir.program import Program
from prunec.latency.pieces import Piece, cut, signature
from prunec.latency.probe import lengths, opened, probe
from prunec.passes import BACK
from prunec.policy.lowering import choose
from prunec.policy.policy import Policy
from prunec.targets.eager import Eager
from tests import tiny
from tests.latency.small import FAMILY, dense_of, model_of

NAMES = ("timm_vit", "timm_eva02", "timm_dinov3", "timm_beit", "hf_vit")


def states_of(program: Program) -> list[str]:
    return [block.branches[0].state for block in program.anatomy.blocks]


def outputs_of(program: Program) -> list[str]:
    return [node.name for node in graph.output_node(program.graph).all_input_nodes]


def recorded(program: Program, inputs: Sequence[Any]) -> dict[str, Any]:
    """Every value of a run, by name."""
    recorder = graph.Recorder(program.module, {node.name for node in program.graph.nodes})
    with torch.no_grad():
        recorder.run(*inputs)
    return recorder.values


def in_three(program: Program) -> list[tuple[Piece, list[str]]]:
    """Embedding and block 0, the middle, the last block and the head; each with what it yields."""
    states = states_of(program)
    ends = [[states[1]], [states[-1]], outputs_of(program)]
    starts = [program.anatomy.pixels, states[1], states[-1]]
    return [(cut(program, [start], end), end) for start, end in zip(starts, ends, strict=True)]


def assert_pieces_are_the_whole(program: Program, inputs: Sequence[Any]) -> dict[str, Any]:
    """Each piece reads what the one before made, and from a run of the whole only what lies beside it."""
    values, made = recorded(program, inputs), dict[str, Tensor]()
    for piece, end in in_three(program):
        given = [made.get(name, values[name]) for name in piece.inputs]
        assert not made or set(made) & set(piece.inputs)
        with torch.no_grad():
            found = piece.module(*given)
        made = dict(zip(end, found, strict=True))
    for name, found in made.items():
        assert torch.equal(found, values[name])
    return values


@pytest.mark.parametrize("name", NAMES)
def test_the_pieces_of_a_model_one_after_the_other_are_the_model(name: str) -> None:
    dense, images = dense_of(name), FAMILY[name].images(2, seed=3)
    values = assert_pieces_are_the_whole(dense, (images,))
    args, kwargs = FAMILY[name].call(images)
    with torch.no_grad():
        expected = model_of(name)(*args, **kwargs)
    expected = expected if isinstance(expected, Tensor) else expected[0]
    torch.testing.assert_close(values[outputs_of(dense)[0]], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_pieces_of_a_probe_are_the_probe_at_every_count(name: str) -> None:
    family, dense = FAMILY[name], dense_of(name)
    policy = opened(Policy.load("norm"), [1])
    probed = probe(dense, policy, choose(policy), BACK)
    state = states_of(probed)[-1]
    images, seen = family.images(2), []
    for count in (20, 11, 4):
        values = assert_pieces_are_the_whole(probed, (images, *lengths([count], images)))
        seen.append(values[state].shape[1])
    assert seen == [family.prefix + family.suffix + count for count in (20, 11, 4)]


@pytest.mark.parametrize("name", NAMES)
def test_a_piece_runs_at_other_lengths_than_it_was_cut_at(name: str) -> None:
    dense = dense_of(name)
    policy = opened(Policy.load("norm"), [0])
    probed = probe(dense, policy, choose(policy), BACK)
    states, images = states_of(probed), FAMILY[name].images(2)
    piece = cut(probed, [states[1]], [states[3]])
    for count in (23, 12, 5):
        values = recorded(probed, (images, *lengths([count], images)))
        with torch.no_grad():
            (found,) = piece.module(*(values[source] for source in piece.inputs))
        assert torch.equal(found, values[states[3]])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("site", [0, 2])
def test_no_piece_has_a_size_among_its_inputs(name: str, site: int) -> None:
    policy = opened(Policy.load("norm"), [site])
    probed = probe(dense_of(name), policy, choose(policy), BACK)
    images = FAMILY[name].images(2)
    values = recorded(probed, (images, *lengths([9], images)))
    for program in (dense_of(name), probed):
        for piece, _ in in_three(program):
            assert piece.inputs
            assert all(isinstance(values[source], Tensor) for source in piece.inputs if source in values)
            nodes = graph.by_name(program.graph)
            assert not any(graph.is_size(nodes[source]) for source in piece.inputs)


def test_a_piece_of_a_plain_model_reads_the_stream_and_of_the_images_only_how_many_they_are() -> None:
    dense = dense_of("timm_vit")
    first, *later = (piece for piece, _ in in_three(dense))
    assert first.inputs == (dense.anatomy.pixels,)
    for piece, place in zip(later, (1, -1), strict=True):
        assert set(piece.inputs) == {dense.anatomy.pixels, states_of(dense)[place]}
        pixels = graph.by_name(piece.module.graph)[dense.anatomy.pixels]
        assert {graph.op(user) for user in pixels.users} == {"sym_size"}


def test_a_piece_of_a_rotary_model_reads_its_tables_too() -> None:
    """They come from no pixel: near the stream, but not of it."""
    policy = opened(Policy.load("norm"), [0])
    probed = probe(dense_of("timm_eva02"), policy, choose(policy), BACK)
    states = states_of(probed)
    piece = cut(probed, [states[1]], [states[2]])
    assert states[1] in piece.inputs
    assert len(piece.inputs) > 1


def test_cutting_changes_neither_the_program_nor_its_parameters() -> None:
    dense = dense_of("timm_vit")
    before = str(dense.graph)
    piece = cut(dense, [states_of(dense)[1]], [states_of(dense)[2]])
    assert str(dense.graph) == before
    shared = {parameter.data_ptr() for parameter in dense.module.parameters()}
    assert {parameter.data_ptr() for parameter in piece.module.parameters()} <= shared
    assert 0 < len(list(piece.module.parameters())) < len(shared)


def test_a_piece_is_a_program_that_a_target_lowers() -> None:
    dense = dense_of("timm_vit")
    states, images = states_of(dense), FAMILY["timm_vit"].images(2)
    piece = cut(dense, [states[1]], [states[2]])
    values = recorded(dense, (images,))
    given = [values[name] for name in piece.inputs]
    program = piece.program(dense, given)
    assert program.interface.example == tuple(given)
    assert program.interface.batch is None
    with torch.no_grad():
        (found,) = Eager().lower(program)(*given)
    assert torch.equal(found, values[states[2]])


class Odd(tiny.Block):
    """A pre-norm block with one thing changed; the stream is 16 wide."""

    def __init__(
        self, *, eps: float = 1e-5, hidden: int = 32, scale: float = 1.0, swap: bool = False
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(16, eps=eps)
        self.mlp.up, self.mlp.down = nn.Linear(16, hidden), nn.Linear(hidden, 16)
        self.scale, self.swap = scale, swap

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x)) * self.scale
        hidden = self.norm2(x)
        up, gelu = self.mlp.up(hidden), F.gelu(hidden)
        # The same operators in the same order, of other operands.
        return x + self.mlp.down(F.gelu(up) if self.swap else F.gelu(up) + 0 * gelu.mean())


def signatures(make: Callable[[int], nn.Module]) -> list[str]:
    blocks = iter(range(4))
    dense = tiny.recognised(tiny.ViT(lambda: make(next(blocks)), depth=4))
    states = states_of(dense)
    return [cut(dense, [one], [other]).signature for one, other in pairwise(states)]


def test_blocks_that_are_alike_have_one_signature_whatever_their_weights() -> None:
    assert len(set(signatures(lambda _: Odd()))) == 1


@pytest.mark.parametrize("change", [{"eps": 1e-6}, {"hidden": 40}, {"scale": 0.5}, {"swap": True}], ids=str)
def test_a_block_that_differs_in_one_thing_has_another_signature(change: dict[str, Any]) -> None:
    first, odd, last = signatures(lambda index: Odd(**change) if index == 1 else Odd())
    assert first == last != odd


class Crossed(nn.Module):
    """Two linear layers of one size; which of them reads the other's output is all that may differ."""

    def __init__(self, crossed: bool) -> None:
        super().__init__()
        self.one, self.other, self.crossed = nn.Linear(4, 4), nn.Linear(4, 4), crossed

    def forward(self, x: Tensor) -> Tensor:
        first = self.one(x)
        second = self.other(x if self.crossed else first)
        return first + second


def test_signatures_tell_which_operator_reads_which() -> None:
    plain, crossed = (
        signature(torch.export.export(Crossed(flag), (torch.randn(2, 4),)).module()) for flag in (False, True)
    )
    assert plain != crossed
    again = signature(torch.export.export(Crossed(False), (torch.randn(2, 4),)).module())
    assert plain == again


@pytest.mark.parametrize("name", NAMES)
def test_the_middle_blocks_of_every_family_are_alike(name: str) -> None:
    dense = dense_of(name)
    one, two, three, *_ = states_of(dense)[1:]
    assert cut(dense, [one], [two]).signature == cut(dense, [two], [three]).signature
