"""Runs a program in which every image keeps a random share of its tokens, whatever their scores.

Which tokens these are depends on the image and the token alone, not on the layout of rows in a mode. So a
batch, each image alone, and every mode of the same program keep the same tokens and can be compared.
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
    """Runs a program with random selections.

    Args:
        program: a program whose images may keep different numbers of tokens.
        images: a number for each image of the batch; images of the same number keep the same tokens.
        budgets: leave selections with a budget for the whole batch as they are, so that its total is met.
    """

    def __init__(self, program: Planned, images: Iterable[int], *, budgets: bool = True) -> None:
        super().__init__(program.module, garbage_collect_values=True)
        self.images, self.tokens, self.site = tuple(images), program.anatomy.tokens, 0
        self.untouched = (ops.topk_mask_of_batch,) if budgets else ()
        self.tokens_of: list[tuple[Tensor, Tensor]] = []  # masks, and the token of each row

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """The call as it is, but for masks: these keep a random share of an image's tokens."""
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
        """The token of each row of a stream, which is known by the mask of its valid rows."""
        known = (tokens for valid, tokens in self.tokens_of if valid is rows)
        return next(known, torch.arange(rows.shape[1], device=rows.device).expand(rows.shape))

    def _chance(self, name: int) -> Tensor:
        """A number for each token; tokens with a positive one are kept."""
        generator = torch.Generator().manual_seed(1000 * self.site + name)
        share = 0.8 if (name + self.site) % 2 else 0.3  # so that counts differ, and rows are padded
        return torch.rand(self.tokens, generator=generator) - (1 - share)
