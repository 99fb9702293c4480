"""What Inductor makes of a site: the sum that it takes rows from is not written, and so not read again.

    s + attention + mlp  -- gather -- norm        one kernel: reads the addends' kept rows, writes [B, n, C]

Read off the generated code, with sizes that tell a full stream [B, T, C] from all else.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor import config
from torch._inductor.utils import run_and_get_code

from prunec.ir.program import Program
from prunec.targets.inductor import Inductor
from tests.tiny import Attention, Block, Mlp, ViT, pixels, pruned, recognised

BATCH, TOKENS, DIM = 4, 37, 32
FULL = BATCH * TOKENS * DIM

Shape = tuple[int, ...]


def block() -> Block:
    return Block(lambda: Attention(DIM), lambda: Mlp(DIM), DIM)


class Small(ViT):
    """Two blocks with 32 channels on a 6 x 6 grid, and a head that reads the class token and all others."""

    def __init__(self) -> None:
        super().__init__(block, dim=DIM, side=6, read=lambda x: x[:, 0] + x.amax(dim=1))


class Tapped(Small):
    """The state behind block 0 is an output, too."""

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        middle = self.blocks[0](self.embed(pixels))
        return self.head(self.read(self.norm(self.blocks[1](middle)))), middle


@dataclass(frozen=True)
class Kernel:
    """One generated C++ kernel: its name tells the operators in it, and which buffers it reads and writes."""

    name: str
    reads: tuple[Shape, ...]
    writes: tuple[Shape, ...]

    def full(self) -> int:
        """How many buffers of the full stream's size it writes."""
        return sum(math.prod(shape) == FULL for shape in self.writes)

    def takes_rows(self) -> bool:
        """Whether rows of a sum are taken and normed in it."""
        return all(part in self.name for part in ("add", "gather", "native_layer_norm"))


def kernels(program: Program) -> list[Kernel]:
    """The kernels of the compiled program, in the order in which they run."""
    torch._dynamo.reset()
    with torch.no_grad(), config.patch({"cpp.simdlen": 1, "fx_graph_cache": False}):
        run = Inductor(dynamic_batch=False, regional=False).lower(program)
        _, (code,) = run_and_get_code(run, pixels(BATCH, 6))
    pattern = r"(\w+) = async_compile\.cpp_pybinding\(\[(.*?)\]"
    kinds = {name: re.findall(r"'(.*?)'", listed) for name, listed in re.findall(pattern, code)}
    shapes: dict[str, Shape] = {}
    found = []
    for line in map(str.strip, code.splitlines()):
        if made := re.match(_MADE, line):
            shapes[made[1] or made[3]] = tuple(map(int, re.findall(r"\d+", made[2] or made[4])))
        elif renamed := re.match(r"(buf\d+) = (buf\d+); del", line):
            shapes[renamed[1]] = shapes[renamed[2]]
        elif (call := re.match(r"(\w+)\((.*)\)$", line)) and call[1] in kinds:
            buffers = list(zip(kinds[call[1]], call[2].split(", "), strict=True))
            reads = [shapes[name] for kind, name in buffers if kind.startswith("const") and name in shapes]
            writes = [shapes[name] for kind, name in buffers if not kind.startswith("const")]
            found.append(Kernel(call[1], tuple(reads), tuple(writes)))
    return found


#: A buffer that is allocated, or comes from an external kernel and is checked: its name and its shape.
_MADE = (
    r"(?:(buf\d+) = (?:empty_strided_cpu|reinterpret_tensor)\(.*?\(([\d, ]*)\)"
    r"|assert_\w+\((buf\d+), \(([\d, ]*)\))"
)


def of_model(model: ViT, **choices: Any) -> list[Kernel]:
    torch.manual_seed(0)
    return kernels(pruned(recognised(model, pixels(BATCH, 6)), **choices))


def written(found: list[Kernel]) -> list[str]:
    """The kernel of each full-size buffer that is written."""
    return [kernel.name for kernel in found for _ in range(kernel.full())]


#: Where tokens are left out -> the policy, the rows that go on, and how many norms of all tokens come before.
FORMS: dict[str, tuple[dict[str, Any], int, int]] = {
    "before a block": ({"blocks": [1]}, 19, 2),
    "before a block, and so before the attention it is scored by": (
        {"blocks": [1], "scorer": "cls_attention"}, 19, 1
    ),
    "after an attention": ({"blocks": [0], "where": "after_attention"}, 19, 1),
    "after an attention, and fused": ({"blocks": [0], "where": "after_attention", "fate": "fuse"}, 20, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_rows_are_taken_of_a_sum_that_nobody_writes(name: str) -> None:
    choices, left, norms = FORMS[name]
    found = of_model(Small(), **choices)
    taking = [kernel for kernel in found if kernel.takes_rows()]
    assert taking, "one kernel adds, takes rows, and norms them"
    for kernel in taking:
        assert (BATCH, TOKENS, DIM) in kernel.reads  # an addend
        assert (BATCH, left, DIM) in kernel.writes  # what goes into the next linear
    assert len(written(found)) == norms  # each for its linear, and no sum


def test_a_sum_that_is_read_elsewhere_is_written() -> None:
    found = of_model(Tapped(), blocks=[1])
    assert len(written(found)) == FORMS["before a block"][2] + 1
    (last,) = [name for name in written(found) if "layer_norm" not in name]
    assert "add" in last


@pytest.mark.parametrize(("addends", "extra"), [(4, 1), (5, 0)])
def test_a_sum_of_more_than_four_buffers_is_written_wherever_it_stands(addends: int, extra: int) -> None:
    """Patches, positions, and three branches: Inductor's own limit, and not the site's doing."""
    with config.patch(realize_reads_threshold=addends):
        found = of_model(Small(), blocks=[1], where="after_attention")
    assert len(written(found)) == 3 + extra
