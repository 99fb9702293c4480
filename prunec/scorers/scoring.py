"""The score of a site, written into the graph: what a scorer reads there, and the calls that score with it.

heuristics        read the tokens, or queries, keys, values, the map of the nearest attention before them
learned scorers   read the tokens or the images, and their own parameters
similarity        reads tokens or keys, and finds a partner as well; novelty reads them too, all pairs of them
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx, nn

from prunec import ops
from prunec.errors import PolicyError, RecognitionError
from prunec.ir import graph
from prunec.ir.writer import Writer
from prunec.policy.language import Scorer
from prunec.policy.site_plan import Site
from prunec.structure import Anatomy, Branch, Core
from prunec.token_axis.counted import follows, note
from prunec.token_axis.padding import mask_of


@dataclass(frozen=True)
class Scored:
    """What a scorer has to say."""

    score: fx.Node  # [B, T]
    partner: fx.Node | None = None  # of pairs: which row each would be merged into, [B, T]
    classes: fx.Node | None = None  # of a grader: class scores [B, T, K]
    similar: fx.Node | None = None  # of novelty: how alike any two tokens are, [B, T, T]


def branch_behind(anatomy: Anatomy, site: Site) -> Branch:
    """The branch that is the first to run without what a site leaves out."""
    block = anatomy.blocks[site.block]
    branch = block.branches[0] if site.where == "before_block" else block.mlp
    if branch is None:
        raise PolicyError(
            f"a site stands after the attention of block {site.block}, which has no MLP",
            where=f"block {site.block}, {block.path}",
            remedy="use where: before_block, or other blocks",
        )
    return branch


def state_of(anatomy: Anatomy, site: Site) -> str:
    """The value of the stream that a site reads."""
    return branch_behind(anatomy, site).state


class Scoring:
    """Scores one site."""

    def __init__(
        self,
        writer: Writer,
        names: Mapping[str, fx.Node],
        anatomy: Anatomy,
        site: Site,
        source: fx.Node,
        valid: fx.Node | None,
    ) -> None:
        self.writer, self.names, self.anatomy, self.site = writer, names, anatomy, site
        self.source = source  # the tokens to choose from
        self.valid = valid  # which of them count, if images differ
        self.ends, self.dim = (anatomy.prefix, anatomy.suffix), anatomy.token_dim

    def heuristic(self, scorer: Scorer) -> Scored:
        """A score without parameters."""
        call, kind = self.writer.call, scorer.kind
        if kind == "similarity":
            return Scored(*self.writer.two(self._pairs(scorer), "score", "partner"))
        if kind == "cls_attention":
            return Scored(self._class_attention(times_values=scorer.values))
        if kind == "received_attention":
            value = self._of_heads(self._attention().value)
            return Scored(call("score", ops.received, (self._map(), value, *self.ends, self.valid)))
        if kind == "change":
            return Scored(call("score", ops.change, (*self._mlp_before(), self.dim)))
        function = {"norm": ops.token_norm, "random": ops.random_score}[kind]
        return Scored(call("score", function, (self.source, self.dim)))

    def novelty(self, scorer: Scorer, gate: nn.Module | None) -> Scored:
        """How unlike others a token is, times how important a module takes it to be."""
        similar = self._similar(scorer)
        read: tuple[fx.Node | int | float | None, ...] = (similar, *self.ends, self.valid)
        if gate is not None:
            importance = self.learned("importance", gate, classes=False).score
            read = (*read, importance, scorer.importance)
        return Scored(self.writer.call("score", ops.novelty, read), similar=similar)

    def learned(self, kind: str, gate: nn.Module, *, classes: bool) -> Scored:
        """The score of a module, which says by `classes` what each token is, and so how sure it is."""
        scorer = ops.Learned(gate, kind, self.writer.number)
        alone = not getattr(gate, "context", False) or scorer.pixels or scorer.takes_valid
        if self.valid is not None and not alone:
            raise PolicyError(
                f"scorer {kind} looks at all patches together, and where images keep different numbers of "
                "them some are padding",
                where=f"the site before block {self.site.block}",
                remedy="let it take which patches count (prunec.scorers.gates.Gate.takes_valid), use "
                "selector.kind top_k in mode static, or fate preserve with reactivate",
            )
        read = self.names[self.anatomy.pixels] if scorer.pixels else self.source
        tensors = ops.tensors_of(gate).items()
        operands = [self.writer.parameter(f"gate.{name}", tensor) for name, tensor in tensors]
        valid = self.valid if scorer.takes_valid else None
        found = self.writer.call("score", scorer, (read, *self.ends, self.dim, valid, *operands))
        self._check_shape(kind, found, classes=classes)
        if scorer.pixels:  # which knows nothing of what earlier sites have dropped
            found = self.writer.call("there", ops.beside, (found, self.source, self.dim))
        if not classes:
            return Scored(found)
        return Scored(self.writer.call("doubt", ops.doubt, (found,)), classes=found)

    def _check_shape(self, kind: str, found: fx.Node, *, classes: bool) -> None:
        """One number for each patch, or one for each of its classes."""
        source, made = self.source.meta["val"], found.meta["val"]
        if made.dim() != 2 + classes or made.shape[1] != source.shape[self.dim]:
            patches = [*made.shape[:1], made.shape[1] - sum(self.ends), *made.shape[2:]]
            raise PolicyError(
                f"scorer {kind} gives {patches}, and must give one number for each of "
                f"{source.shape[self.dim] - sum(self.ends)} patches of each image",
                where=f"scorer.kind, the site before block {self.site.block}",
                remedy="let its forward return [B, N]",
            )

    # --- what is read ---------------------------------------------------------------------------

    def _attention(self) -> Core:
        """The last attention before the site: the block's own after it, an earlier block's before it."""
        last = self.site.block if self.site.where == "after_attention" else self.site.block - 1
        for block in reversed(self.anatomy.blocks[: last + 1]):
            core = block.attention.cores[0] if block.attention is not None else None
            if core is not None and core.node in self.anatomy.cores:
                return core
        raise RecognitionError(
            f"no attention stands before block {self.site.block}, so there is nothing of it to score by",
            where=f"site before block {self.site.block}",
            remedy="start at a later block",
        )

    def _of_heads(self, name: str) -> fx.Node:
        """Keys or values as [B, h, T, d]."""
        value = self.names[name].meta["val"]
        if value.dim() != 4 or value.shape[2] != self.anatomy.tokens:
            raise RecognitionError(
                f"the attention before block {self.site.block} has keys or values of the shape "
                f"{list(value.shape)}, not [images, heads, tokens, channels]",
                where=name,
                remedy="use a scorer that reads the tokens themselves",
            )
        return self.names[name]

    def _keys(self) -> fx.Node:
        """The keys as [B, h, T, d], also where they stand ready for the product that spells attention out."""
        core = self._attention()
        key, query = self.names[core.key], self.names[core.query].meta["val"]
        value = key.meta["val"]
        if core.form == "spelled" and value.dim() == 4 and value.shape[2] == query.shape[3]:
            return self.writer.call("keys", torch.transpose, (key, -2, -1))
        return self._of_heads(core.key)

    def _mlp_before(self) -> tuple[fx.Node, fx.Node]:
        """The stream before and after the MLP of the block before."""
        mlp = self.anatomy.blocks[self.site.block - 1].mlp if self.site.block else None
        if mlp is None:
            raise RecognitionError(
                f"no MLP stands before block {self.site.block}, so there is no change to score by",
                where=f"site before block {self.site.block}",
                remedy="start at a later block",
            )
        return self.names[mlp.state], self.names[mlp.add]

    def _class_attention(self, *, times_values: bool) -> fx.Node:
        core, row, call = self._attention(), self.anatomy.scoring_token, self.writer.call
        if core.form == "spelled":
            score = call("score", ops.class_row, (self.names[core.node], row))
        else:
            read = (self.names[core.query], self.names[core.key], row, core.scale, self._mask(core))
            score = call("score", ops.class_attention, read)
            self._follow_scale(core, score, 3)
        if not times_values:
            return score
        return call("score", ops.times_values, (score, self._of_heads(core.value)))

    def _map(self) -> fx.Node:
        core = self._attention()
        if core.form == "spelled":
            return self.names[core.node]
        read = (self.names[core.query], self.names[core.key], core.scale, self._mask(core))
        found = self.writer.call("map", ops.attention_map, read)
        self._follow_scale(core, found, 2)
        return found

    def _follow_scale(self, core: Core, made: fx.Node, place: int) -> None:
        """Where the scale of an attention follows the token count, that of its score does."""
        how = follows(self.names[core.node]).get(("scale",))
        if how is not None:
            note(made, (place,), how)

    def _mask(self, core: Core) -> fx.Node | None:
        """The mask of a fused attention, padding hidden on top of it."""
        mask = mask_of(self.names[core.node])
        return mask if self.valid is None else self.writer.call("mask", ops.key_mask, (self.valid, mask))

    def _similar(self, scorer: Scorer) -> fx.Node:
        call, dim = self.writer.call, self.dim
        if scorer.of == "keys":
            metric, dim = call("metric", ops.token_keys, (self._keys(),)), 1
        else:
            metric = self._normalised()
        return call("similar", ops.similarities, (metric, self.ends, dim, self.valid))

    def _normalised(self) -> fx.Node:
        """The tokens as the branch behind the site reads them: through its norm, where that is one call."""
        state = self.names[state_of(self.anatomy, self.site)]
        norms = [user for user in state.users if graph.op(user) == "layer_norm" and user.args[0] is state]
        if norms:
            read = (self.source, *norms[0].args[1:])
            return self.writer.call("metric", norms[0].target, read)  # type: ignore[arg-type]
        width = int(self.source.meta["val"].shape[-1])
        return self.writer.call("metric", torch.nn.functional.layer_norm, (self.source, (width,)))

    def _pairs(self, scorer: Scorer) -> fx.Node:
        call, metric = self.writer.call, self.source
        if scorer.of != "tokens":
            metric = call("metric", ops.token_keys, (self._keys(),))
        elif self.dim != 1:
            metric = call("metric", torch.movedim, (metric, self.dim, 1))
        if scorer.pairs == "windows":
            return call("pairs", ops.windows, (metric, *self._grid(), self.anatomy.prefix))
        return call("pairs", ops.pairs, (metric, *self.ends, self.valid))

    def _grid(self) -> tuple[int, int]:
        grid = grid_of(self.anatomy.grid, self.names[self.anatomy.pixels])
        if grid is None:
            raise PolicyError(
                "windows of 2 x 2 need the grid of patches, and the image's size tells none",
                where="scorer.pairs",
                remedy="use pairs: alternating",
            )
        return grid


def grid_of(patches: int, pixels: fx.Node) -> tuple[int, int] | None:
    """Rows and columns of patches, if square patches of the image explain their number."""
    value = pixels.meta["val"]
    if value.dim() != 4:
        return None
    height, width = (int(size) for size in value.shape[-2:])
    size = int((height * width / patches) ** 0.5)
    fits = size > 0 and (height // size) * (width // size) == patches
    return (height // size, width // size) if fits else None
