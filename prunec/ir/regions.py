"""Cut a program behind its blocks and around its sites, so that what is alike is compiled once.

    images -- stem -- block -- block -- half a block -- site -- other half -- block -- head -- outputs
              region  region   region   region         region   region       `--- region ---'

Two regions with the same operators are the same code, and where only lengths of their inputs differ, the code
takes any. For that, weights are inputs, and a size that an input has is read off it, though the program has a
number.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from prunec import compat, ops
from prunec.ir import graph
from prunec.ir.program import Program, Recognised
from prunec.ir.sizes import at, with_sizes
from prunec.ir.weights import value_at
from prunec.ops import selections

Shape = tuple[int | None, ...]  # None: any length
FEW = 2  # so many operators are as fast one by one


@dataclass(frozen=True, eq=False)
class Region:
    """A stretch of a program: a graph of its own, and what of the program it reads and yields."""

    module: fx.GraphModule  # on `inputs`, then `weights`; yields `outputs`
    inputs: tuple[str, ...]  # values of the program
    weights: tuple[str, ...]  # paths of parameters and buffers
    outputs: tuple[str, ...]
    shapes: tuple[Shape, ...]  # of the inputs
    signature: str  # of its operators and its weights' shapes: those that have the same are the same code
    as_is: bool  # whether compiling it gains nothing: it chooses tokens, or is an operator or two


def regions_of(program: Program) -> list[Region]:
    """The program's regions, in the order that they run in; one where nothing is known of its blocks."""
    blocks = program.anatomy.blocks if isinstance(program, Recognised) else ()
    ends = {block.branches[-1].add for block in blocks[:-1]}
    parts = _parts(program.graph, ends | {block.branches[0].state for block in blocks[:1]})
    home = {node: number for number, (_, part) in enumerate(parts) for node in part}
    read_later = {
        source
        for node in program.graph.nodes
        for source in _tensors_read(node)
        if home.get(source) != home.get(node)
    }
    return [_region(program, part, read_later, as_is=chooses or len(part) <= FEW) for chooses, part in parts]


def shared_shapes(regions: Iterable[Region]) -> dict[str, tuple[Shape, ...]]:
    """For each signature the shapes of its inputs, with None for every length in which its regions differ."""
    found: dict[str, tuple[Shape, ...]] = {}
    for region in regions:
        known = found.setdefault(region.signature, region.shapes)
        found[region.signature] = tuple(map(_shared, known, region.shapes))
    return found


def _shared(one: Shape, other: Shape) -> Shape:
    return tuple(mine if mine == its else None for mine, its in zip(one, other, strict=True))


def _parts(of: fx.Graph, last: Collection[str]) -> list[tuple[bool, list[fx.Node]]]:
    """The graph's calls in order, cut behind nodes of these names and around what chooses tokens (True)."""
    calls = [node for node in of.nodes if node.op == "call_function" and not graph.is_size(node)]
    parts: list[tuple[bool, list[fx.Node]]] = []
    for chooses, run in _runs(calls):
        parts.append((chooses, []))
        for node in run:
            parts[-1][1].append(node)
            if node.name in last:
                parts.append((chooses, []))
    return [part for part in parts if part[1]]


def _runs(calls: Sequence[fx.Node]) -> Iterator[tuple[bool, list[fx.Node]]]:
    """Stretches of calls; True for those of the dialect's operations that have a selection among them."""
    rest: list[fx.Node] = []
    for of_dialect, group in itertools.groupby(calls, _is_of_dialect):
        run = list(group)
        if of_dialect and any(_made_in(node) == selections.__name__ for node in run):
            yield from [(False, rest)] if rest else []
            yield True, run
            rest = []
        else:
            rest += run
    yield from [(False, rest)] if rest else []


def _is_of_dialect(node: fx.Node) -> bool:
    """Whether it is one of prunec's operations, other than attention."""
    own = _made_in(node).startswith(ops.__name__) and node.target is not ops.attend
    return own or graph.is_getitem(node)


