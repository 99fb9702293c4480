"""Runs a program in which every image keeps tokens of its own, whatever their scores.

Which ones depends on the image and the token alone, not on the rows that a mode has them in: so a batch, each
image by itself, and every mode of the same program keep the same, and can be compared.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx

from prunec import ops
from prunec.ir import arguments
from prunec.ir.program import Planned


class Scattering(fx.Interpreter):
    """Runs a program with selections of its own choice.

    Args:
        program: a program whose images may keep different numbers of tokens.
        images: what the images of the batch are called: the same name keeps the same tokens.
        budgets: leave a budget that a batch shares as it is: its total must be met, by whatever images.
    """

    def __init__(self, program: Planned, images: Iterable[int], *, budgets: bool = True) -> None:
        super().__init__(program.module, garbage_collect_values=True)
        self.images, self.tokens, self.site = tuple(images), program.anatomy.tokens, 0
        self.untouched = (ops.topk_mask_of_batch,) if budgets else ()
        self.tokens_of: list[tuple[Tensor, Tensor]] = []  # which rows count, and which token each row is

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Everything as it is, but which rows pass: a share of an image's tokens that is its own."""
        if target is ops.valid_mask:
            made = super().call_function(target, args, kwargs)
            given = arguments.bind_call(target, args, kwargs)
            self.tokens_of.append((made, self._tokens(given["kept"]).gather(1, given["index"])))
            return made
        if target in (ops.with_best_dropped, ops.context_mask):
            made = super().call_function(target, args, kwargs)
            self.tokens_of.append((made, self._tokens(arguments.bind_call(target, args, kwargs)["kept"])))
            return made
        if target not in ops.MASKS or target in self.untouched:
            return super().call_function(target, args, kwargs)
        given = arguments.bind_call(target, args, kwargs)
        score, valid = given["score"], given["valid"]
        tokens = self._tokens(score if valid is None else valid)
        # An image may be several streams (windows), and several images one (all patches in one row).
        each = max(len(tokens) // len(self.images), 1)
        names = [image * each + part for image in self.images for part in range(each)][: len(tokens)]
        chances = torch.stack([self._chance(name) for name in names]).to(tokens.device)
        scores = torch.where(score.isposinf(), score, chances.gather(1, tokens).to(score))
        self.site += 1
        ends = given["prefix"], given["suffix"]
        kept = ops.threshold_mask(scores, scores.new_zeros(()), *ends, given["least"], valid)
        self.tokens_of.append((kept, tokens))
        return kept

    def _tokens(self, rows: Tensor) -> Tensor:
        """Which token each row of a stream is, by what says which of its rows count."""
        known = (tokens for valid, tokens in self.tokens_of if valid is rows)
        return next(known, torch.arange(rows.shape[1], device=rows.device).expand(rows.shape))

    def _chance(self, name: int) -> Tensor:
        """Others are merged into rows of infinite score, so these stay; of the rest the positive ones do."""
        generator = torch.Generator().manual_seed(1000 * self.site + name)
        share = 0.8 if (name + self.site) % 2 else 0.3  # neighbours differ, or nothing would pad
        return torch.rand(self.tokens, generator=generator) - (1 - share)
