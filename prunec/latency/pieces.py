"""Cut a program at its token stream, so that what lies between two states can be run and timed by itself.

    pixels --> embedding --> s0 --> block 0 --> s1 --> ... --> s(L-1) --> last block, head --> outputs
               `---- piece ----'              `----- piece -----'       `-------- piece --------'

A piece holds what both follows from its start and leads to its end. Whatever else that reads (a table of
positions, which rows count) becomes one of its inputs, and sizes are read off them: the piece runs at every
stream length. Its inputs are recorded from a run of the whole program.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from prunec import compat
from prunec.ir import graph
from prunec.ir.program import Program
from prunec.ir.weights import value_at


@dataclass(frozen=True, eq=False)
class Piece:
    """A part of a program, and which of the program's values it reads."""

    module: fx.GraphModule
    inputs: tuple[str, ...]  # names of the program's nodes
    signature: str  # of its operators and weights' shapes: pieces that are alike take the same time

    def program(self, of: Program, example: Sequence[Any]) -> Program:
        """The piece as a program of its own, for a target to lower: flat inputs, nothing known of it."""
        interface = dataclasses.replace(of.interface, example=tuple(example), batch=None)
        return Program(self.module, interface)


def cut(program: Program, starts: Iterable[str], ends: Iterable[str]) -> Piece:
    """What lies between some values of a program and others.

    Args:
        program: what to cut; it is not changed, and its parameters are shared.
        starts: names of nodes that the piece begins behind.
        ends: names of nodes that it yields.
    """
    names = graph.by_name(program.graph)
    first, last = ([names[name] for name in some] for some in (starts, ends))
    inside = _with_sizes(_following(first) & _leading(last, first))
    read = {source for node in inside for source in node.all_input_nodes} - inside
    inputs = [node for node in program.graph.nodes if node in read and node.op != "get_attr"]
    made, known = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in inputs:
        known[node] = made.placeholder(node.name)
    for node in program.graph.nodes:
        if node in inside or (node in read and node.op == "get_attr"):
            known[node] = made.node_copy(node, lambda source: known[source])
    made.output(tuple(known[node] for node in last))
    module = fx.GraphModule(program.module, made)
    return Piece(module, tuple(node.name for node in inputs), signature(module))


def _following(starts: Iterable[fx.Node]) -> set[fx.Node]:
    """All that some nodes' values lead to, the nodes included."""
    found = set(starts)
    queue = list(found)
    while queue:
        new = set(queue.pop().users) - found
        found |= new
        queue += new
    return found


def _leading(ends: Iterable[fx.Node], starts: Iterable[fx.Node]) -> set[fx.Node]:
    """All that some nodes are made from behind others, the nodes included and those others not."""
    found, stop = set(ends), set(starts)
    queue = list(found)
    while queue:
        new = set(queue.pop().all_input_nodes) - found - stop
        found |= new
        queue += new
    return found


def _with_sizes(inside: set[fx.Node]) -> set[fx.Node]:
    """With the sizes that it reads: read off a tensor they are symbols to a compiler, as inputs constants."""
    queue = list(inside)
    while queue:
        sizes = {
            source
            for source in queue.pop().all_input_nodes
            if source.op == "call_function" and graph.is_size(source)
        }
        queue += sizes - inside
        inside |= sizes
    return inside


def signature(module: fx.GraphModule) -> str:
    """Operators with what they read and their constants, and shapes of weights, in order."""
    words, places = [], {node: place for place, node in enumerate(module.graph.nodes)}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            words.append(str(tuple(value_at(module, str(node.target)).shape)))
        elif node.op == "call_function":
            leaves = compat.tree_leaves((node.args, node.kwargs))
            read = [f"%{places[leaf]}" if isinstance(leaf, fx.Node) else leaf for leaf in leaves]
            words.append(f"{graph.op(node)}{read}")
    return hashlib.sha256(" ".join(words).encode()).hexdigest()[:16]
