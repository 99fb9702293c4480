from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from prunec import compat


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_on_the_cpu_there_is_no_kernel_for_sequences_of_different_lengths(dtype: torch.dtype) -> None:
    assert not compat.has_varlen_attention(torch.device("cpu"), dtype)


@pytest.mark.gpu
def test_packed_attention_is_that_of_each_image() -> None:
    counts = torch.tensor([5, 9, 2], device="cuda")
    query, key, value = (torch.randn(1, 2, 16, 64, device="cuda", dtype=torch.float16) for _ in range(3))
    found = compat.varlen_attention(query, key, value, (counts, counts), 0.2, (9, 9))
    for start, stop in ((0, 5), (5, 14), (14, 16)):
        rows = (tensor[:, :, start:stop].float() for tensor in (query, key, value))
        expected = scaled_dot_product_attention(*rows, scale=0.2)
        torch.testing.assert_close(found[:, :, start:stop].float(), expected, rtol=1e-2, atol=1e-2)
