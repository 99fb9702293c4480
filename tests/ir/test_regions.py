from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prunec.ir import graph
from prunec.ir.program import Program
from prunec.ir.regions import Region, regions_of, shared_shapes
from tests.tiny import Mlp, ViT, captured, pixels, pruned, recognised


def run(program: Program, x: Tensor) -> list[Tensor]:
    """The program's outputs, region by region, by the names alone."""
    weights = {**dict(program.module.named_parameters()), **dict(program.module.named_buffers())}
    values: dict[str, Any] = {node.name: x for node in program.graph.nodes if node.op == "placeholder"}
    for region in regions_of(program):
        given = [values[name] for name in region.inputs] + [weights[path] for path in region.weights]
        values.update(zip(region.outputs, region.module(*given), strict=True))
    return [values[node.name] for node in graph.output_node(program.graph).all_input_nodes]


def compiled_once(regions: list[Region]) -> list[int]:
    """How many regions share their code, for each code in the order of its first use."""
    return list(Counter(region.signature for region in regions).values())


def test_blocks_that_are_alike_share_their_code() -> None:
    program = recognised(ViT(depth=5))
    regions = regions_of(program)
    assert compiled_once(regions) == [1, 4, 1]  # stem; blocks; last block and head
    middle = regions[1]
    calls = [graph.op(node) for node in middle.module.graph.nodes if node.op == "call_function"]
    calls = [name for name in calls if name != "sym_size"]
    assert calls[:2] == ["layer_norm", "linear"]
    assert calls[-2:] == ["linear", "add"]
    assert middle.shapes == ((None, 26, 16),)  # any batch; nothing else is read
    assert middle.inputs == regions[0].outputs
    assert all(path.startswith("blocks.0") for path in middle.weights)
    x = pixels(3)
    assert torch.equal(run(program, x)[0], program.module(x)[0])


def test_every_call_stands_in_one_region_and_sizes_are_read_anew() -> None:
    program = pruned(recognised(ViT(depth=4)), blocks=[1, 2])
    calls = Counter(
        graph.op(node)
        for node in program.graph.nodes
        if node.op == "call_function" and not graph.is_size(node)
    )
    found = Counter(
        graph.op(node)
        for region in regions_of(program)
        for node in region.module.graph.nodes
        if node.op == "call_function" and graph.op(node) != "sym_size"
    )
    assert found == calls


class Tanh(Mlp):
    """With the other GELU, which differs in an argument by name."""

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model.blocks[2].norm1, "eps", 1e-3),
        lambda model: setattr(model.blocks[2].mlp.up, "bias", None),
        lambda model: setattr(model.blocks[3], "mlp", Mlp(16, 48)),
        lambda model: setattr(model.blocks[3].attn, "form", "spelled"),
        lambda model: setattr(model.blocks[3], "mlp", Tanh()),
    ],
    ids=["a constant", "no bias", "wider", "other operators", "an option by name"],
)
def test_a_block_that_differs_is_other_code(change: Callable[[ViT], None]) -> None:
    model = ViT(depth=5)
    change(model)
    program = recognised(model)
    assert compiled_once(regions_of(program)) == [1, 3, 1, 1]
    x = pixels(3)
    assert torch.equal(run(program, x)[0], program.module(x)[0])


def test_blocks_behind_a_site_share_the_code_of_those_before_it() -> None:
    program = pruned(recognised(ViT(depth=7)), blocks=[3])
    regions = regions_of(program)
    stem, *blocks, head = [region.signature for region in regions]
    site = blocks.pop(3)
    assert len(blocks) == 6
    assert len(set(blocks)) == 1  # on 26 tokens, and on 14
    assert len({stem, blocks[0], site, head}) == 4
    assert regions[1].shapes == ((None, 26, 16),)
    assert shared_shapes(regions)[blocks[0]] == ((None, None, 16),)
    x = pixels(3)
    assert torch.equal(run(program, x)[0], program.module(x)[0])


def test_what_chooses_tokens_is_a_region_of_its_own_that_runs_as_it_is() -> None:
    regions = regions_of(pruned(recognised(ViT(depth=4)), blocks=[1, 2]))
    assert sum(region.as_is for region in regions) == 2
    for region in regions:
        found = [node.target for node in region.module.graph.nodes if node.op == "call_function"]
        assert any(target.__module__ == "prunec.ops.selections" for target in found) == region.as_is
        assert not (region.as_is and torch.ops.aten.linear.default in found)


@pytest.mark.parametrize(
    ("side", "prefix"), [(2, 3), (2, 4), (4, 0)], ids=["classes", "channels of a head", "channels"]
)
def test_a_length_that_another_number_happens_to_equal_changes_nothing(side: int, prefix: int) -> None:
    # 16 channels in 2 heads of 8, and 7 classes
    model = ViT(depth=5, side=side, prefix=prefix, read=lambda x: x.mean(dim=1))
    program = pruned(recognised(model, pixels(side=side)), blocks=[2])
    x = pixels(3, side)
    assert torch.equal(run(program, x)[0], program.module(x)[0])


def test_a_program_of_unknown_blocks_is_one_region() -> None:
    program = captured(ViT())
    (region,) = regions_of(program)
    assert not region.as_is
    assert region.inputs == ("pixels",)
    x = pixels(3)
    assert torch.equal(run(program, x)[0], program.module(x)[0])
