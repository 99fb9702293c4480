"""The dialect: the few token operations that prunec puts into a graph.

They are plain differentiable PyTorch functions, used as `call_function` targets: they run as they are (the
reference semantics), inline under torch.compile and torch.export, and print readably in a diff.

    x ---------------------------- gather/fuse -- x'      index: [B, n], rows of x in ascending order
     '-- score -- select -- index --'  '-- take (tables), compose (origins), scatter (way back)

A selection whose count differs from image to image is padded to the longest; `live` says which rows count:

    score -- passing -- pack -- index     [B, n], each image's kept rows first, then rows that it dropped
                    '-- live  -- live      [B, n], true for kept ones; attention, scatter look at it
"""

from __future__ import annotations

import torch
from torch import Tensor

from prunec import compat

# --- score: [B, T], higher means more worth keeping -------------------------------------------


def class_attention(
    query: Tensor, key: Tensor, row: int, scale: float | None = None, mask: Tensor | None = None
) -> Tensor:
    """Attention that token `row` pays to every token, averaged over heads; one row, never the N x N map."""
    # query: [B, h, T, d], key: [B, h', T, d], mask: broadcastable to [B, h, T, T]
    if key.shape[1] != query.shape[1]:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    logits = (query[:, :, row : row + 1] * scale) @ key.transpose(-2, -1)  # [B, h, 1, T]
    if mask is not None:
        mask = mask[..., row : row + 1, :]
        logits = logits.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else logits + mask
    return torch.mean(logits.softmax(dim=-1)[:, :, 0], dim=1)


def class_row(attention: Tensor, row: int) -> Tensor:
    """The same from an attention map that the model spells out anyway."""
    return attention[:, :, row].mean(dim=1)  # [B, h, T, T] -> [B, T]


def token_norm(x: Tensor, dim: int = 1) -> Tensor:
    """The L2 norm of each token."""
    return torch.sqrt(x.movedim(dim, 1).square().sum(dim=-1))  # [B, T, C] -> [B, T]


def random_score(x: Tensor, dim: int = 1) -> Tensor:
    """A random number for each token: the honest baseline."""
    return torch.rand_like(x.movedim(dim, 1)[..., 0])


def mlp_score(
    x: Tensor,
    norm: Tensor,
    shift: Tensor,
    up: Tensor,
    up_bias: Tensor,
    down: Tensor,
    down_bias: Tensor,
    dim: int = 1,
) -> Tensor:
    """How much more a small MLP wants to keep each token than to drop it, from the token's own value."""
    x = torch.nn.functional.layer_norm(x.movedim(dim, 1), (x.shape[-1],), norm, shift)
    hidden = torch.nn.functional.gelu(torch.nn.functional.linear(x, up, up_bias))
    logits = torch.nn.functional.linear(hidden, down, down_bias)  # [B, T, 2]: keep, drop
    return logits[..., 0] - logits[..., 1]


# --- select: which rows go on -----------------------------------------------------------------


def select(score: Tensor, keep: int, prefix: int, suffix: int, fused: bool = False) -> Tensor:
    """Rows that go on: protected ones in place, the `keep` best patches in ascending order.

    With `fused`, the best of the remaining patches follows them: its place is where `fuse` puts the extra
    token. Ties go to the lower index. Keeping everything yields 0 .. T-1.
    """
    tokens = score.shape[1]  # score: [B, T]
    rows = torch.arange(tokens, device=score.device).expand(score.shape[0], -1)
    patches = score[:, prefix : tokens - suffix]
    order = patches.argsort(dim=1, descending=True, stable=True) + prefix
    kept = order[:, :keep].sort(dim=1).values
    middle = [kept, order[:, keep : keep + 1]] if fused else [kept]
    return torch.cat([rows[:, :prefix], *middle, rows[:, tokens - suffix :]], dim=1)


# --- select, where every image keeps as many as it needs ----------------------------------------


def passing(
    score: Tensor, threshold: Tensor, prefix: int, suffix: int, least: int = 1, live: Tensor | None = None
) -> Tensor:
    """Which rows go on: patches that score above the threshold, the `least` best ones, protected ones.

    Rows that the selection before has dropped already (not `live`) do not come back.
    """
    patches = score[:, prefix : score.shape[1] - suffix]  # [B, N]
    if live is not None:
        patches = patches.masked_fill(~live[:, prefix : score.shape[1] - suffix], float("-inf"))
    best = patches.argsort(dim=1, descending=True, stable=True)[:, :least]
    return _with_ends((patches > threshold).scatter(1, best, True), prefix, suffix)  # [B, T]


def _with_ends(patches: Tensor, prefix: int, suffix: int) -> Tensor:
    """Protected rows pass: [B, N] to [B, T]."""
    front, back = (patches.new_ones((patches.shape[0], count)) for count in (prefix, suffix))
    return torch.cat([front, patches, back], dim=1)


def shuffled(kept: Tensor, prefix: int, suffix: int, live: Tensor | None = None) -> Tensor:
    """As many rows of each image, chosen at random among those that are there: the honest baseline."""
    end = kept.shape[1] - suffix
    chance = torch.rand(kept[:, prefix:end].shape, device=kept.device)
    if live is not None:
        chance = chance.masked_fill(~live[:, prefix:end], -1.0)
    place = chance.argsort(dim=1, descending=True).argsort(dim=1)  # 0 for the luckiest row
    lucky = place < kept[:, prefix:end].sum(dim=1, keepdim=True)
    return _with_ends(lucky, prefix, suffix)


