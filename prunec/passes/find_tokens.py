"""Tell patch tokens from protected ones, and find where the stream is read.

Protected are rows that do not come from pixels (found by running the embedding on two images and comparing)
and rows that anything downstream reads by constant position (found by making the token axis a symbol and
following it through the graph).

    two images --embedding--> s0, s0'    rows that are equal in both: class token, registers, queries
    s0[b, n, c] ------------> every reader of rows 0, 5:, -100: ... and every place where the axis ends

Of a few rows that are read together, norm(x[:, :5])[:, 0], those count that anybody reads in the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx

from prunec import ops
from prunec.compat import fake_mode_of
from prunec.errors import RecognitionError, first_few
from prunec.ir import graph
from prunec.passes.liveness import Needs
from prunec.probing.boxes import Box, Span
from prunec.probing.lengths import Lengths
from prunec.probing.numbers import changed_rows
from prunec.probing.reads import Reader
from prunec.probing.replay import Replay, example_inputs
from prunec.probing.rows import RowRead
from prunec.token_axis.repairs import Repairs
from prunec.token_axis.selected import Stream
from prunec.token_axis.spaces import TokenAxis

#: A constant read of more rows than this share of the stream reads the grid, not protected tokens.
_LARGEST_PROTECTED_SHARE = 0.5
#: How a head puts tokens together, in words; any other operator in which the token axis ends is named itself.
_SUMMARIES = {
    "mean": "mean",
    "sum": "mean",
    "adaptive_avg_pool1d": "mean",
    "amax": "max",
    "scaled_dot_product_attention": "attention pooling",
    "matmul": "attention pooling",
    "bmm": "attention pooling",
}


@dataclass(frozen=True)
class Tokens:
    """The token axis of a stream, as far as the graph shows it."""

    tokens: int
    prefix: int
    suffix: int
    token_dim: int
    learned: int  # rows in front that do not come from pixels
    class_token: int | None
    head: tuple[str, ...]
    taps: tuple[str, ...]
    axes: Mapping[str, tuple[int, ...]]  # node -> its token axes
    notes: tuple[str, ...] = ()


def find_tokens(module: fx.GraphModule, states: tuple[str, ...], trunk: set[str], pixels: fx.Node) -> Tokens:
    """Length, protected ends, readers of the stream whose states are `states` (first to last)."""
    names = graph.by_name(module.graph)
    first = names[states[0]]
    dim = token_dim(first)
    length = graph.shape(first)[dim]
    assert isinstance(length, int)
    pixel_free = _pixel_free_rows(module, first, pixels, dim)
    learned, suffix = _ends(pixel_free, length)
    between = _between(pixel_free, learned, suffix)
    repairs = _probe(module, states, length, dim)
    reads = [
        read
        for read in repairs.reads
        if _is_protected_read(read, learned, suffix, length) or _picks_only(read, between)
    ]
    prefix = max([learned, *(read.front for read in reads)])
    suffix = max([suffix, *(read.back for read in reads)])
    head_reads = [
        wanted for read in reads if read.node not in trunk for wanted in _wanted(read, names, repairs)
    ]
    return Tokens(
        tokens=length,
        prefix=prefix,
        suffix=suffix,
        token_dim=dim,
        learned=learned,
        class_token=_class_token(head_reads, prefix),
        head=_head(module, states, repairs, head_reads),
        taps=_taps(names, states, trunk, repairs),
        axes=repairs.axes,
        notes=tuple(_notes(between, prefix, length - suffix, reads, names)),
    )


def token_dim(state: fx.Node) -> int:
    """The dimension of [B, T, C] or [T, B, C] that counts tokens."""
    sizes = graph.shape(state)
    symbolic = [dim for dim, size in enumerate(sizes) if isinstance(size, torch.SymInt)]
    if len(sizes) != 3 or len(symbolic) > 1:
        kind = "feature maps whose blocks are convolutions, " if len(sizes) == 4 else ""
        raise RecognitionError(
            f"the residual stream is not [batch, tokens, channels] but {kind}{list(sizes)}",
            where=graph.place(state),
            remedy="prunec prunes streams of tokens ([B, N, C], [N, B, C], or [B, H, W, C])",
        )
    return 0 if symbolic == [1] else 1


def _pixel_free_rows(module: fx.GraphModule, first: fx.Node, pixels: fx.Node, dim: int) -> list[bool]:
    """For each row of the first state, whether it is the same for two different images."""
    once, again = (Replay(module).value(first, example_inputs(module, pixels, seed)) for seed in (0, 1))
    (differs,) = changed_rows(once, again, dim)
    return [not row for row in differs.tolist()]


def _ends(pixel_free: list[bool], length: int) -> tuple[int, int]:
    """How many rows in front and at the end do not come from pixels."""
    front = next((row for row, free in enumerate(pixel_free) if not free), length)
    back = next((row for row, free in enumerate(reversed(pixel_free)) if not free), length)
    if front == length:
        raise RecognitionError(
            "the first state of the residual stream does not depend on the image",
            remedy="check the example input",
        )
    return front, back


def _between(pixel_free: list[bool], front: int, back: int) -> frozenset[int]:
    """Rows that do not come from pixels, and have patches in front of them and behind them."""
    inside = range(front, len(pixel_free) - back)
    return frozenset(row for row in inside if pixel_free[row])


def _probe(module: fx.GraphModule, states: tuple[str, ...], length: int, dim: int) -> Repairs:
    """Make the token axis of the first state a symbol and follow it through the graph."""
    copy = graph.copy(module)
    first = graph.by_name(copy.graph)[states[0]]
    users = list(first.users)
    mode = fake_mode_of(copy.graph)
    with copy.graph.inserting_after(first):
        score = copy.graph.call_function(ops.token_norm, (first, dim))
    with copy.graph.inserting_after(score):
        selection = copy.graph.call_function(ops.select, (score, length, 0, 0))
    with copy.graph.inserting_after(selection):
        gathered = copy.graph.call_function(ops.gather, (first, selection, dim))
    for user in users:
        user.replace_input_with(first, gathered)
    value = first.meta["val"]
    with mode:
        score.meta["val"] = value.movedim(dim, 1)[..., 0]
        selection.meta["val"] = score.meta["val"].to(torch.int64)
    gathered.meta["val"] = value
    axis = TokenAxis(copy, Stream(length, 0, 0, dim, states), probe=True)
    return axis.run()[1]


def _is_protected_read(read: RowRead, prefix: int, suffix: int, length: int) -> bool:
    """A read of a few rows at the ends protects them; one that reaches into the middle reads the grid."""
    return read.front + read.back <= max(prefix + suffix, length * _LARGEST_PROTECTED_SHARE, 1)


def _picks_only(read: RowRead, rows: frozenset[int]) -> bool:
    """Whether it takes nothing but some of these rows, all on one side of the middle.

    They are protected with all that stands in front of them, or behind them.
    """
    return rows.issuperset(read.rows) and not (read.front and read.back)


def _wanted(read: RowRead, names: Mapping[str, fx.Node], repairs: Repairs) -> Iterator[RowRead]:
    """A read of several rows as one or more of those that anybody reads in the end."""
    node = names[read.node]
    axes = next((axes for source in node.all_input_nodes if (axes := repairs.axes.get(source.name))), None)
    if axes is None:  # rows of something that was made of the stream, and has no token axis of its own
        yield read
        return
    sizes = graph.shape(node) if graph.is_tensor(node) else ()
    axis = axes[0]
    if len(read.rows) == 1 or repairs.axes[read.node] or sizes[axis : axis + 1] != (len(read.rows),):
        yield read
        return
    found = set()
    for box in _boxes_asked(node):
        rows = dict(box).get(axis)
        start, stop = rows.at(len(read.rows)) if isinstance(rows, Span) else (0, len(read.rows))
        found.add(read.rows[start:stop])
    yield from (replace(read, rows=rows) for rows in sorted(found))


class _Apart(Needs):
    """What is asked for, box by box, also where computing each apart would not pay."""

    def _boxes(self, node: fx.Node) -> list[Box]:
        boxes = list(dict.fromkeys(self.asked[node])) if node in self.asked else []
        self.reads.update({(node, box): self._read(node, box) for box in boxes})
        return boxes


def _boxes_asked(first: fx.Node) -> list[Box]:
    """What all that follows reads of a value."""
    behind = graph.reachable([first]) - {first}
    part, made = fx.Graph(), dict[fx.Node, fx.Node]()

    def given(source: fx.Node) -> fx.Node:
        if source not in made:
            made[source] = part.placeholder(source.name)
            made[source].meta = dict(source.meta)
        return made[source]

    for node in (node for node in first.graph.nodes if node in behind):
        for source in node.all_input_nodes:
            given(source)
        made[node] = part.node_copy(node, given)
    return _Apart(part, Reader([Lengths({})]), set()).asked[made[first]]


def _notes(
    between: frozenset[int], prefix: int, end: int, reads: list[RowRead], names: Mapping[str, fx.Node]
) -> Iterator[str]:
    """What becomes of rows that are no patches and stand between them."""
    free = [row for row in sorted(between) if prefix <= row < end]
    if free:
        yield (
            f"rows {_listed(free)} of the stream come from no pixel, stand between patches and are pruned as "
            "these are: put them in front of all patches, or behind them"
        )
    for read in (read for read in reads if _picks_only(read, between)):
        side = f"{read.front - 1} in front of" if read.front else f"{read.back - 1} behind"
        yield (
            f"row {_listed(read.rows)} of the stream is read by itself and stands between patches, so all "
            f"{side} it stay too: put it in front of all patches ({graph.place(names[read.node])})"
        )


def _listed(rows: Sequence[int]) -> str:
    return first_few([str(row) for row in rows])


def _class_token(reads: list[RowRead], prefix: int) -> int | None:
    """The first single row that a head reads."""
    single = [read.rows[0] for read in reads if len(read.rows) == 1 and read.rows[0] < prefix]
    return min(single, default=None)


def _head(
    module: fx.GraphModule,
    states: tuple[str, ...],
    repairs: Repairs,
    reads: list[RowRead],
) -> tuple[str, ...]:
    """How the axis ends after the last state, in words."""
    names = graph.by_name(module.graph)
    picked = [(read.node, read.rows) for read in reads]
    found: list[str] = []
    for node in sorted(graph.reachable([names[states[-1]]]), key=list(module.graph.nodes).index):
        if not any(repairs.axes.get(source.name) for source in graph.data_inputs(node)):
            continue
        if node.op == "output":
            found.append("tokens")
        elif node.name not in repairs.axes:
            found.append("grid")
        elif repairs.axes[node.name]:
            continue
        elif picks := [rows for name, rows in picked if name == node.name]:
            found += map(_named, picks)
        else:
            by_place = any(read.node == node.name for read in repairs.reads)  # and none that are protected
            found.append("grid" if by_place else _SUMMARIES.get(graph.op(node), graph.op(node)))
    return tuple(dict.fromkeys(found))


def _named(rows: tuple[int, ...]) -> str:
    """Protected rows that are read by position, in words."""
    if len(rows) > 1:
        return f"tokens {rows[0]}..{rows[-1]}"
    return "class token" if rows[0] == 0 else f"token {rows[0]}"


def _taps(
    names: dict[str, fx.Node], states: tuple[str, ...], trunk: set[str], repairs: Repairs
) -> tuple[str, ...]:
    """States before the last that something outside the blocks reads."""
    inside = trunk | set(states)
    tapped = []
    for state in states[:-1]:
        outside = [
            user for user in names[state].users if user.name not in inside and user.op != "placeholder"
        ]
        if any(not _leads_to_state(user, states) for user in outside):
            tapped.append(state)
    return tuple(tapped)


def _leads_to_state(node: fx.Node, states: tuple[str, ...]) -> bool:
    """Whether a node stands between two states of the stream (a norm after the add)."""
    for _ in range(8):
        if node.name in states:
            return True
        if len(node.users) != 1:
            return False
        node = next(iter(node.users))
    return False
