from __future__ import annotations

import pytest
import sympy
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from prunec import compat
from prunec.errors import PolicyError
from prunec.probing.lengths import IMAGES, Lengths, settings
from tests.probing.sizes import symbolic_length
from tests.tiny import ViT, pruned, recognised


def test_lengths_stand_in_for_symbols() -> None:
    size = symbolic_length()
    (symbol,) = size.node.expr.free_symbols
    assert isinstance(symbol, sympy.Symbol)
    tokens = Lengths({symbol: 7})
    assert (tokens.size(size), tokens.size(2 * size - 1), tokens.size(9)) == (7, 13, 9)
    assert not tokens.counts_images(size)
    assert Lengths({}).size(size) == 2
    assert Lengths({}).counts_images(size)


def test_more_tokens_are_more_of_those_that_a_size_counts() -> None:
    size = symbolic_length()
    (symbol,) = size.node.expr.free_symbols
    other = sympy.Symbol("m", integer=True)
    tokens = Lengths({symbol: 7, other: 3})
    longer = tokens.longer(size, 2)
    assert longer.numbers == {symbol: 9, other: 3}
    assert tokens.numbers == {symbol: 7, other: 3}


def test_a_shape_has_a_number_for_each_size() -> None:
    assert Lengths({}).shape(torch.empty(3, 4)) == (3, 4)


def test_a_program_runs_at_its_own_counts_and_with_all_tokens() -> None:
    own, full = settings(pruned(recognised(ViT(depth=3)), blocks=[1, 2]).graph, IMAGES)
    assert list(own.numbers.values()) == [14, 8]
    assert list(full.numbers.values()) == [26, 26]


def test_where_images_differ_some_tokens_are_left_out_and_protected_ones_stay() -> None:
    program = pruned(recognised(ViT(depth=3)), selector="threshold", fate="preserve", reactivate=True)
    own, full = settings(program.graph, IMAGES)
    (kept,), (all_of_them,) = own.numbers.values(), full.numbers.values()
    assert 1 < kept < all_of_them == 26


def test_without_sites_there_is_one_setting() -> None:
    (only,) = settings(recognised(ViT()).graph, 5)
    assert (only.numbers, only.images) == ({}, 5)


def test_a_size_that_so_few_images_do_not_have_is_the_recorded_one_or_refused() -> None:
    mode = FakeTensorMode(shape_env=ShapeEnv())
    images = compat.new_symbol(mode, "b", 16)
    x = compat.fake_like(mode, (images, 3), torch.float32, torch.device("cpu"))
    clip = x.shape[0] // 8
    size = 48 // clip
    assert Lengths({}).size(size) == 24
    with pytest.raises(PolicyError, match="makes groups of its images, and 2 of them are none"):
        Lengths({}, strict=True).size(size)