def _made_in(node: fx.Node) -> str:
    return str(getattr(node.target, "__module__", ""))


def _tensors_read(node: fx.Node) -> Iterator[fx.Node]:
    """The tensors that a node reads, those too of which it only reads a size."""
    for source in node.all_input_nodes:
        if graph.is_size(source):
            yield from _tensors_read(source)
        else:
            yield source


def _region(
    program: Program, part: Sequence[fx.Node], read_later: Collection[fx.Node], *, as_is: bool
) -> Region:
    inside = set(part)
    read = dict.fromkeys(source for node in part for source in node.all_input_nodes if source not in inside)
    weights = [node for node in read if node.op == "get_attr"]
    inputs = [node for node in read if node.op != "get_attr" and not graph.is_size(node)]
    lengths = _lengths(inputs)
    unknown = [node for node in read if graph.is_size(node) and _length(node) not in lengths]
    inputs += dict.fromkeys(
        source for node in unknown for source in _tensors_read(node) if source not in {*inside, *inputs}
    )
    made = fx.Graph()
    known = {node: made.placeholder(node.name) for node in (*inputs, *weights)}
    sizes = {
        length: made.call_function(torch.ops.aten.sym_size.int, (known[node], axis))
        for length, (node, axis) in lengths.items()
    }

    def copied(source: fx.Node) -> fx.Node:
        if source not in known:
            known[source] = sizes.get(_length(source)) or made.node_copy(source, copied)
        return known[source]

    for node in part:
        literals = {
            where: sizes[str(at(node.args, where))]
            for where in compat.symbolic_positions(node.target, node.args)
            if str(at(node.args, where)) in sizes
        }
        known[node] = made.node_copy(node, copied)
        known[node].args = with_sizes(known[node].args, literals)
    outputs = [node for node in part if node in read_later]
    made.output(tuple(known[node] for node in outputs))
    made.eliminate_dead_code()  # sizes that are not read
    module = fx.GraphModule(nn.Module(), made)
    tensors = [value_at(program.module, str(node.target)) for node in weights]
    return Region(
        module,
        tuple(node.name for node in inputs),
        tuple(str(node.target) for node in weights),
        tuple(node.name for node in outputs),
        tuple(map(_shape, inputs)),
        _signature(module, inputs, tensors),
        as_is,
    )


def _lengths(inputs: Iterable[fx.Node]) -> dict[str, tuple[fx.Node, int]]:
    """Every length that an input has, and where; not of its last dimension, the channels."""
    found: dict[str, tuple[fx.Node, int]] = {}
    for node in inputs:
        for axis, length in enumerate(graph.shape(node)[:-1] if graph.is_tensor(node) else ()):
            if not isinstance(length, int) or length > 1:  # compilers treat one in another way
                found.setdefault(str(length), (node, axis))
    return found


def _length(size: fx.Node) -> str:
    return str(size.meta.get("val"))


def _shape(node: fx.Node) -> Shape:
    """The recorded shape of an input, None for a symbol."""
    sizes = graph.shape(node) if graph.is_tensor(node) else ()
    return tuple(size if isinstance(size, int) else None for size in sizes)


def _signature(module: fx.GraphModule, inputs: Sequence[fx.Node], weights: Sequence[Tensor]) -> str:
    """Operators with what they read and their constants, in order, and what kinds of tensors come in."""
    places = {node: place for place, node in enumerate(module.graph.nodes)}
    words = [f"{len(_shape(node))} {getattr(node.meta.get('val'), 'dtype', None)}" for node in inputs]
    words += [f"{tuple(weight.shape)} {weight.dtype}" for weight in weights]
    for node in module.graph.nodes:
        if node.op != "placeholder":
            read = fx.map_arg((node.args, node.kwargs), lambda source: f"%{places[source]}")
            # functions may share names
            target = node.target if compat.is_aten(node.target) or node.op == "output" else id(node.target)
            words.append(f"{target} {read}")
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]
