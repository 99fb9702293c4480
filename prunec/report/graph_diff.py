"""Two stages of one program side by side, folded by block, equal blocks collapsed.

Nothing here knows how a rewrite works: it compares two graphs by node name. What stands only in the second is
inserted, what stands in both with other arguments is changed.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.markup import escape
from torch import fx

from prunec import ops
from prunec.ir import graph
from prunec.ir.program import Planned, Program, Recognised
from prunec.policy.site_plan import Site
from prunec.structure import Anatomy


@dataclass(frozen=True)
class Change:
    """One inserted or changed node."""

    kind: str  # "inserted", "literal", "operand"
    text: str


@dataclass(frozen=True)
class Section:
    """One part of the model: the embedding, a block (or a run of equal blocks), the head."""

    name: str
    holds: str  # "attention + mlp"
    nodes: int
    tokens: tuple[int, ...]  # stream lengths through the section after the rewrite, first to last
    before: int  # stream length before the rewrite
    changes: tuple[Change, ...]
    repeats: int = 1


@dataclass(frozen=True)
class Diff:
    """All sections, and the totals."""

    title: str
    sections: tuple[Section, ...]
    inserted: int
    literals: int
    operands: int

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return dataclasses.asdict(self)


def compare(dense: Recognised, pruned: Program | None = None) -> Diff:
    """What happened from `dense` to `pruned`, or just the structure of `dense`."""
    after = pruned or dense
    sections = list(_sections(dense, after))
    changes = [change for section in sections for change in section.changes]
    kinds = Counter(change.kind for change in changes)
    return Diff(
        title=dense.anatomy.summary(),
        sections=tuple(_collapsed(sections)),
        inserted=kinds["inserted"],
        literals=kinds["literal"],
        operands=kinds["operand"],
    )


def without_changes(diff: Diff) -> Diff:
    """The structure and the lengths only."""
    sections = [dataclasses.replace(section, changes=()) for section in diff.sections]
    return dataclasses.replace(diff, sections=tuple(sections))


def lines(diff: Diff, *, colour: bool = False) -> Iterator[str]:
    """The diff as text; with rich markup when `colour` is set."""
    yield _styled(diff.title, "bold", colour)
    yield ""
    yield f"  {'section':<14} {'holds':<22} {'tokens before':>13}   tokens after"
    for section in diff.sections:
        name = section.name
        if section.repeats > 1:
            start = int(section.name.split()[1])
            name = f"blocks {start}-{start + section.repeats - 1}"
        after = " -> ".join(map(str, section.tokens))
        shorter = section.tokens and section.tokens[-1] < section.before
        yield (
            f"  {name:<14} {section.holds:<22} {section.before or '':>13}   "
            + (_styled(after, "yellow", colour) if shorter else after)
        )
        for change in section.changes:
            if change.kind == "inserted":
                yield _styled(f"    + {change.text}", "green", colour)
            else:
                yield _styled(f"    ~ {change.text}", "yellow", colour)
    yield ""
    totals = (
        f"{diff.inserted} inserted, {diff.literals} literals made symbolic, {diff.operands} tables followed"
    )
    yield f"  {totals}"


def text(diff: Diff) -> str:
    """The diff as plain text."""
    return "\n".join(line.rstrip() for line in lines(diff)) + "\n"


def _styled(line: str, style: str, colour: bool) -> str:
    return f"[{style}]{escape(line)}[/{style}]" if colour else line


# --- sections ---------------------------------------------------------------------------------


def _sections(dense: Recognised, after: Program) -> Iterator[Section]:
    anatomy = dense.anatomy
    places = _places(dense.graph, anatomy)
    old, new = graph.by_name(dense.graph), graph.by_name(after.graph)
    grouped: dict[str, list[fx.Node]] = {name: [] for name in _names(anatomy)}
    current = "head"
    for node in reversed(after.graph.nodes):  # what is inserted belongs to what follows it
        current = places.get(node.name, current)
        if node.op == "call_function" and not graph.is_size(node):
            grouped[current].insert(0, node)
    sites = {f"block {site.block}": site for site in (after.plan.sites if isinstance(after, Planned) else ())}
    length = anatomy.tokens
    for name, nodes in grouped.items():
        changes = tuple(change for node in nodes if (change := _change(node, old)) is not None)
        tokens: tuple[int, ...] = ()
        if name.startswith("block"):
            tokens, length = _lengths(length, sites.get(name))
            state = new.get(anatomy.blocks[int(name.split()[1])].branches[-1].add)
            if state is not None and (read := _rows(state, anatomy.token_dim, length)) < length:
                tokens, length = (*tokens, read), read
        elif name == "head":
            restored = any(node.target in (ops.scatter, ops.share, ops.put, ops.blend) for node in nodes)
            tokens = (length, anatomy.tokens) if restored else (length,)
        before = anatomy.tokens if tokens else 0
        yield Section(name, _holds(name, anatomy), len(nodes), tokens, before, changes)


def _names(anatomy: Anatomy) -> list[str]:
    return ["embedding", *(f"block {block.index}" for block in anatomy.blocks), "head"]


def _places(dense: fx.Graph, anatomy: Anatomy) -> dict[str, str]:
    """Which section each node of the original belongs to, by its place between the blocks' last states."""
    ends = {block.branches[-1].add: block.index for block in anatomy.blocks}
    start = anatomy.states[0]
    found: dict[str, str] = {}
    current, following = "embedding", {index: f"block {index + 1}" for index in range(anatomy.depth - 1)}
    for node in dense.nodes:
        found[node.name] = current
        if node.name == start and current == "embedding":
            current = "block 0"
        if node.name in ends:
            current = following.get(ends[node.name], "head")
    return found


