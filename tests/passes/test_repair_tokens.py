from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunec import ops
from prunec.ir import graph
from prunec.ir.program import Program
from prunec.verify.certificate import certify
from tests import tiny
from tests.tiny import Attention, Block, ViT, counts, dialect_of, pixels, recognised, run


def repaired(model: nn.Module, expected: dict[str, int], **choices: Any) -> tuple[Program, Program]:
    """Dense and pruned program; first the counts, then the proof that no value changed."""
    dense = recognised(model)
    program = tiny.repaired(dense, **{"blocks": [1], **choices})
    assert counts(program, "repair tokens") == {
        "literals": 0, "gathered": 0, "scatters": 0, "region_ends": 0, **expected
    }  # fmt: skip
    certificate = certify(dense, program, (pixels(3),))
    assert max(certificate.identity, certificate.permutation) <= 1e-6
    return dense, program


def reference(model: ViT, x: Tensor, keep: int, forward: Callable[..., Tensor]) -> Tensor:
    """Prune before block 1 by the norm of each token: `forward(stream, rows)` goes on, image by image."""
    stream = model.blocks[0](model.embed(x))
    outputs = []
    for image in stream:
        best = image[1:].norm(dim=-1).topk(keep).indices.sort().values + 1
        rows = torch.cat([torch.tensor([0]), best])
        outputs.append(forward(image[None, rows], rows))
    return torch.cat(outputs)


def literals_of(program: Program, operator: str) -> list[list[Any]]:
    """The shapes in calls of an operator: integers, and names of sizes."""
    return [
        [size if isinstance(size, int) else size.name for size in node.args[1]]
        for node in program.graph.nodes
        if graph.op(node) == operator
    ]


def test_literals_become_the_length_of_the_selection() -> None:
    model = ViT().eval()
    _, program = repaired(model, {"literals": 2})
    shapes = literals_of(program, "reshape")
    assert [shape[1:] for shape in shapes[:2]] == [[26, 3, 2, 8], [26, 16]]
    first, second = (shape[1] for shape in shapes[2:])
    assert first == second
    size = graph.by_name(program.graph)[first]
    assert [str(arg) for arg in size.args] == ["select_0", "1"]
    assert dialect_of(program) == ["token_norm", "select", "gather"]
    x = pixels(3)
    expected = reference(model, x, 13, lambda kept, rows: model.head(model.norm(model.blocks[1](kept))[:, 0]))
    torch.testing.assert_close(run(program, x)[0], expected, rtol=0, atol=1e-5)


def test_a_second_site_has_a_length_of_its_own() -> None:
    _, program = repaired(ViT(depth=3), {"literals": 4}, blocks=[1, 2])
    lengths = [shape[1] for shape in literals_of(program, "reshape")]
    assert lengths[:2] == [26, 26]
    assert lengths[2] == lengths[3] != lengths[4] == lengths[5]
    sizes = [graph.by_name(program.graph)[name] for name in lengths[2::2]]
    assert [size.args[0].name for size in sizes] == ["select_0", "select_1"]


class Rotary(Attention):
    """A table by token, the class token's row included or not."""

    rows = 26

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(self.rows, 8))

    def turn(self, x: Tensor) -> Tensor:
        return x * self.table

    def forward(self, x: Tensor, table: Tensor | None = None) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        query, key = self.turn(query), self.turn(key)
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class RotaryWithoutPrefix(Rotary):
    rows = 25

    def turn(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :, :1], x[:, :, 1:] * self.table], dim=2)


@pytest.mark.parametrize(("attention", "skipped"), [(Rotary, 0), (RotaryWithoutPrefix, 1)])
def test_a_table_is_gathered_by_the_rows_that_are_left(attention: type[Rotary], skipped: int) -> None:
    model = ViT(lambda: Block(attention)).eval()
    _, program = repaired(model, {"gathered": 2})
    (take,) = [node for node in program.graph.nodes if node.target is ops.take]  # query and key share it
    table, index, dim, batch_dim, first, last = take.args
    assert (index.name, dim, batch_dim, first, last) == ("select_0", 2, 0, skipped, 0)
    assert graph.shape(table) == (1, 1, 26 - skipped, 8)

    def forward(kept: Tensor, rows: Tensor) -> Tensor:
        full = model.blocks[1].attn.table.data
        model.blocks[1].attn.table.data = full[rows[skipped:] - skipped]
        try:
            return model.head(model.norm(model.blocks[1](kept))[:, 0])
        finally:
            model.blocks[1].attn.table.data = full

    x = pixels(3)
    torch.testing.assert_close(run(program, x)[0], reference(model, x, 13, forward), rtol=0, atol=1e-5)


