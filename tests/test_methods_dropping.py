"""Methods that take a fixed number of tokens away, or sample them: against plain loops.

EViT, DynamicViT, ATS, representation shift, and the two heuristics that are no paper's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from prunec import ops
from tests import methods, references
from tests.watching import check, counts, images, learned, preset, transformed, vit, watch

Rows = list[list[int]]
Chosen = tuple[Tensor, Rows]


def keep_rows(model: Any, image: Tensor, sites: list[tuple[int, Rows]]) -> Chosen:
    """The rows that each site (block, rows) names go on; nothing is scored."""
    stream, plan = methods.Stream(methods.take_apart(model, image)), dict(sites)
    for number, layer in enumerate(stream.parts.layers):
        if number in plan:
            stream.keep([place for place in stream.patches if stream.rows[place] in plan[number]])
        stream.run(layer)
    return stream.finish(), [rows for _, rows in sites]


def test_evit() -> None:
    model = vit(4)
    fast = transformed(model, "evit")
    # 0.7 * 28 = 19.6 stay and one more, of 21 patches 14.7; behind the last attention nobody reads patches
    assert counts(fast) == [(1, 20), (2, 15)]
    pruning = references.Pruning("after_attention", "cls_attention", "fuse", blocks=(1, 2), keep=0.7)
    places: list[Rows] = [[], [], []]  # of each image

    def note(target: Any, result: Any) -> Any:
        if target is ops.select:
            for number, rows in enumerate(result.tolist()):
                places[number].append(rows[:-1])  # the last is where the extra token stands
        return result

    watch(fast, images(), note)
    with torch.no_grad():
        outputs = fast(images())
        expectations = [references.plain(model, image, pruning) for image in images()]
    for found, (output, expected), rows in zip(outputs, expectations, places, strict=True):
        assert rows == expected
        torch.testing.assert_close(found, output, rtol=0, atol=1e-5 * float(output.abs().max()))


def test_norm() -> None:
    model = vit(4)
    fast = transformed(model, "norm")
    assert counts(fast) == [(1, 20), (2, 14), (3, 10)]  # 19.6, 14, 9.8

    def reference(image: Tensor) -> Chosen:
        stream, plan, rows = methods.Stream(methods.take_apart(model, image)), dict(counts(fast)), []
        for number, layer in enumerate(stream.parts.layers):
            if number in plan:
                score = stream.x.pow(2).sum(dim=-1).sqrt()
                stream.keep(methods.ranked(score, stream.patches)[: plan[number]])
                rows.append(stream.rows)
            stream.run(layer)
        return stream.finish(), rows

    check(fast, reference)


def test_random() -> None:
    model, x = vit(4), images()
    fast = transformed(model, "random")
    assert counts(fast) == [(1, 20), (2, 14), (3, 10)]
    torch.manual_seed(5)
    run = watch(fast, x)
    torch.manual_seed(5)
    with torch.no_grad():
        found = fast(x)
    for number, image in enumerate(x):
        sites = list(zip((1, 2, 3), run.rows(number), strict=True))
        with torch.no_grad():
            output, _ = keep_rows(model, image, sites)
        torch.testing.assert_close(found[number], output, rtol=0, atol=1e-5 * float(output.abs().max()))
    assert run.rows(0) != run.rows(1)
    assert watch(fast, x).rows(0) != run.rows(0)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_dynamicvit(pool: str) -> None:
    model = vit(4, global_pool=pool)
    fast = transformed(model, "dynamicvit")
    assert counts(fast) == [(1, 20), (2, 14), (3, 10)]
    check(
        fast,
        lambda image: methods.dynamicvit(model, image, sites=counts(fast), parameters=learned(fast)),
    )


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_representation_shift(pool: str) -> None:
    model = vit(4, global_pool=pool, reg_tokens=2)
    fast = transformed(model, "representation-shift")
    assert counts(fast) == [(1, 20), (2, 14), (3, 10)]
    check(fast, lambda image: methods.representation_shift(model, image, sites=counts(fast)))


# --- ATS ------------------------------------------------------------------------------------


def ats(keep: float, least: int, **options: Any) -> tuple[Any, Callable[[Tensor], Chosen]]:
    model = vit(4, **options)
    fast = transformed(model, preset("ats", selector={"keep_per_site": keep, "least": least}))
    return fast, lambda image: methods.ats(model, image, sites=counts(fast), least=least)


def test_ats() -> None:
    fast, reference = ats(0.9, 8)
    assert counts(fast) == [(1, 26), (2, 24)]  # 25.2, 23.4
    chosen = check(fast, reference)
    assert len({len(rows[0]) for rows in chosen}) > 1
    assert all(len(rows[-1]) < 25 for rows in chosen)


def test_ats_keeps_as_many_as_it_must() -> None:
    fast, reference = ats(0.5, 8, reg_tokens=2)
    assert counts(fast) == [(1, 14), (2, 8)]  # 14, 7 or at least 8
    chosen = check(fast, reference)
    assert {len(rows[-1]) for rows in chosen} == {11}
    _, fewer = ats(0.5, 1, reg_tokens=2)
    with torch.no_grad():
        assert any(len(fewer(image)[1][1]) < 11 for image in images())
