from __future__ import annotations

import copy
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from prunec import compat
from prunec.targets import Flat
from prunec.targets.inductor import Inductor
from prunec.targets.regional import Regional
from tests.targets import cases
from tests.targets.cases import difference, images
from tests.tiny import ViT, pixels, pruned, recognised


def as_it_is(call: Flat) -> Flat:
    return call


@pytest.mark.parametrize("name", ["dense", *cases.CASES])
def test_regions_together_compute_what_the_graph_does(name: str) -> None:
    program = cases.case(name)
    run = Regional(program, as_it_is, dynamic=True)
    with torch.no_grad():
        for batch in cases.batches(program):
            x = images(batch)
            for found, expected in zip(run(x), program.module(x), strict=True):
                assert torch.equal(found, expected)


def test_code_is_made_once_for_all_regions_that_are_alike_and_none_for_a_site() -> None:
    program = pruned(recognised(ViT(depth=7)), blocks=[3])
    made: list[Flat] = []

    def compiled(call: Flat) -> Flat:
        made.append(call)
        return call

    run = Regional(program, compiled, dynamic=True)
    # stem, block 0, block 1, block 2, site, block 3, block 4, block 5, block 6 and head
    codes = [step.run for step in run.steps]
    assert len(codes) == 9
    assert len({*codes[1:4], *codes[5:8]}) == 1
    assert codes[4] not in made
    assert len(made) == run.codes == 3
    assert len(set(codes)) == 4


def test_only_lengths_that_differ_are_symbols(monkeypatch: pytest.MonkeyPatch) -> None:
    program = pruned(recognised(ViT(depth=7)), blocks=[3])
    marked: list[tuple[int, ...]] = []

    def mark(tensor: Tensor, axis: int) -> None:
        marked.append((*tensor.shape, axis))

    monkeypatch.setattr(compat, "mark_dynamic", mark)
    Regional(program, as_it_is, dynamic=True)(pixels(3))
    assert (3, 3, 20, 20, 0) in marked  # the batch of the pixels
    assert (3, 26, 16, 1) in marked  # tokens, where the same code runs on 14 of them
    assert not any(size == 16 and axis == 2 for *_, size, axis in marked)  # channels are never one
    marked.clear()
    Regional(program, as_it_is, dynamic=True)(pixels(1))
    assert all(shape[shape[-1]] > 1 for shape in marked)  # one image is a constant to PyTorch
    marked.clear()
    Regional(program, as_it_is, dynamic=False)(pixels(3))
    assert not marked


def test_weights_are_those_of_now_and_a_copy_has_its_own() -> None:
    model = ViT(depth=4)
    program = pruned(recognised(model), blocks=[1])
    run = Regional(program, as_it_is, dynamic=True)
    x = pixels()
    before, twin = run(x)[0], copy.deepcopy(run)
    with torch.no_grad():
        program.module.get_parameter("blocks.2.mlp.up.weight").mul_(2)
    program.module.get_submodule("blocks.1.norm1").weight = nn.Parameter(torch.full((16,), 0.5))
    after = run(x)[0]
    assert not torch.equal(before, after)
    assert torch.equal(after, program.module(x)[0])
    assert torch.equal(twin(x)[0], before)


def test_gradients_are_those_of_the_graph() -> None:
    program = pruned(recognised(ViT(depth=4)), blocks=[1])
    x = pixels()
    weight = program.module.get_parameter("blocks.0.attn.qkv.weight")
    found = torch.autograd.grad(Regional(program, as_it_is, dynamic=True)(x)[0].sum(), weight)[0]
    expected = torch.autograd.grad(program.module(x)[0].sum(), weight)[0]
    torch.testing.assert_close(found, expected)


def test_a_value_lives_no_longer_than_it_is_read() -> None:
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def counted(call: Flat) -> Flat:
        def run(*given: Tensor) -> Any:
            nonlocal most
            found = call(*given)
            alive.extend(weakref.ref(each) for each in found)
            most = max(most, sum(each() is not None for each in alive))
            return found

        return run

    with torch.no_grad():
        Regional(recognised(ViT(depth=8)), counted, dynamic=True)(pixels())
    assert most == 2  # what a block reads, and what it makes


def test_compiled_by_inductor_it_serves_every_batch() -> None:
    program = cases.case("dynamic packed")
    torch._dynamo.reset()
    counters.clear()
    run = Inductor().lower(program)
    assert isinstance(run, Regional)
    with torch.no_grad():
        for batch in (8, 3, 2):
            (found,) = run(images(batch))
            assert difference(found, program.module(images(batch))[0]) < cases.TOLERANCE
        assert counters["stats"]["unique_graphs"] == run.codes  # nothing was compiled again
        (found,) = run(images(1))
        assert difference(found, program.module(images(1))[0]) < cases.TOLERANCE
    assert counters["graph_break"] == {}
