"""Find the token stream, its blocks and its protected tokens, by structure alone.

    s0 --norm--qkv--attention--proj--(+)-- s1 --norm--fc--gelu--fc--(+)-- s2 -- ...
     '-------------------------------'  '---------------------------'
    a residual add whose state dominates its branch; the branch is classified by what it holds

A residual add is one whose immediate dominator (on the data-flow graph rooted at the pixels, without size and
metadata edges) is one of its operands, or whose other operand is a residual add from the same state (parallel
branches). Its branch is an attention where it holds a softmax between two products of data (or the fused
call), an MLP where it goes linear, activation, linear. Then the stream's token axis is made a symbol and
followed through the whole graph, which shows the heads, the taps and the rows that are read by position.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from prunec.dataflow.branches import blocks_of, branch_of, end_of_the_last, without_long_skips
from prunec.dataflow.cores import cores_in, find_cores, scores_of, size_along, work
from prunec.dataflow.flow import DataFlow, Link, chains, residual_adds
from prunec.dataflow.streams import holds_image_tokens, left_alone
from prunec.errors import RecognitionError
from prunec.ir import graph
from prunec.ir.program import Counts, Program, Recognised
from prunec.ir.rewrite import Pass
from prunec.passes.find_tokens import find_tokens, token_dim
from prunec.probing.replay import example_inputs
from prunec.structure import Anatomy, Block, Core, NoMatch

_BESIDE = "this attention is in no residual branch of the token stream"


@dataclass(frozen=True)
class Recognise(Pass[Program, Recognised]):
    """Fill in the program's anatomy, or refuse with the reason."""

    name: ClassVar[str] = "recognise"

    def run(self, program: Program) -> tuple[Recognised, Counts]:
        """The same graph with its anatomy, and the counts of what was found."""
        anatomy = recognise(program.module)
        counts = {
            "blocks": anatomy.depth,
            "tokens": anatomy.tokens,
            "protected": anatomy.prefix + anatomy.suffix,
        }
        return program.recognised(anatomy), Counts(counts)

    def ensures(self, program: Recognised) -> None:
        """States that exist."""
        names = graph.by_name(program.graph)
        for state in program.anatomy.states:
            self.promise(state in names, f"the state {state} is not in the graph")


def recognise(module: fx.GraphModule) -> Anatomy:
    """The anatomy of a normalised graph; RecognitionError when there is no token stream with attention."""
    flow = DataFlow(module.graph)
    cores = find_cores(flow)
    streams = _streams(flow, cores)
    chain = _of_the_image(module, streams, flow)
    branches = [branch_of(link, cores, flow) for link in chain]
    matched = {core.node for branch in branches for core in branch.cores}
    end = end_of_the_last(chain, branches, flow)
    names = (name for branch in branches for name in (branch.state, branch.add))
    states = tuple(dict.fromkeys((*names, *([end.name] if end is not None else ()))))
    blocks = blocks_of(branches, flow)
    trunk = {node.name for link in chain for node in (*link.region, link.add)}
    tokens = find_tokens(module, states, trunk, flow.pixels)
    wrong = [miss for block in blocks for miss in _not_over_tokens(block, tokens.axes, flow)]
    _check_gain(blocks, {miss.node for miss in wrong})
    misses = _outside(chain, streams, cores, flow)
    return Anatomy(
        blocks=blocks,
        tokens=tokens.tokens,
        prefix=tokens.prefix,
        suffix=tokens.suffix,
        token_dim=tokens.token_dim,
        class_token=tokens.class_token,
        head=tokens.head,
        taps=tokens.taps,
        states=states,
        pixels=flow.pixels.name,
        unmatched=(*misses, *wrong),
        learned=tokens.learned,
        notes=(*tokens.notes, *left_alone(module.graph, matched, flow)),
    )


def _streams(flow: DataFlow, cores: dict[str, Core]) -> list[list[Link]]:
    """The residual streams with attention, the one that works most first; RecognitionError without any."""
    adds = without_long_skips(residual_adds(flow), cores, flow)
    attending = [chain for chain in chains(adds, flow) if any(cores_in(link.region, cores) for link in chain)]
    if not attending:
        raise RecognitionError(
            "no residual stream with attention was found in this model",
            where=_nearest_miss(flow, adds, cores),
            remedy="prunec works on Vision Transformers: residual blocks with softmax attention over tokens",
        )
    return sorted(attending, key=lambda links: work(links, cores, flow), reverse=True)


