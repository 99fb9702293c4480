"""Streams, scores and masks that hypothesis draws, and what plain Python says of them."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

quick = settings(deadline=None, max_examples=60)

double = torch.float64


def equal(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@st.composite
def streams(draw: st.DrawFn, fused: bool = False) -> dict[str, Any]:
    """A stream with protected ends, its scores (often tied), and how many patches to keep."""
    batch, prefix, suffix = draw(st.integers(1, 3)), draw(st.integers(0, 3)), draw(st.integers(0, 3))
    patches = draw(st.integers(1, 9))
    keep = draw(st.integers(0 if prefix + suffix or fused else 1, patches))
    tokens = prefix + patches + suffix
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    score = (
        torch.randint(0, draw(st.sampled_from([2, 5, 1000])), (batch, tokens), generator=generator).double()
        / 7
    )
    x = torch.randn(batch, tokens, 3, generator=generator, dtype=double)
    return {"x": x, "score": score, "prefix": prefix, "suffix": suffix, "patches": patches, "keep": keep}


def as_stream(x: Tensor, dim: int) -> Tensor:
    """[B, T, C] as it is, or as [T, B, C]."""
    return x if dim == 1 else x.transpose(0, 1).contiguous()


def best_rows(scores: list[float], keep: int, prefix: int, suffix: int) -> tuple[list[int], list[int]]:
    """Patch rows kept, ascending, and the rest, best first; ties go to the lower row."""
    patches = range(prefix, len(scores) - suffix)
    order = sorted(patches, key=lambda row: (-scores[row], row))
    return sorted(order[:keep]), order[keep:]


BATCH, TOKENS, ENDS = 3, 9, (1, 2)

cheap = settings(max_examples=25, deadline=None, derandomize=True, database=None)


def scores(draw: st.DrawFn) -> Tensor:
    """Few different numbers, so that there are ties."""
    numbers = st.lists(st.integers(0, 3), min_size=BATCH * TOKENS, max_size=BATCH * TOKENS)
    return torch.tensor(draw(numbers), dtype=torch.float).view(BATCH, TOKENS)


@st.composite
def scored(draw: st.DrawFn) -> Tensor:
    return scores(draw)


@st.composite
def masks(draw: st.DrawFn) -> Tensor:
    """Which rows are kept: protected ones, and any others."""
    kept = scores(draw) > 1
    kept[:, : ENDS[0]] = kept[:, TOKENS - ENDS[1] :] = True
    return kept


def rows(mask: Tensor) -> list[list[int]]:
    return [row.nonzero()[:, 0].tolist() for row in mask]
