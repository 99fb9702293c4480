"""One image at a time: nothing pads it, so nothing is hidden."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from prunec import ops
from prunec.ir import graph
from prunec.ir.program import Program
from prunec.token_axis.padding import mask_of
from tests import moding, tiny
from tests.passes.padding import Biased
from tests.tiny import Attention, Block, ViT, counts, pixels, recognised

THRESHOLD = {"selector": "threshold", "fate": "preserve", "reactivate": True}


def both(model: nn.Module, **choices: Any) -> tuple[Program, Program]:
    """Padded, and for one image."""
    program = moding.plain(recognised(model), tiny.policy(**{**THRESHOLD, **choices}))
    return program, moding.lowered(program, "static")


def masks(program: Program) -> list[str | None]:
    """What the fused attentions of a program have for a mask."""
    cores = [node for node in program.graph.nodes if graph.op(node) == "scaled_dot_product_attention"]
    found = [mask_of(core) for core in cores]
    return [mask and graph.op(mask) for mask in found]


def test_no_key_mask_is_left() -> None:
    program, single = both(ViT(depth=2, read=lambda x: x))
    assert masks(program) == [None, "key_mask"]
    assert masks(single) == [None, None]
    assert counts(single, "one image") == {"masks": 1}
    assert [op for op in tiny.dialect_of(single) if op in ("pack", "kept_rows", "valid_mask", "scatter")] == [
        "kept_rows",
        "scatter",
    ]


def test_a_mask_of_the_models_own_stays() -> None:
    program, single = both(ViT(lambda: Block(Biased), depth=2, read=lambda x: x))
    assert masks(program)[1] == "key_mask"
    assert masks(single)[1] == "take"
    assert counts(single, "one image") == {"masks": 1}


def test_logits_and_means_are_not_filled() -> None:
    spelled = lambda: Block(lambda: Attention(form="spelled"))  # noqa: E731
    model = ViT(spelled, depth=2, read=lambda x: x.mean(dim=1))
    program, single = both(model, fate="drop", reactivate=False, restore="none")
    hiding = {ops.mask_keys, ops.fill, ops.rescale}
    assert {node.target for node in program.graph.nodes} >= hiding
    assert not {node.target for node in single.graph.nodes} & hiding
    assert counts(single, "one image") == {"masks": 3}


@pytest.mark.parametrize("size", [2, 9, 26])
def test_as_many_rows_as_the_image_keeps(size: int) -> None:
    model = ViT(depth=2, read=lambda x: x).eval()
    program, single = both(model)
    kept, image = (torch.arange(26) < size).expand(1, 1, -1), pixels(1)
    found = moding.run(single, [image], kept)
    assert [valid.shape[1] for _, valid in found.rows] == [size]
    with torch.no_grad():
        x = model.blocks[0](model.embed(image))
        x = torch.cat([model.blocks[1](x[:, :size]), x[:, size:]], dim=1)
        torch.testing.assert_close(found.result[0], model.head(model.norm(x)), rtol=0, atol=1e-5)
    moding.assert_modes_agree({"padded": program, "static": single}, lambda x: [x], image, kept)


def test_an_image_keeps_two_rows_in_any_case() -> None:
    # nothing is protected, and nothing passes: one row would be another graph to a compiler
    model = ViT(depth=2, prefix=0, read=lambda x: x.mean(dim=1))
    program, single = both(model, fate="drop", reactivate=False, restore="none")
    for each in (program, single):
        each.module.get_buffer("prunec.site_0.threshold").fill_(1e9)
    found = moding.assert_modes_agree({"padded": program, "static": single}, lambda x: [x], pixels(2))
    assert found.left[0].sum(dim=1).tolist() == [2, 2]
