"""A policy at chosen blocks with its counts left open: the same graph runs at every count.

    select(score, 98, ..)   ==>   select(score, sym_size(rows_0, 0), ..)      rows_0: [k], an input

The inputs `rows_0`, `rows_1`, ... stand behind the program's own, one for each site; only their lengths
matter. Where a policy's threshold would tell how many stay, the same number of each image stay (or of the
batch).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from prunec import ops
from prunec.ir import arguments, graph
from prunec.ir.program import Planned, Recognised
from prunec.passes import PlanPass, run_passes
from prunec.policy.lowering import Lowering
from prunec.policy.policy import Policy
from prunec.policy.site_plan import make_plan


def probe(dense: Recognised, policy: Policy, lowering: Lowering, passes: tuple[PlanPass, ...]) -> Planned:
    """A recognised program with the sites of a policy, each count an input."""
    plan = make_plan(policy, dense.anatomy, lowering)
    program = run_passes(passes, dense.planned(plan))
    module = graph.copy(program.module)
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    after = inputs[-1]
    for number, (node, kept) in enumerate(_selections(module.graph)):
        with module.graph.inserting_after(after):
            after = module.graph.placeholder(f"rows_{number}")
            after.meta["val"] = torch.empty(int(kept))
        with module.graph.inserting_after(after):
            size = module.graph.call_function(torch.ops.aten.sym_size.int, (after, 0))
            size.meta["val"] = int(kept)
        arguments.rebind(node, **{_counted(node): size})
        for user in [user for user in node.users if user.target is ops.remembered]:
            _open_remembered(user, size, 1 - policy.merging.forget)
    graph.tidy(module)
    return program.replace(module=module)


def opened(policy: Policy, blocks: Sequence[int], *, of_batch: bool = False) -> Policy:
    """The policy at these blocks, with a rate in the place of whatever else says how many stay."""
    data = policy.model_dump(exclude={"then"})
    rate = max(1, len(blocks)) / (1 + len(blocks))  # each site takes tokens away, and leaves some to the next
    budget = "batch" if of_batch and policy.selector.ragged else "image"
    data["selector"].update(kind="top_k", keep_per_site=rate, remove=None, at=None, budget=budget)
    data["selector"].update(stages=1, spare=0, multiple_of=1, least=1)
    data["keep"] = None
    data["sites"].update(blocks=tuple(blocks), depths=None, between=None)
    return Policy.load(data)


def lengths(counts: Sequence[int], like: Tensor) -> tuple[Tensor, ...]:
    """The inputs that say how many patches stay at each site."""
    return tuple(like.new_empty(count) for count in counts)


def _open_remembered(node: fx.Node, keep: fx.Node, share: float) -> None:
    """Where a share of those that leave is forgotten, how many are not follows from how many stay."""
    given = arguments.bind(node)
    score, known, ends = given["score"], given["count"], (given["prefix"], given["suffix"])
    with node.graph.inserting_before(node):
        tokens = node.graph.call_function(torch.ops.aten.sym_size.int, (score, 1))
        tokens.meta["val"] = graph.shape(score)[1]
        count = node.graph.call_function(_remembered, (keep, tokens, *ends, share))
        count.meta["val"] = known
    arguments.rebind(node, count=count)


def _remembered(keep: int, tokens: int, prefix: int, suffix: int, share: float) -> int:
    leaving = tokens - prefix - suffix - keep
    return keep + round(leaving * share)


def _selections(target: fx.Graph) -> list[tuple[fx.Node, int]]:
    counted = (*ops.FIXED, ops.topk_mask, ops.topk_mask_of_batch)
    found = [node for node in target.nodes if node.target in counted]
    return [(node, arguments.bind(node)[_counted(node)]) for node in found]


def _counted(node: fx.Node) -> str:
    """The argument of a selection or a mask that says how many patches stay."""
    return "keep" if node.target in ops.FIXED else "count"
