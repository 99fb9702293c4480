"""Calls that ask for more tokens than are left of them: x.topk(15, dim=1) of a stream of 10.

A call has a type for any token count. Whether it runs at the counts of a plan is found by running it: on
random numbers, where one of its own numbers is larger than the count and the whole stream is not too short.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import sympy
from torch import fx

from prunec import compat
from prunec.errors import PolicyError
from prunec.ir.calls import signature
from prunec.ir.graph import is_tensor, op, place
from prunec.ir.sizes import at, sizes_of
from prunec.probing.lengths import Lengths
from prunec.probing.probe import Probe
from prunec.probing.questions import runs


def check_enough(graph: fx.Graph, left: Mapping[sympy.Symbol, int], tokens: int) -> None:
    """Refuse calls that run on `tokens` tokens and not on as many as are left."""
    seen = set()
    for node in graph.nodes:
        asked = max(_asked(node, left, tokens), default=None) if compat.is_aten(node.target) else None
        if asked is None:
            continue
        key = (node.target, signature(node.args), signature(node.kwargs))
        if key not in seen and _runs(node, dict.fromkeys(left, tokens)) and not _runs(node, left):
            raise PolicyError(
                f"the model's own code asks for {asked[0]} tokens ({op(node)}), and {asked[1]} are left",
                where=place(node),
                remedy=f"keep at least {asked[0]}: a higher keep, or fewer sites before it",
            )
        seen.add(key)


def _asked(node: fx.Node, left: Mapping[sympy.Symbol, int], tokens: int) -> Iterator[tuple[int, int]]:
    """Numbers of a call that are larger than a token count of its operands, each with the count."""
    operands = [source for source in node.all_input_nodes if is_tensor(source)]
    symbols = {
        symbol for source in operands for size in sizes_of(source.meta["val"]) for symbol in size.free_symbols
    }
    for symbol in symbols & set(left):
        for where in compat.whole_numbers(node.target, node.args):
            number = at(node.args, where)
            if isinstance(number, int) and left[symbol] < number <= tokens:
                yield number, left[symbol]


def _runs(node: fx.Node, counts: Mapping[sympy.Symbol, int]) -> bool:
    return bool(runs(Probe(node, Lengths(counts))))
