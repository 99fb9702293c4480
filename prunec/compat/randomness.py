"""Random numbers that repeat themselves."""

from __future__ import annotations

import torch

__all__ = ["seed"]


def seed(number: int) -> None:
    """As torch.manual_seed, without its notes where there is no accelerator.

    For each kind of them it would write down the whole stack, which takes longer than most operators.
    """
    if torch.accelerator.is_available():
        torch.manual_seed(number)
    else:
        torch.default_generator.manual_seed(number)