def _of_the_image(module: fx.GraphModule, streams: list[list[Link]], flow: DataFlow) -> list[Link]:
    """The first stream whose rows are tokens of the image; RecognitionError where there is none."""
    chain = next((links for links in streams if _is_of_image(module, links, flow)), None)
    if chain is None:
        raise RecognitionError(
            "the rows of this model's stream are learned queries, and none stands for a part of the image",
            where=graph.place(streams[0][0].add),
            remedy="prunec prunes tokens of the image: name the part that makes them (submodule=), if it has "
            "attention",
        )
    return chain


def _outside(
    chain: list[Link], streams: list[list[Link]], cores: dict[str, Core], flow: DataFlow
) -> list[NoMatch]:
    """Attention that stays as it is: that of other streams, and what stands before the last block in none."""
    matched = {core.node for link in chain for core in cores_in(link.region, cores)}
    queries = streams[: streams.index(chain)]
    last = flow.order[chain[-1].add]
    elsewhere = {
        core.node: _elsewhere(graph.shape(links[0].state), queries=links in queries)
        for links in sorted(streams, key=lambda links: flow.order[links[0].add])
        for link in links
        for core in cores_in(link.region, cores)
        if size_along(links[0].state, 1) > 1  # no class token that attends by itself (CaiT's last blocks)
    }
    return [
        _miss(elsewhere.get(core.node, _BESIDE), flow.nodes[core.node])
        for core in cores.values()
        if core.node not in matched and (core.node in elsewhere or flow.order[flow.nodes[core.node]] < last)
    ]


def _is_of_image(module: fx.GraphModule, links: list[Link], flow: DataFlow) -> bool:
    """Whether a chain's rows are tokens of the image; feature maps are left to find_tokens."""
    state = links[0].state
    if len(graph.shape(state)) != 3:
        return True
    inputs = example_inputs(module, flow.pixels)
    return holds_image_tokens(module, state, token_dim(state), inputs, flow)


def _elsewhere(shape: tuple[int | torch.SymInt, ...], *, queries: bool) -> str:
    what = "a stream of learned queries" if queries else "another stream"
    return f"this attention is in {what}, {list(shape)}, which is left alone"


def _not_over_tokens(block: Block, axes: Mapping[str, tuple[int, ...]], flow: DataFlow) -> list[NoMatch]:
    """Cores whose softmax does not run over the token axis, with what it runs over instead."""
    found = []
    for core in (core for branch in block.branches for core in branch.cores):
        node, axis = scores_of(core, flow)
        if axis in axes.get(node.name, ()):
            continue
        reason = "its softmax does not run over the token axis"
        if not any(axes.get(operand) for operand in (core.query, core.key, core.node)):
            reason = "attention within windows or on a map of the whole grid, which stays dense"
        found.append(_miss(reason, flow.nodes[core.node]))
    return found


def _check_gain(blocks: tuple[Block, ...], elsewhere: set[str]) -> None:
    """Refuse a stream where fewer tokens would save nothing: no attention over them, and no MLP."""
    over_tokens = any(
        core.node not in elsewhere for block in blocks for branch in block.branches for core in branch.cores
    )
    if not over_tokens and all(block.mlp is None for block in blocks):
        raise RecognitionError(
            "no block of this model gains from fewer tokens: no softmax runs over the token axis, and no MLP "
            "stands in the residual stream",
            where=f"{len(blocks)} blocks, the first is {blocks[0].path or 'at the top'}",
            remedy="prunec prunes attention over tokens and token-wise MLPs",
        )


def _miss(reason: str, node: fx.Node) -> NoMatch:
    return NoMatch(reason, node.name, graph.place(node))


def _nearest_miss(flow: DataFlow, links: list[Link], cores: dict[str, Core]) -> str:
    """What was there, for the error message."""
    softmaxes = [node for node in flow.reached if graph.op(node) == "softmax"]
    found = f"{len(links)} residual adds, {len(cores)} attention cores, {len(softmaxes)} softmaxes in all"
    nearest = next(iter(cores.values()), None)
    return f"{found}; {graph.place(flow.nodes[nearest.node])}" if nearest else found