class Bias(Attention):
    """A relative position bias: both axes are tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(2, 26, 26))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=self.bias[None])
        return self.proj(out.transpose(1, 2).flatten(2))


class SpelledBias(Bias):
    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        weights = (query @ key.mT / 8**0.5 + self.bias).softmax(dim=-1)
        return self.proj((weights @ value).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("attention", [Bias, SpelledBias])
def test_a_bias_is_gathered_along_both_axes(attention: type[Bias]) -> None:
    model = ViT(lambda: Block(attention)).eval()
    _, program = repaired(model, {"gathered": 1})
    takes = [node for node in program.graph.nodes if node.target is ops.take]
    assert [node.args[2] for node in takes] == [2, 3]
    assert takes[1].args[0] is takes[0]

    def forward(kept: Tensor, rows: Tensor) -> Tensor:
        full = model.blocks[1].attn.bias.data
        model.blocks[1].attn.bias.data = full[:, rows][:, :, rows]
        try:
            return model.head(model.norm(model.blocks[1](kept))[:, 0])
        finally:
            model.blocks[1].attn.bias.data = full

    x = pixels(3)
    torch.testing.assert_close(run(program, x)[0], reference(model, x, 13, forward), rtol=0, atol=1e-5)


def test_a_table_after_two_sites_is_gathered_by_composed_rows() -> None:
    _, program = repaired(ViT(lambda: Block(Rotary), depth=3), {"gathered": 4}, blocks=[1, 2])
    composed = [node for node in program.graph.nodes if node.target is ops.compose]
    assert [[arg.name for arg in node.args] for node in composed] == [["select_0", "select_1"]]
    takes = [node for node in program.graph.nodes if node.target is ops.take]
    assert [node.args[1].name for node in takes] == ["select_0", composed[0].name]


def test_positions_that_are_added_again_are_gathered() -> None:
    class Again(ViT):
        def forward(self, pixels: Tensor) -> Tensor:
            x = self.embed(pixels)
            for block in self.blocks:
                x = block(x) + self.embed.position
            return self.head(self.norm(x)[:, 0])

    _, program = repaired(Again(), {"literals": 2, "gathered": 1})
    (take,) = [node for node in program.graph.nodes if node.target is ops.take]
    assert [str(arg) for arg in take.args] == ["embed_position", "select_0", "1", "0", "0", "0"]


def test_a_head_that_reads_every_token_gets_the_stream_scattered_back() -> None:
    model = ViT(read=lambda x: x).eval()
    _, program = repaired(model, {"literals": 2, "scatters": 1})
    (back,) = [node for node in program.graph.nodes if node.target is ops.scatter]
    base, x, index, dim = back.args
    assert (base.name, index.name, dim) == (program.anatomy.blocks[1].branches[0].state, "select_0", 1)
    assert x.name == program.anatomy.states[-1]
    image = pixels(1)
    before = model.blocks[0](model.embed(image))
    rows = torch.cat([torch.tensor([0]), before[0, 1:].norm(dim=-1).topk(13).indices.sort().values + 1])
    after = before.clone()
    after[:, rows] = model.blocks[1](before[:, rows])
    torch.testing.assert_close(run(program, image)[0], model.head(model.norm(after)), rtol=0, atol=1e-5)


def test_scattering_back_over_two_sites_goes_through_both() -> None:
    _, program = repaired(ViT(depth=3, read=lambda x: x), {"literals": 4, "scatters": 2}, blocks=[1, 2])
    first, second = [node for node in program.graph.nodes if node.target is ops.scatter]
    assert [node.args[2].name for node in (first, second)] == ["select_1", "select_0"]
    assert second.args[1] is first  # rows dropped at the second site are as they were there


def grid(x: Tensor) -> Tensor:
    return F.avg_pool2d(x[:, 1:].mT.reshape(x.shape[0], 16, 5, 5), 2).flatten(1)[:, :16]


def test_a_head_that_wants_the_grid_ends_the_region() -> None:
    _, program = repaired(ViT(read=grid), {"literals": 2, "scatters": 1, "region_ends": 1})
    assert dialect_of(program) == ["token_norm", "select", "gather", "scatter"]
    back = next(node for node in program.graph.nodes if node.target is ops.scatter)
    order = [node.name for node in program.graph.nodes]
    assert order.index(back.name) < order.index("avg_pool2d")


class Window(Attention):
    """A depthwise convolution on the grid inside the branch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, padding=1, groups=16)

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        patches = self.conv(out[:, 1:].mT.reshape(-1, 16, 5, 5)).flatten(2).mT
        return torch.cat([out[:, :1], patches], dim=1)


def test_a_grid_inside_a_block_gets_the_whole_stream_and_the_stream_goes_on_short() -> None:
    _, program = repaired(
        ViT(lambda: Block(Window), depth=3), {"literals": 4, "gathered": 2, "scatters": 1, "region_ends": 2}
    )
    # Block 1 has the whole stream at hand, from before the site; for block 2 it is scattered back.
    assert dialect_of(program) == ["token_norm", "select", "gather", "take", "scatter", "take"]


class Tap(ViT):
    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        middle = self.blocks[1](self.blocks[0](self.embed(pixels)))
        return self.head(self.norm(self.blocks[2](middle))[:, 0]), self.norm(middle)


def test_an_output_from_the_middle_leaves_whole() -> None:
    _, program = repaired(Tap(depth=3), {"literals": 4, "scatters": 1})
    assert [tuple(output.shape) for output in run(program, pixels(3))] == [(3, 7), (3, 26, 16)]


def test_patch_rows_in_a_fixed_place_end_the_region() -> None:
    program = repaired(
        ViT(read=lambda x: x[:, 1::2].mean(dim=1)), {"literals": 2, "scatters": 1, "region_ends": 1}
    )
    assert program[1].anatomy.prefix == 1


@pytest.mark.parametrize("where", ["before_block", "after_attention"])
@pytest.mark.parametrize("fate", ["drop", "fuse"])
def test_sites_of_every_kind(where: str, fate: str) -> None:
    choices = {"where": where, "fate": fate, "scorer": "cls_attention", "blocks": [1, 2]}
    literals = {"before_block": 4, "after_attention": 2}[where]
    dense, program = repaired(ViT(depth=3, prefix=2, suffix=1), {"literals": literals}, **choices)
    last = [site.leaves for site in program.plan.sites][-1]
    recorder = torch.fx.Interpreter(program.module)
    recorder.garbage_collect_values = False
    with torch.no_grad():
        recorder.run(pixels(2))
    final = graph.by_name(program.graph)[dense.anatomy.states[-1]]
    assert recorder.env[final].shape == (2, last, 16)


def test_kept_everything_needs_no_repair() -> None:
    repaired(ViT(), {}, keep=1.0)