def pack(kept: Tensor, prefix: int, suffix: int, multiple_of: int = 1) -> Tensor:
    """Rows of every image, as many as the longest needs, rounded up: kept ones first, in order."""
    tokens = kept.shape[1]
    patches = kept[:, prefix : tokens - suffix]
    most = int(patches.sum(dim=1).amax().item())
    length = min(max(-(-most // multiple_of) * multiple_of, 2), patches.shape[1])
    compat.assume(length >= 2)  # a compiler that does not know the length wants to know whether it is one
    # kept, then dropped, both in ascending order
    order = (~patches).to(torch.uint8).argsort(dim=1, stable=True) + prefix
    rows = torch.arange(tokens, device=kept.device).expand(kept.shape[0], -1)
    return torch.cat([rows[:, :prefix], order[:, :length], rows[:, tokens - suffix :]], dim=1)


def live(kept: Tensor, index: Tensor) -> Tensor:
    """Which rows of a packed selection count; the others pad it."""
    return kept.gather(1, index)  # [B, T], [B, n] -> [B, n]


def key_mask(live: Tensor, mask: Tensor | None = None) -> Tensor:
    """A mask for fused attention that hides padding rows from every query, on top of one that is there."""
    keys = live[:, None, None, :]  # [B, 1, 1, n]
    if mask is None:
        return keys
    return mask & keys if mask.dtype == torch.bool else mask.masked_fill(~keys, float("-inf"))


def mask_keys(logits: Tensor, live: Tensor) -> Tensor:
    """The same for attention that is spelled out, before its softmax: [B, h, n, n]."""
    return logits.masked_fill(~live[:, None, None, :], float("-inf"))


def whole(x: Tensor) -> Tensor:
    """The stream with every token in it: where a selection chooses among all again."""
    return x


# --- gather, fuse, scatter: the stream itself -------------------------------------------------


def gather(x: Tensor, index: Tensor, dim: int = 1) -> Tensor:
    """Rows `index` of a stream, each image its own."""
    return x.gather(dim, _rows(index, x, dim))  # [B, T, C], [B, n] -> [B, n, C]


def fuse(x: Tensor, index: Tensor, score: Tensor, suffix: int, dim: int = 1) -> Tensor:
    """Rows `index` of a stream; the last patch row becomes the sum of dropped tokens, weighted by score."""
    kept = gather(x, index, dim)
    if index.shape[1] == x.shape[dim]:  # nothing was dropped
        return kept
    place = index.shape[1] - suffix - 1
    others = torch.cat([index[:, :place], index[:, place + 1 :]], dim=1)
    weight = score.scatter(1, others, 0.0).to(x.dtype)  # [B, T], zero where a token goes on by itself
    extra = (weight.unsqueeze(1) @ x.movedim(dim, 1)).movedim(1, dim)  # [B, 1, C]
    return torch.cat([kept.narrow(dim, 0, place), extra, kept.narrow(dim, place + 1, suffix)], dim=dim)


def scatter(base: Tensor, x: Tensor, index: Tensor, dim: int = 1, live: Tensor | None = None) -> Tensor:
    """The full stream again: `base`, with rows `index` replaced by the pruned stream's (only `live` ones)."""
    rows = _rows(index, x, dim)
    if live is not None:
        x = torch.where(_rows(live, x, dim), x, base.gather(dim, rows))
    return base.scatter(dim, rows, x)


def rows(x: Tensor, dim: int, start: int, stop: int | None = None) -> Tensor:
    """Neighbouring rows at a constant place; a view, so it costs nothing. Negative places: from the end."""
    stop = x.shape[dim] if stop is None else stop
    start, stop = (place + x.shape[dim] if place < 0 else place for place in (start, stop))
    return x.narrow(dim, start, stop - start)


def put_first(base: Tensor, x: Tensor, dim: int = 1) -> Tensor:
    """The full stream when the first rows went on: what `scatter` costs at least (for the ideal control)."""
    length = x.shape[dim]
    return torch.cat([x, base.narrow(dim, length, base.shape[dim] - length)], dim=dim)


# --- side state: what is indexed by token moves with its token --------------------------------


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """Original rows of a stream that was pruned twice: outer[inner]."""
    return outer.gather(1, inner)  # [B, n1], [B, n2] -> [B, n2]


def take(
    table: Tensor, index: Tensor, dim: int, batch_dim: int = 0, skip_prefix: int = 0, skip_suffix: int = 0
) -> Tensor:
    """Rows of a token-indexed table (rotary, position, bias) for the tokens that are left.

    A table that has no rows for `skip_prefix` protected tokens shifts the index by as many.
    """
    index = index[:, skip_prefix : index.shape[1] - skip_suffix] - skip_prefix
    shape, target = [1] * table.dim(), list(table.shape)
    shape[batch_dim], shape[dim] = index.shape
    target[batch_dim] = index.shape[0]
    table = table.expand(target)
    target[dim] = index.shape[1]
    index = index.T if dim < batch_dim else index
    return table.gather(dim, index.reshape(shape).expand(target))


def _rows(index: Tensor, x: Tensor, dim: int) -> Tensor:
    """`index` [B, n] spread over the other dimensions of a stream [B, .., n, .., C]."""
    batch = 1 if dim == 0 else 0
    index = index.T if dim < batch else index
    shape, target = [1] * x.dim(), list(x.shape)
    first, second = sorted((batch, dim))
    shape[first], shape[second] = index.shape
    target[dim] = shape[dim]
    return index.reshape(shape).expand(target)


#: What each operation is, for the printer and for the checks between passes.
SCORES = (class_attention, class_row, token_norm, random_score, mlp_score)
SELECTIONS = (select, pack)
DIALECT = (
    *SCORES, *SELECTIONS, passing, shuffled, live, key_mask, mask_keys, whole, gather, fuse, scatter,
    rows, put_first, compose, take,
)  # fmt: skip
