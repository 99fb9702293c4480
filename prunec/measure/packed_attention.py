"""Which attention of packed rows is faster here: image by image, or padded to the longest. By measurement."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from prunec import compat, ops
from prunec.ir import graph
from prunec.ir.program import Recognised
from prunec.measure import cost
from prunec.policy.lowering import Attention

IMAGES, SHARES = 8, (0.2, 0.8)  # of a trial: each keeps another share of its tokens
ROUNDS = 7


def faster_attention(program: Recognised) -> tuple[Attention, str]:
    """The faster form for a recognised program's heads on its device, and the times in words."""
    names = graph.by_name(program.graph)
    cores = [core for block in program.anatomy.blocks for branch in block.branches for core in branch.cores]
    queries = [
        names[core.query].meta["val"] for core in cores if core.form == "fused" and core.query in names
    ]
    query = next((value for value in queries if value.dim() == 4), None)
    if query is None:
        return "padded", "attention is spelled out, so it runs on padded rows"
    if query.device.type == "cuda" and not compat.has_varlen_attention(query.device, query.dtype):
        return "padded", f"no kernel for sequences of different lengths in {query.dtype}"
    heads, width = (int(query.shape[axis]) for axis in (1, 3))
    times = _measured(program.anatomy.tokens, heads, width, query.dtype, query.device)
    best = min(times, key=lambda name: times[name])
    words = ", ".join(f"{name} {1e3 * seconds:.2f} ms" for name, seconds in times.items())
    return best, f"attention of {IMAGES} images, {words}"


def _measured(
    tokens: int, heads: int, width: int, dtype: torch.dtype, device: torch.device
) -> dict[Attention, float]:
    valid = (
        torch.arange(tokens, device=device)
        < (torch.linspace(*SHARES, IMAGES, device=device) * tokens)[:, None]
    )
    valid = valid[:, : max(2, int(valid.sum(dim=1).max()))]  # [B, n]
    rows, slots = ops.rows_of(valid), ops.slots(valid)
    packed = torch.randn(3, 1, rows.shape[1], heads, width, device=device).to(dtype).transpose(2, 3)

    query, key, value = packed

    def image_by_image() -> Tensor:
        return ops.attend(query, key, value, valid, valid)

    def padded() -> Tensor:
        wide = [ops.pad(x, slots, 2, 0) for x in (query, key, value)]
        out = scaled_dot_product_attention(wide[0], wide[1], wide[2], attn_mask=ops.key_mask(valid))
        return ops.unpad(out, rows, 2, 0)

    timings = cost.measure({"rows": image_by_image, "padded": padded}, device=device, rounds=ROUNDS, warmup=2)
    return {"rows": timings["rows"].median, "padded": timings["padded"].median}
