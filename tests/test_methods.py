"""All presets: neutral settings, compiling and exporting; restoration. Each method has a file of its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from prunec import ops
from prunec.policy.policy import Policy, presets
from tests import methods
from tests.families import difference
from tests.watching import (
    TOLERANCE,
    at,
    images,
    preset,
    segmenter,
    separate,
    sites,
    transformed,
    vit,
    watch,
)

# --- neutral settings -------------------------------------------------------------------------


def neutral(name: str) -> Policy:
    """The preset told to take nothing away: keep 1, remove nothing, thresholds of 1."""
    policy = Policy.load(name)
    if name == "algm":
        second = policy.then[0].model_dump()
        second["selector"] = {"kind": "threshold", "at": 1.0}
        return preset(name, selector={"at": 1.0}, then=[second])
    rate = next(
        rate for rate in ("keep_per_site", "remove", "at") if getattr(policy.selector, rate) is not None
    )
    return preset(name, selector={rate: 0.0 if rate == "remove" else 1.0})


@pytest.mark.parametrize("name", presets())
def test_neutral_settings_are_the_dense_model(name: str) -> None:
    model = segmenter(3) if name == "dtop" else vit(3)
    fast, x = transformed(model, neutral(name)), images()
    assert sites(fast) == ()
    with torch.no_grad():
        assert difference(fast(x), model(x)) < TOLERANCE


@pytest.mark.parametrize("name", ["tome", "diffrate", "pomt"])
def test_so_are_sites_that_are_reported_to_keep_everything(name: str) -> None:
    # the tokens go all the way through merging or fusing, in another order perhaps
    model, x = vit(3), images()
    fast = transformed(model, preset(name))
    program = fast.__dict__["program"]
    for node in program.graph.nodes:
        if node.target in (ops.select, ops.select_pairs):
            node.update_arg(1, 28)
    program.module.recompile()
    with torch.no_grad():
        assert difference(fast(x), model(x)) < TOLERANCE


# --- restoration ------------------------------------------------------------------------------


def kept_rows(model: nn.Module, image: Tensor, plan: dict[int, list[int]]) -> methods.Stream:
    """A stream at the end, from which all but the rows that are given left before these blocks."""
    stream = methods.Stream(methods.take_apart(model, image))
    for number, layer in enumerate(stream.parts.layers):
        if number in plan:
            stream.keep([place for place in stream.patches if stream.rows[place] in plan[number]])
        stream.run(layer)
    return stream


def test_norm_is_stale() -> None:
    model, x = segmenter(4), images()
    fast = transformed(model, preset("norm", restore="stale"))
    run = watch(fast, x)
    with torch.no_grad():
        for number, image in enumerate(x):
            plan = dict(zip((1, 2, 3), run.rows(number), strict=True))
            assert difference(run.result[0][number], kept_rows(model, image, plan).finish()) < TOLERANCE


def test_rejoin_where_images_differ() -> None:
    model, x = segmenter(4), images()
    policy = preset("svit", selector={"stages": 1}, reactivate=False, restore="rejoin")
    fast = transformed(model, policy)
    assert [site.block for site in sites(fast)] == [1, 2]
    separate(fast, x)
    run = watch(fast, x)
    assert len({len(run.rows(number)[1]) for number in range(3)}) > 1
    with torch.no_grad():
        for number, image in enumerate(x):
            stream = methods.Stream(methods.take_apart(model, image))
            plan = dict(zip((1, 2), run.rows(number), strict=True))
            for block, layer in enumerate(stream.parts.layers):
                if block in plan:
                    places = [place for place in stream.patches if stream.rows[place] in plan[block]]
                    stream.keep(places)
                if block == 3:
                    stream.rejoin()
                stream.run(layer)
            assert difference(run.result[0][number], stream.finish()) < TOLERANCE


# --- compiling and exporting ------------------------------------------------------------------

CASES: dict[str, Callable[[], nn.Module]] = {
    "tome": lambda: transformed(
        vit(1, global_pool="avg"), preset("tome", sites=at(0), selector={"remove": 0.2})
    ),
    "dtop": lambda: transformed(segmenter(1), preset("dtop", sites=at(0))),
    "dynamicvit": lambda: transformed(vit(1), preset("dynamicvit", sites=at(0))),
}


@pytest.mark.parametrize("name", CASES)
def test_inductor_compiles_it_as_one_graph(name: str) -> None:
    torch._dynamo.reset()
    fast, x = CASES[name](), images()
    if name == "dtop":
        separate(fast, x)
    with torch._dynamo.config.patch(capture_scalar_outputs=True), torch.no_grad():
        compiled = torch.compile(fast.__dict__["program"].module, fullgraph=True)
        assert difference(compiled(x)[0], fast(x)) < TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_it_exports(name: str) -> None:
    fast, x = CASES[name](), images()
    if name == "dtop":
        separate(fast, x)
    module = fast.__dict__["program"].module
    batch = torch.export.Dim("batch", min=2)
    with torch.no_grad():
        exported = torch.export.export(module, (x,), dynamic_shapes={"x": {0: batch}})
        found = exported.module()(images(4))[0]
        assert difference(found, fast(images(4))) < TOLERANCE
