"""A learned scorer in the graph: its module as a function of its input and its parameters."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import pad


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a module by name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


class Learned:
    """Calls a scorer module with parameters that are operands of the graph: saved, moved and trained there.

    x, prefix, suffix, axis, valid, *parameters --> the scores of all tokens, 0 for protected ones: [B, T] or,
    of classes, [B, T, K]. A module that reads pixels gets x as it is, any other the patches [B, N, C], and if
    it has `takes_valid` also which of these are valid, where some are padding.
    """

    def __init__(self, module: nn.Module, name: str, site: int) -> None:
        self.site = site
        self.module = copy.deepcopy(module).to("meta")  # its parameters and buffers come with each call
        self.names = tuple(tensors_of(module))
        self.pixels = getattr(module, "reads", "patches") == "pixels"
        self.context = self.pixels or bool(getattr(module, "context", False))
        self.takes_valid = bool(getattr(module, "takes_valid", False)) and not self.pixels
        self.__name__ = self.__qualname__ = name
        self.__module__ = __name__

    def __call__(
        self, x: Tensor, prefix: int, suffix: int, dim: int, valid: Tensor | None, *parameters: Tensor
    ) -> Any:
        """The scores."""
        given = [x if self.pixels else x.movedim(dim, 1)[:, prefix : x.shape[dim] - suffix]]
        if self.takes_valid and valid is not None:
            given.append(valid[:, prefix : valid.shape[1] - suffix])
        own = dict(zip(self.names, parameters, strict=True))
        found: Tensor = functional_call(self.module, own, tuple(given))
        return pad(found, (0, 0) * (found.dim() - 2) + (prefix, suffix))

    def alone(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """The module itself with these parameters and buffers, in float32."""
        module = copy.deepcopy(self.module).to_empty(device=next(iter(tensors.values())).device)
        with torch.no_grad():
            for name, value in tensors_of(module).items():  # a state dict would leave some buffers out
                value.copy_(tensors[name])
        return module.float()

    @property
    def trainable(self) -> bool:
        """Whether it has parameters, and so something to fit."""
        return any(True for _ in self.module.parameters())

    def __repr__(self) -> str:
        return self.__name__
