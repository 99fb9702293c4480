"""Tell patch tokens from protected ones, and find where the stream is read.

Protected are rows that do not come from pixels (found by running the embedding on two images and comparing)
and rows that anything downstream reads by constant position (found by making the token axis a symbol and
following it through the graph).

    two images --embedding--> s0, s0'    rows that are equal in both: class token, registers, queries
    s0[b, n, c] ------------> every reader of rows 0, 5:, -100: ... and every place where the axis ends
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx

from prunec import graph, ops
from prunec.compat import fake_mode_of, hint
from prunec.errors import RecognitionError
from prunec.rows import RowRead
from prunec.spaces import Repairs, TokenAxis

#: A constant read of more rows than this share of the stream reads the grid, not protected tokens.
_LARGEST_PROTECTED_SHARE = 0.5


@dataclass(frozen=True)
class Tokens:
    """The token axis of a stream, as far as it can be told from the graph."""

    tokens: int
    prefix: int
    suffix: int
    token_dim: int
    class_token: int | None
    head: tuple[str, ...]
    taps: tuple[str, ...]
    axes: Mapping[str, tuple[int, ...]]  # node -> its token axes


def find_tokens(module: fx.GraphModule, states: tuple[str, ...], trunk: set[str], pixels: fx.Node) -> Tokens:
    """Length, protected ends, readers of the stream whose states are `states` (first to last)."""
    names = graph.by_name(module.graph)
    first = names[states[0]]
    token_dim = _token_dim(first)
    length = graph.shape(first)[token_dim]
    assert isinstance(length, int)
    pixel_free = _pixel_free_rows(module, first, pixels, token_dim)
    prefix, suffix = _ends(pixel_free, length)
    repairs = _probe(module, states, length, token_dim)
    reads = [read for read in repairs.reads if _is_protected_read(read, prefix, suffix, length)]
    prefix = max([prefix, *(read.front for read in reads)])
    suffix = max([suffix, *(read.back for read in reads)])
    head_reads = [read for read in reads if read.node not in trunk]
    return Tokens(
        tokens=length,
        prefix=prefix,
        suffix=suffix,
        token_dim=token_dim,
        class_token=_class_token(head_reads, prefix),
        head=_head(module, states, repairs, head_reads, prefix, length - suffix),
        taps=_taps(names, states, trunk, repairs),
        axes=repairs.axes,
    )


def _token_dim(state: fx.Node) -> int:
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


def _pixel_free_rows(module: fx.GraphModule, first: fx.Node, pixels: fx.Node, token_dim: int) -> list[bool]:
    """For each row of the first state, whether it is the same for two different images."""
    embedding = _until(module, first)
    results = []
    for seed in (0, 1):
        generator = torch.Generator().manual_seed(seed)
        inputs = [_example(node, generator if node is pixels else None) for node in module.graph.nodes
                  if node.op == "placeholder"]  # fmt: skip
        with torch.no_grad():
            results.append(embedding(*inputs))
    same = (results[0] == results[1]).movedim(token_dim, -1).flatten(0, -2).all(dim=0)
    return [bool(row) for row in same]


def _example(node: fx.Node, generator: torch.Generator | None) -> object:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return value
    sizes = [hint(size) for size in value.shape]
    device = value.device
    if generator is not None:
        return torch.rand(sizes, generator=generator, dtype=torch.float32).to(device, value.dtype)
    return torch.zeros(sizes, dtype=value.dtype, device=device)


def _until(module: fx.GraphModule, last: fx.Node) -> fx.GraphModule:
    """The part of the graph that makes one value."""
    part = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        mapping[node] = part.node_copy(node, lambda source: mapping[source])
        if node is last:
            break
    for node in module.graph.nodes:  # inputs that come later keep their place in the call
        if node.op == "placeholder" and node not in mapping:
            part.node_copy(node)
    part.output(mapping[last])
    part.eliminate_dead_code()
    return fx.GraphModule(module, part)


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


def _probe(module: fx.GraphModule, states: tuple[str, ...], length: int, token_dim: int) -> Repairs:
    """Make the token axis of the first state a symbol and follow it through the graph."""
    copy = graph.copy(module)
    first = graph.by_name(copy.graph)[states[0]]
    users = list(first.users)
    mode = fake_mode_of(copy.graph)
    with copy.graph.inserting_after(first):
        score = copy.graph.call_function(ops.token_norm, (first, token_dim))
    with copy.graph.inserting_after(score):
        selection = copy.graph.call_function(ops.select, (score, length, 0, 0))
    with copy.graph.inserting_after(selection):
        gathered = copy.graph.call_function(ops.gather, (first, selection, token_dim))
    for user in users:
        user.replace_input_with(first, gathered)
    value = first.meta["val"]
    with mode:
        score.meta["val"] = value.movedim(token_dim, 1)[..., 0]
        selection.meta["val"] = score.meta["val"].to(torch.int64)
    gathered.meta["val"] = value
    axis = TokenAxis(copy, tokens=length, prefix=0, suffix=0, token_dim=token_dim, states=states, probe=True)
    return axis.run()[1]


def _is_protected_read(read: RowRead, prefix: int, suffix: int, length: int) -> bool:
    """A read of a few rows at the ends protects them; one that reaches into the middle reads the grid."""
    return read.front + read.back <= max(prefix + suffix, length * _LARGEST_PROTECTED_SHARE, 1)


def _class_token(reads: list[RowRead], prefix: int) -> int | None:
    """The first single row that a head reads."""
    single = [read.rows[0] for read in reads if len(read.rows) == 1 and read.rows[0] < prefix]
    return min(single, default=None)


def _head(
    module: fx.GraphModule,
    states: tuple[str, ...],
    repairs: Repairs,
    reads: list[RowRead],
    prefix: int,
    patches_end: int,
) -> tuple[str, ...]:
    """How the axis ends after the last state, in words."""
    names = graph.by_name(module.graph)
    rows = {read.node: read.rows for read in reads}
    found: list[str] = []
    for node in sorted(graph.reachable([names[states[-1]]]), key=list(module.graph.nodes).index):
        if not any(repairs.axes.get(source.name) for source in node.all_input_nodes):
            continue
        if node.op == "output":
            found.append("tokens")
        elif node.name not in repairs.axes:
            found.append("grid")
        elif node.name in rows:
            picked = rows[node.name]
            if len(picked) == 1:
                found.append("class token" if picked[0] == 0 else f"token {picked[0]}")
            elif picked[-1] < prefix or picked[0] >= patches_end:
                found.append(f"tokens {picked[0]}..{picked[-1]}")
        elif graph.op(node) in ("mean", "sum", "amax", "adaptive_avg_pool1d"):
            found.append("mean" if graph.op(node) != "amax" else "max")
        elif (
            graph.op(node) in ("scaled_dot_product_attention", "matmul", "bmm")
            and not repairs.axes[node.name]
        ):
            found.append("attention pooling")  # the last product of an attention with queries of its own
    return tuple(dict.fromkeys(found))


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
