from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from prunec.probing.lengths import Lengths
from prunec.probing.probe import Probe
from prunec.structure import NoMatch
from tests.probing.operators import last

X = torch.randn(2, 7, 12)


def test_operands_are_drawn_once_and_the_same_for_a_seed() -> None:
    node = last(lambda m, x: F.linear(x, m.weight, m.bias), X)
    one, same, other = (Probe(node, Lengths({}), seed) for seed in (0, 0, 1))
    assert [tuple(value.shape) for value in one.operands.values()] == [(2, 7, 12), (30, 12), (30,)]
    for source, value in one.operands.items():
        assert one.operand(source) is value
        assert torch.equal(value, same.operand(source))
        assert not torch.equal(value, other.operand(source))


def test_it_is_run_on_what_is_given_and_on_what_is_drawn_for_the_rest() -> None:
    node = last(lambda m, x: F.linear(x, m.weight, m.bias), X)
    probe = Probe(node, Lengths({}))
    x, weight, bias = probe.operands.values()
    torch.testing.assert_close(probe.result, F.linear(x, weight, bias))
    zeros = torch.zeros_like(weight)
    found = probe.run({node.all_input_nodes[1]: zeros})
    torch.testing.assert_close(found, bias.expand(2, 7, 30))


def test_random_numbers_in_a_call_repeat_themselves() -> None:
    node = last(lambda _, x: torch.rand_like(x), X)
    probe = Probe(node, Lengths({}))
    assert torch.equal(probe.run({}), probe.run({}))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_every_precision_is_judged_in_single(kind: torch.dtype) -> None:
    node = last(lambda _, x: x.exp(), X.to(kind))
    assert Probe(node, Lengths({})).result.dtype == torch.float32


def test_what_does_not_run_is_unknown_with_its_reason() -> None:
    node = last(lambda _, x: x.exp(), X)
    probe = Probe(node, Lengths({}))
    assert probe.answer(lambda: True) is True

    def fails() -> bool:
        raise RuntimeError("sizes do not fit")

    found = probe.answer(fails)
    assert isinstance(found, NoMatch)
    assert not found
    assert "sizes do not fit" in found.reason
    assert "exp" in found.reason

    def mistake() -> bool:
        raise NameError("a mistake of prunec's own")

    with pytest.raises(NameError):
        probe.answer(mistake)
