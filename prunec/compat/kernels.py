"""CUDA: the kernel for sequences of different lengths, and what times depend on."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["cuda_facts", "has_varlen_attention", "varlen_attention"]


def has_varlen_attention(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether PyTorch has a kernel for sequences of different lengths side by side."""
    fits = device.type == "cuda" and dtype in (torch.float16, torch.bfloat16)
    return fits and importlib.util.find_spec("torch.nn.attention.varlen") is not None


def varlen_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    counts: tuple[torch.Tensor, torch.Tensor],
    scale: float,
    longest: tuple[int, int],
) -> torch.Tensor:
    """Attention of packed rows [1, h, S, d]: for each image so many queries and keys, at most `longest`."""
    from torch.nn.attention.varlen import (
        varlen_attn,
    )  # CUDA only; its signature grows from release to release

    offsets = [torch.nn.functional.pad(count.cumsum(0), (1, 0)).int() for count in counts]
    options = {"scale": scale}
    if "scale" not in inspect.signature(varlen_attn).parameters:
        query, options = query * (scale * query.shape[-1] ** 0.5), {}
    rows = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]  # [S, h, d]
    attention: Callable[..., Any] = varlen_attn
    found: torch.Tensor = attention(*rows, *offsets, *longest, **options)
    return found.transpose(0, 1).unsqueeze(0)


def cuda_facts(device: torch.device) -> dict[str, str | int]:
    """What a time on a CUDA device depends on: its processors, the driver, the kernels' versions."""
    facts: dict[str, str | int] = {
        "processors": torch.cuda.get_device_properties(device).multi_processor_count,
        "cudnn": torch.backends.cudnn.version() or "none",
    }
    version = getattr(torch._C, "_cuda_getDriverVersion", None)  # only where PyTorch found CUDA
    if version is not None:
        facts["driver"] = int(version())
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        facts["triton"] = importlib.metadata.version("triton")
    return facts
