"""A chain of operators on a stream, repaired behind a selection, beside the chain on the rows that go on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from prunec import ops
from prunec.ir import graph
from prunec.token_axis.repairs import Repairs
from prunec.token_axis.selected import Stream
from prunec.token_axis.spaces import TokenAxis
from tests.tiny import captured

Chain = Callable[[Tensor], Tensor]


class Whole(nn.Module):
    def __init__(self, chain: Chain) -> None:
        super().__init__()
        self.chain = chain

    def forward(self, x: Tensor) -> Tensor:
        return self.chain(x)


@dataclass
class Repaired:
    """A chain of operators on x: [B, N, C], captured at N tokens and repaired behind a selection."""

    module: fx.GraphModule
    repairs: Repairs
    last: str  # the chain's result in the new graph, before outputs are made whole again

    def at(self, x: Tensor, rows: Tensor) -> Tensor:
        """The chain's result when `rows` [B, n] go on."""
        interpreter = _Selecting(self.module, rows)
        interpreter.garbage_collect_values = False
        with torch.no_grad():
            interpreter.run(x)
        return next(value for node, value in interpreter.env.items() if node.name == self.last)


class _Selecting(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, rows: Tensor) -> None:
        super().__init__(module)
        self.rows = rows

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self.rows if target is ops.select else super().call_function(target, args, kwargs)


def repair(chain: Chain, tokens: int, channels: int, *, prefix: int = 0, suffix: int = 0) -> Repaired:
    program = captured(Whole(chain), torch.randn(2, tokens, channels))
    module = graph.copy(program.module)
    (x,) = module.graph.find_nodes(op="placeholder")
    users = [user for user in x.users if graph.op(user) != "sym_size"]
    with module.graph.inserting_after(x):
        score = module.graph.call_function(ops.token_norm, (x, 1))
    with module.graph.inserting_after(score):
        select = module.graph.call_function(ops.select, (score, tokens, prefix, suffix))
    with module.graph.inserting_after(select):
        gather = module.graph.call_function(ops.gather, (x, select, 1))
    for user in users:
        user.replace_input_with(x, gather)
    value = x.meta["val"]
    with value.fake_mode:
        score.meta["val"] = value[..., 0]
        select.meta["val"] = score.meta["val"].to(torch.int64)
    gather.meta["val"] = value
    last = graph.output_node(module.graph).args[0][0].name
    axis = TokenAxis(module, Stream(tokens, prefix, suffix, 1, ()))
    repaired, repairs = axis.run()
    return Repaired(repaired, repairs, last)


def rows_of(tokens: int, count: int, *, prefix: int = 0, suffix: int = 0, batch: int = 3) -> Tensor:
    """Random rows in ascending order, other ones for each image, protected ones among them."""
    patches = (
        torch.rand(batch, tokens - prefix - suffix).argsort(dim=1)[:, : count - prefix - suffix] + prefix
    )
    first, last = (
        torch.arange(prefix).expand(batch, -1),
        torch.arange(tokens - suffix, tokens).expand(batch, -1),
    )
    return torch.cat([first, patches.sort(dim=1).values, last], dim=1)


def check(chain: Chain, tokens: int, channels: int, *, prefix: int = 0, suffix: int = 0) -> Repaired:
    """At every count the repaired chain is the chain recomputed on the rows that go on."""
    repaired = repair(chain, tokens, channels, prefix=prefix, suffix=suffix)
    assert repaired.repairs.region_ends == []
    for count in {max(prefix + suffix, 1) + 1, tokens // 2 + 1, tokens - 1, tokens}:
        x = torch.randn(3, tokens, channels)
        rows = rows_of(tokens, count, prefix=prefix, suffix=suffix)
        torch.testing.assert_close(repaired.at(x, rows), chain(ops.gather(x, rows)), rtol=0, atol=0)
    return repaired


def heads(x: Tensor) -> Tensor:
    b, n, c = x.shape
    return x.reshape(b, n, 2, c // 2).permute(0, 2, 1, 3)