def _lengths(length: int, site: Site | None) -> tuple[tuple[int, ...], int]:
    if site is None:
        return (length,), length
    if site.where == "before_block":
        return (site.leaves,), site.leaves
    return (length, site.leaves), site.leaves


def _rows(state: fx.Node, dim: int, length: int) -> int:
    """How many rows of a state are computed, where that is a constant."""
    size = graph.shape(state)[dim]
    return size if isinstance(size, int) else length


def _holds(name: str, anatomy: Anatomy) -> str:
    if not name.startswith("block"):
        return " and ".join(anatomy.head) if name == "head" else ""
    block = anatomy.blocks[int(name.split()[1])]
    return " + ".join(branch.kind for branch in block.branches)


def _change(node: fx.Node, old: dict[str, fx.Node]) -> Change | None:
    """What is new about a node; None when nothing is."""
    before = old.get(node.name)
    if before is None:
        is_ours = ops.is_ours(node.target)
        return Change("inserted", _call(node)) if is_ours else None
    if node.target is not before.target and ops.is_ours(node.target):
        return Change("operand", f"{graph.op(before)} -> {_call(node).partition(' = ')[2]}")
    if _plain(before.args) != _plain(node.args):
        taken = [source.name for source in node.all_input_nodes if source.target is ops.take]
        if taken:
            return Change("operand", f"{graph.op(node)} reads {', '.join(taken)}")
        if any(graph.is_size(source) for source in node.all_input_nodes) and graph.is_tensor(node):
            return Change("literal", f"{graph.op(node)} {_sizes(before)} -> {_sizes(node)}")
    return None


def _plain(args: Any) -> str:
    return str(fx.map_arg(args, lambda node: node.name))


def _sizes(node: fx.Node) -> str:
    """The size arguments of a call: B for the batch, n for the tokens that are left."""
    sizes = next((arg for arg in node.args if isinstance(arg, list | tuple)), node.args[1:])
    return "[" + ", ".join(_size(size) for size in sizes) + "]"


#: What the length of a value of ours counts: tokens that are left of each image, or of all images together.
_COUNTS: dict[Any, str] = {**dict.fromkeys(ops.SELECTIONS, "n"), ops.rows_of: "S", ops.fixed_rows_of: "S"}


def _size(size: Any) -> str:
    if not isinstance(size, fx.Node):
        return str(size)
    if graph.op(size) == "sym_size":
        return _COUNTS.get(graph.operand(size, 0).target, "B")
    sign = {"add": " + ", "mul": " * ", "pow": " ** "}.get(graph.op(size))
    parts = sorted(size.args, key=lambda part: isinstance(part, int))
    return sign.join(_size(part) for part in parts).replace("+ -", "- ") if sign else size.name


def _call(node: fx.Node) -> str:
    arguments: list[str] = []
    for argument in node.args:
        scorer, _, parameter = _parameter(argument).partition(".gate.")
        name = f"{scorer}.gate" if parameter else scorer or str(argument)
        if argument is not None and not (parameter and name in arguments):  # a scorer's parameters as one
            arguments.append(name)
    return f"{node.name} = {graph.op(node)}({', '.join(arguments)})"


def _parameter(argument: Any) -> str:
    """The path of a parameter that is an operand, empty for any other argument."""
    is_parameter = isinstance(argument, fx.Node) and argument.op == "get_attr"
    return str(argument.target) if is_parameter else ""


def _collapsed(sections: list[Section]) -> Iterator[Section]:
    """Runs of equal blocks as one section that says how often it stands."""
    for _, run in itertools.groupby(sections, key=_signature):
        members = list(run)
        yield dataclasses.replace(members[0], repeats=len(members))


def _signature(section: Section) -> Any:
    """What makes two blocks look the same; the names of their nodes do not."""
    changes = [(change.kind, "" if change.kind == "operand" else change.text) for change in section.changes]
    is_block = section.name.startswith("block")
    return (is_block or section.name, section.holds, section.nodes, section.tokens, section.before, changes)
