"""Token Cropr, with and without its last-layer fusion, against plain loops, and METHODS 2.7.

(e), that the auxiliary losses send no gradient to the backbone, waits for training: nothing is detached yet.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from prunec import ops
from prunec.scorers.gates import QueryGate, Setting
from tests import methods
from tests.families import difference
from tests.watching import (
    TOLERANCE,
    check,
    counts,
    images,
    learned,
    preset,
    segmenter,
    sites,
    transformed,
    vit,
    watch,
)

QUERIES = 11  # no other size of the model


def cropr(model: nn.Module, name: str = "cropr", **changes: Any) -> nn.Module:
    changes = {"remove": 0.2, "multiple_of": 1, **changes}
    return transformed(model, preset(name, scorer={"queries": QUERIES}, selector=changes))


MODELS = {
    "class token": lambda: vit(4),
    "mean": lambda: vit(4, global_pool="avg"),
    "registers": lambda: vit(4, reg_tokens=2),
    "all tokens": lambda: segmenter(4),
}


@pytest.mark.parametrize("name", MODELS)
def test_cropr(name: str) -> None:
    model = MODELS[name]()
    fast = cropr(model)
    assert counts(fast) == [(1, 22), (2, 16)]  # block 3 is the last: all rejoin before it

    def reference(image: Tensor) -> tuple[Tensor, methods.model.Rows]:
        parameters = learned(fast)
        return methods.cropr(model, image, sites=counts(fast), parameters=parameters, fusion=True)

    check(fast, reference)


@pytest.mark.parametrize("name", ["class token", "mean"])
def test_cropr_drop(name: str) -> None:
    model = MODELS[name]()
    fast = cropr(model, "cropr-drop")
    assert counts(fast) == [(1, 22), (2, 16), (3, 10)]

    def reference(image: Tensor) -> tuple[Tensor, methods.model.Rows]:
        parameters = learned(fast)
        return methods.cropr(model, image, sites=counts(fast), parameters=parameters, fusion=False)

    check(fast, reference)


def test_lengths_are_multiples_of_eight_and_what_is_owed_is_taken_later() -> None:
    # 29 tokens, 6 fewer each: 23 -> 24, then 17 -> 24 (no site), then 11 -> 16
    fast = cropr(vit(4), "cropr-drop", multiple_of=8)
    assert [(site.block, site.tokens, site.leaves) for site in sites(fast)] == [(1, 29, 24), (3, 24, 16)]


# --- METHODS 2.7 ----------------------------------------------------------------------------


def test_a_folded_and_unfolded_scores_choose_the_same() -> None:
    gate = QueryGate(Setting(dim=48, patches=100), queries=QUERIES)
    x, places = torch.randn(100, 48), list(range(100))
    with torch.no_grad():
        folded, unfolded = gate(x[None])[0], methods.cropr_scores(x, gate.queries)
        by_hand = methods.cropr_scores_folded(x, gate.queries)
    ranking = methods.ranked(unfolded, places)
    assert methods.ranked(folded, places) == methods.ranked(by_hand, places) == ranking


class Sizes(TorchDispatchMode):
    """Notes the sizes of everything that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[list[int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.found.append(list(result.shape))
        return result


def test_a_nothing_is_multiplied_with_every_query() -> None:
    fast = cropr(vit(4))
    queries = [tensor for name, tensor in fast.state_dict().items() if name.endswith("queries")]
    with torch.no_grad(), Sizes() as folded:
        fast(images())
    with torch.no_grad(), Sizes() as unfolded:
        torch.randn(28, 48) @ queries[0].T
    assert any(QUERIES in sizes for sizes in unfolded.found)
    assert not any(QUERIES in sizes for sizes in folded.found)


def test_b_removing_nothing_is_the_dense_model() -> None:
    model, x = vit(4), images()
    with torch.no_grad():
        dense = model(x)
        for name in ("cropr", "cropr-drop"):
            fast = cropr(model, name, remove=0.0)
            assert difference(fast(x), dense) < TOLERANCE


def test_c_fusion_of_nothing_left_out_is_the_dense_model() -> None:
    # sites for all patches but one, told to keep that one too: the tokens go the whole way of the fusion
    model, x = segmenter(4), images()
    fast = cropr(model, remove=0.04)
    for node in fast.__dict__["program"].graph.nodes:
        if node.target is ops.select:
            node.update_arg(1, 28)
    fast.__dict__["program"].module.recompile()
    with torch.no_grad():
        assert difference(fast(x), model(x)) < TOLERANCE


def test_d_all_tokens_rejoin_each_once_and_in_order() -> None:
    model, x = segmenter(4), images()
    fast = cropr(model)
    run = watch(fast, x)
    ways = [result for target, result in run.values if target is ops.scatter]
    assert ways[-1].shape[1] == 29
    with torch.no_grad():
        for number, image in enumerate(x):
            stream = methods.Stream(methods.take_apart(model, image))
            for block, layer in enumerate(stream.parts.layers[:3]):
                for (place, _), rows in zip(counts(fast), run.rows(number), strict=True):
                    if place == block:
                        stream.keep([row for row in stream.patches if stream.rows[row] in rows])
                stream.run(layer)
            stream.rejoin()
            assert stream.rows == list(range(29))
            assert difference(ways[-1][number], stream.x) < TOLERANCE
