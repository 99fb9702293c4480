"""The dense graph, interpreted for one image with the choices of another program's run.

All rows stay, so the sizes that tracing burnt in fit, and a token keeps its number. Tokens that a site leaves
out are NaN from there on (see poison.py):

    s3 -- choice: rows 3, 5 leave -- s3 with rows 3, 5 NaN -- norm -- linear -- .. -- attention

A call runs as it is. Where rows meet in it, it runs on the living rows alone and its result is put back in
place (attention; a mean, if tokens that leave are lost), or on the whole stream (a convolution, an output; a
mean, if they are only set aside). The whole stream is computed from the last state, with its dead rows
restored as the policy says (see fates.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.functional import scaled_dot_product_attention

from prunec import compat
from prunec.dataflow.heads import ClassScores
from prunec.ir import graph
from prunec.ir.program import Planned, Recognised
from prunec.policy.site_plan import Site
from prunec.scorers.scoring import state_of
from prunec.verify import fates, poison
from prunec.verify.choices import Choice, refuse, short_calls, whole_calls
from prunec.verify.fates import NAN, Epoch, Merged


class UnprovenError(Exception):
    """A program cannot be compared with the dense graph; the reason says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason  # an interpreter adds the node to the message


class Reference(fx.Interpreter):
    """One image through the dense graph.

    Args:
        dense: the recognised program.
        program: the pruned one, of which only plan, anatomy and the calls on the whole stream are read.
        chosen: what each site chose for this image.
        scores: where tokens that have exited are painted over.
    """

    def __init__(
        self, dense: Recognised, program: Planned, chosen: Sequence[Choice], scores: ClassScores | None
    ) -> None:
        super().__init__(dense.module, garbage_collect_values=True)
        self.anatomy, self.plan, self.scores = program.anatomy, program.plan, scores
        anatomy, plan, self.whole_calls = self.anatomy, self.plan, whole_calls(dense, program)
        self.short_calls = short_calls(program)
        self.inner = anatomy.prefix, anatomy.tokens - anatomy.suffix
        self.lossy = plan.fate in ("drop", "fuse")
        self.sites: dict[str, tuple[int, Site, Choice]] = {
            state_of(anatomy, site): (number, site, choice)
            for number, (site, choice) in enumerate(zip(plan.sites, chosen, strict=True))
        }
        rejoins = plan.rejoin is not None and plan.sites
        self.rejoin = anatomy.blocks[plan.rejoin].branches[0].state if rejoins else None  # type: ignore[index]
        self.epoch: Epoch | None = None
        self.merged: Merged | None = None
        self.canvas: Tensor | None = None  # class scores of tokens that have exited
        self.states: dict[fx.Node, tuple[Tensor, Epoch | None]] = {}
        self.restored: dict[fx.Node, Any] = {}  # inputs, and states in front of a site
        self.hurt: set[fx.Node] = set()  # values with dead rows
        self.found: dict[str, tuple[Tensor, int]] = {}  # state -> its value, and after how many sites it is
        self.behind = 0
        self._alive = poison.Memory()
        self.outputs: Any = None

    # --- nodes ----------------------------------------------------------------------------------

    def run_node(self, n: fx.Node) -> Any:
        """A call on rows of which some are dead, or as it is."""
        if n.op == "output":
            return fx.node.map_arg(n.args[0], lambda source: self.whole(source, {}))
        hurt = [source for source in n.all_input_nodes if source in self.hurt]
        value = self._call(n, hurt) if hurt else super().run_node(n)
        if n.op == "placeholder":
            self.restored[n] = value
        if self.scores is not None and n.name == self.scores.node:
            value = self._painted(self.whole(n, {}) if self._alive(value) != {} else value)
        if n.name in self.anatomy.states:
            value = self._state(n, value)
        if (hurt or n.name in self.sites) and any(
            self._alive(leaf) != {} for leaf in compat.tree_leaves(value)
        ):
            self.hurt.add(n)
        return value

    def whole(self, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
        """A value with all its rows, computed from the last states where rows of it are dead."""
        if node in self.restored:
            return self.restored[node]
        if node in self.states:
            x, epoch = self.states[node]
            if epoch is None or self._alive(x) == {}:
                return x
            return self._shaped(epoch.whole(self._rows(x)), x)
        if node.op == "get_attr":
            return super().run_node(node)
        if node in self.env and node not in self.hurt:
            return self.env[node]
        if node not in known:
            given = {source: self.whole(source, known) for source in node.all_input_nodes}
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: given[source])
            known[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        return known[node]

    # --- calls ----------------------------------------------------------------------------------

    def _call(self, n: fx.Node, hurt: Sequence[fx.Node]) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if graph.is_getitem(n):
            return args[0][args[1]]
        leaves = compat.tree_leaves([self.env[source] for source in hurt])
        found = self._on_rows(n, args, kwargs, [leaf for leaf in leaves if self._alive(leaf) != {}])
        return self.whole(n, {}) if found is None else found

    def _on_rows(self, n: fx.Node, args: Any, kwargs: Any, tensors: Sequence[Tensor]) -> Any:
        """The result of a call on living rows; None where it gets the whole stream instead."""
        streams = [(x, places) for x in tensors if (places := self._alive(x)) is not None]
        if len(streams) < len(tensors):  # rows on two axes of a grid
            return None
        if n.name in self.whole_calls:
            return None
        core = n.name in self.anatomy.cores
        pairs = any(len(places) > 1 for _, places in streams)  # something of every token for every token
        alone = core or pairs or self.lossy
        if graph.op(n) == "scaled_dot_product_attention":
            return self._attention(n, args, kwargs, weighs=core) if alone else None
        if core and self._log_size is not None:
            args = (args[0] + self._log_size.to(args[0].dtype), *args[1:])
            streams = [(args[0], streams[0][1])]
        as_is = super().call_function(n.target, args, kwargs)
        _check_no_numbers(n, as_is)
        if self._follows(n, as_is, streams):
            return as_is
        if len(streams) == 1 and len(streams[0][1]) == 1:
            (axis,) = streams[0][1]
            rows = poison.picked(n.target, args, kwargs, streams[0][0], axis)  # type: ignore[arg-type]
            if rows is not None:
                keeps = self._keeps_patches(rows, streams[0][0].shape[axis])
                keeps = keeps or n.name in self.short_calls  # in another order, which nothing reads
                return as_is if keeps and self._is_stream(as_is) else None
        if self._is_stream(as_is) and not poison.meet(n.target, args, kwargs):  # type: ignore[arg-type]
            return as_is
        return poison.on_living(n.target, args, kwargs, as_is, streams) if alone else None  # type: ignore[arg-type]

    def _follows(self, n: fx.Node, result: Any, streams: Sequence[tuple[Tensor, poison.Alive]]) -> bool:
        """Whether a result has the dead rows of an operand, and no others: row by row, or pair by pair."""
        for leaf in compat.tree_leaves(result):
            if not isinstance(leaf, Tensor) or not leaf.numel():
                continue
            places = self._alive(leaf)
            if not places or not all(
                any(
                    x.shape[axis] == leaf.shape[found] and torch.equal(index, places[found])
                    for x, dead in streams
                    for axis, index in dead.items()
                )
                for found in places
            ):
                return False
        return True

    def _is_stream(self, result: Any) -> bool:
        """Whether whole rows are dead or alive in a result, or nothing is dead."""
        for leaf in compat.tree_leaves(result):
            places = self._alive(leaf)
            if places is None or any(leaf.shape[axis] < self.anatomy.grid for axis in places):
                return False
        return True

    def _keeps_patches(self, rows: Sequence[Sequence[int]], length: int) -> bool:
        """Whether the rows that a call picks by position are in order, and hold all patches or none."""
        picked = [row for leaf in rows for row in leaf]
        missing = self.anatomy.tokens - length
        first = max(0, self.inner[0] - missing)
        last = first + self.anatomy.grid
        patches = [row for row in picked if first <= row < last]
        return picked == sorted(set(picked)) and len(patches) in (0, self.anatomy.grid)

    def _attention(self, n: fx.Node, args: Any, kwargs: Any, *, weighs: bool) -> Any:
        """Fused attention of the living rows among themselves."""
        given = {**dict(zip(compat.argument_names_of(n.target), args, strict=False)), **kwargs}
        query, key, value = (given.pop(name) for name in ("query", "key", "value"))
        axis = query.dim() - 2
        found = [self._alive(x) or {} for x in (query, key, value)]
        if any(set(places) - {axis} for places in found):
            return None
        rows, keys, values = (
            places.get(axis, torch.arange(x.shape[axis], device=x.device))
            for places, x in zip(found, (query, key, value), strict=True)
        )
        if not torch.equal(keys, values):
            return None
        mask = given.pop("attn_mask", None)
        for place, index in ((-2, rows), (-1, keys)):
            mask = mask if mask is None or mask.shape[place] == 1 else mask.index_select(place, index)
        if weighs and self._log_size is not None:
            bias = self._log_size[keys].to(query.dtype)
            if mask is not None and mask.dtype == torch.bool:
                mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, float("-inf"))
            mask = bias.expand(1, 1, 1, -1) if mask is None else mask + bias
        operands = (
            query.index_select(axis, rows),
            key.index_select(axis, keys),
            value.index_select(axis, keys),
        )
        short = scaled_dot_product_attention(*operands, attn_mask=mask, **given)
        whole = short.new_full((*query.shape[:-1], short.shape[-1]), NAN)
        return whole.index_copy(axis, rows, short)

    @property
    def _log_size(self) -> Tensor | None:
        """The logarithm of the number of tokens that each stands for, added to its logits as a key: [T]."""
        weighs = self.plan.rules.attention == "proportional" and self.merged is not None
        return self.merged.size.log() if weighs else None  # type: ignore[union-attr]

    # --- states ---------------------------------------------------------------------------------

    def _state(self, n: fx.Node, x: Tensor) -> Tensor:
        self.states[n], self.found[n.name] = (x, self.epoch), (x, self.behind)
        if n.name == self.rejoin:
            self.restored[n] = x = self.whole(n, {})
            self.epoch = None
        elif n.name in self.sites:
            x = self._chosen(n, x, *self.sites[n.name])
        return x

    def _chosen(self, n: fx.Node, x: Tensor, number: int, site: Site, choice: Choice) -> Tensor:
        """A state after its site."""
        step = self.plan.step(site)
        whole = self._rows(self.whole(n, {}))
        rows = whole if step.reactivate else self._rows(x)
        if not torch.equal(~rows.isnan().any(dim=1), choice.entering):
            raise UnprovenError(f"site {site} chooses among other tokens than the dense graph has there")
        if choice.partner is not None and step.scorer.kind != "similarity":
            self._check_partners(rows if choice.metric is None else choice.metric, site, choice)
        if step.fate == "fuse":
            rows = fates.fused(rows, choice, step)
        elif step.fate == "merge":
            leave = site.tokens - (self.anatomy.tokens - self.anatomy.grid) - site.keep
            self.merged = fates.merged(rows, choice, step, self.merged, (site.keep, leave), self.inner)
            rows = self.merged.x
        elif step.fate == "exit":
            self._exit(choice, site)
        rows = rows.masked_fill(~choice.alive[:, None], NAN)
        self.epoch = self._epoch(whole, rows, choice, anew=step.reactivate)
        made = self._shaped(rows, x)
        if step.fate == "merge" and self.plan.rules.restored == "copy":
            self.states[n] = made, self.epoch
        else:
            self.restored[n] = self._shaped(whole, x)
        self.behind = number + 1
        return made

    def _epoch(self, whole: Tensor, rows: Tensor, choice: Choice, *, anew: bool) -> Epoch:
        """The state of all tokens behind a site, whose living rows are given."""
        if not self.plan.rules.represents or choice.partner is None:
            return Epoch(choice.alive, whole)
        before = None if anew or self.epoch is None else self.epoch.group
        group = fates.represented(choice, before)
        return Epoch(choice.alive, whole, group, rows if self.plan.rules.restored == "share" else None)

    def _check_partners(self, metric: Tensor, site: Site, choice: Choice) -> None:
        """Check that each token that leaves is represented by the patch it is most similar to."""
        likeness = fates.likeness(metric, choice, self.inner)
        found = likeness.gather(1, choice.partner[choice.leaving, None])  # type: ignore[index]
        if found.numel() and bool((found[:, 0] < likeness.max(dim=1).values - 1e-4).any()):
            refuse(site, "are not those that dropped tokens are most similar to")

    def _exit(self, choice: Choice, site: Site) -> None:
        if choice.classes is None:
            refuse(site, "were chosen by no class scores")
        canvas = torch.zeros_like(choice.classes) if self.canvas is None else self.canvas
        self.canvas = torch.where(choice.leaving[:, None], choice.classes, canvas)

    def _painted(self, scores: Tensor) -> Tensor:
        """The head's class scores, and for tokens that have exited the scores they exited with."""
        if self.scores is None or self.canvas is None or self.epoch is None:
            return scores
        there = scores.movedim(self.scores.axis, -1)
        inner = slice(None) if self.scores.all_tokens else slice(*self.inner)
        alive, canvas = self.epoch.alive[inner, None], self.canvas[inner].to(there.dtype)
        rows = torch.where(alive, there.reshape(len(canvas), -1), canvas)
        return rows.reshape(there.shape).movedim(-1, self.scores.axis)

    def _rows(self, x: Tensor) -> Tensor:
        """A state as [T, C]."""
        rows = x.movedim(self.anatomy.token_dim, 0)
        if rows.dim() != 3 or rows.shape[1] != 1:
            raise UnprovenError(f"one image is {rows.shape[1]} streams of tokens here")
        return rows[:, 0]

    def _shaped(self, rows: Tensor, like: Tensor) -> Tensor:
        return rows.unsqueeze(1).movedim(0, self.anatomy.token_dim).reshape(like.shape)


def _check_no_numbers(n: fx.Node, result: Any) -> None:
    """Refuse numbers of rows, such as an argsort's: they would name other rows here than in the program."""
    if isinstance(result, tuple | list):
        result = [result[user.args[1]] for user in n.users if graph.is_getitem(user) and user.users]  # type: ignore[index]
    for leaf in compat.tree_leaves(result):
        if isinstance(leaf, Tensor) and leaf.numel() and not poison.holds_nan(leaf):
            raise UnprovenError(f"{graph.place(n)} computes integers from tokens, which may be row numbers")
