"""What the sites of a program chose in one run, taken from its selections: scoring is not checked here.

    score -- topk_mask -- with_best_dropped -- pack -- index      FIXED selections read the score itself
      |        kept           staying
    pairs -- partner -- members                                   merging reads a partner for each row

From here on a row is named by the number of its token in the whole stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, fx

from prunec import compat, ops
from prunec.errors import REPORT, VerificationError
from prunec.ir import arguments, graph
from prunec.ir.program import Planned, Recognised
from prunec.policy.site_plan import Site


def refuse(site: Site, what: str, image: int | None = None) -> NoReturn:
    """Raise the error that says what is wrong with the rows that a site keeps."""
    whose = "" if image is None else f" of image {image}"
    raise VerificationError(f"the rows{whose} that go on {what}", where=f"site {site}", remedy=REPORT)


@dataclass(frozen=True)
class Choice:
    """What one site chose for one image, by token: [T] each, or [n] where rows are listed."""

    entering: Tensor  # which tokens the site chose from: bool
    kept: Tensor  # which of them go on by themselves: bool
    place: int | None  # the token in whose place the fused one stands
    rows: Tensor  # tokens in the order of the rows that go on; padding left out: [n]
    where: Tensor  # the row that each token had before the site
    score: Tensor
    partner: Tensor | None = None  # the token that each would be merged into
    alike: Tensor | None = None  # its similarity to its partner
    classes: Tensor | None = None  # class scores: [T, K]
    metric: Tensor | None = None  # what distances are taken of, where not of the tokens themselves: [T, d]

    @property
    def alive(self) -> Tensor:
        """The tokens whose rows go on, that of the fused token among them: bool."""
        return torch.zeros_like(self.kept).index_fill(0, self.rows, True)

    @property
    def leaving(self) -> Tensor:
        """The tokens that do not go on by themselves: bool."""
        return self.entering & ~self.kept


@dataclass(frozen=True)
class SiteNodes:
    """The nodes of one selection, by name, and its raw values in one run."""

    index: fx.Node | None  # None in mode masked, where all rows stay in place
    kept: fx.Node | None  # the mask of kept rows; None where every image keeps as many
    staying: fx.Node | None  # the same with the row of the fused token
    score: fx.Node
    partner: fx.Node | None
    alike: fx.Node | None  # a pair of similarity and partner
    classes: fx.Node | None
    metric: fx.Node | None = None  # what distances are taken of, where not of the tokens themselves
    axis: int = 1  # of the tokens in that

    @property
    def nodes(self) -> list[fx.Node]:
        """The nodes whose values are needed."""
        found = (
            self.index,
            self.kept,
            self.staying,
            self.score,
            self.partner,
            self.alike,
            self.classes,
            self.metric,
        )
        return [node for node in found if node is not None]


def sites_of(program: Planned) -> list[SiteNodes]:
    """The selections of a program, in the order of its plan; VerificationError if one is not there."""
    found = [_site(node) for node in program.graph.nodes if node.target in ops.SELECTIONS]
    if len(found) < len(program.plan.sites) and program.plan.lowering.mode == "masked":
        found = [_in_place(node) for node in program.graph.nodes if node.target in ops.MASKS]
    if len(found) != len(program.plan.sites):
        raise VerificationError(
            f"the plan has {len(program.plan.sites)} sites, the rewritten graph selects {len(found)} times",
            remedy=REPORT,
        )
    return found


def _site(index: fx.Node) -> SiteNodes:
    staying = kept = None
    chosen = index
    if index.target not in ops.FIXED:
        staying = kept = chosen = arguments.operand(index, "kept")
        if staying.target is ops.with_best_dropped:
            kept = arguments.operand(staying, "kept")
        while chosen.target in (ops.with_best_dropped, ops.context_mask):
            chosen = arguments.operand(chosen, "kept")
    score, classes = _scores(chosen)
    group = next((user for user in index.users if user.target is ops.assign), None)
    partner = arguments.operand(group, "partner") if group is not None else None
    pair = partner.args[0] if partner is not None and graph.is_getitem(partner) else None
    alike = pair if isinstance(pair, fx.Node) and pair.target is ops.nearest else None
    given = arguments.bind(arguments.operand(alike, "similar")) if alike is not None else {"centre": None}
    measured = (given["metric"], given["dim"]) if given["centre"] is not None else ()
    return SiteNodes(index, kept, staying, score, partner, alike, classes, *measured)


def _in_place(chosen: fx.Node) -> SiteNodes:
    """A site whose rows all stay where they are."""
    kept = _then(chosen, ops.context_mask)
    score, classes = _scores(chosen)
    return SiteNodes(None, kept, _then(kept, ops.with_best_dropped), score, None, None, classes)


def _then(mask: fx.Node, target: object) -> fx.Node:
    """The result of an operation on a mask, or the mask where the operation is missing."""
    made = (user for user in mask.users if user.target is target and arguments.operand(user, "kept") is mask)
    return next(made, mask)


def _scores(chosen: fx.Node) -> tuple[fx.Node, fx.Node | None]:
    """The scores by which rows are chosen, and the class scores that these are made of."""
    score = arguments.operand(chosen, "score")
    return score, arguments.operand(score, "logits") if score.target is ops.doubt else None


def whole_calls(dense: Recognised, program: Planned) -> set[str]:
    """Calls to which the program gives the whole stream, and not the rows that are left.

    This is attention whose bias is made of a grid of all queries, and, where images keep different numbers of
    tokens, whatever would mix padding with other rows, such as a norm of the rows of all images at once.
    """
    cores, fixed = program.anatomy.cores, program.plan.lowering.fixed
    before, short = graph.by_name(dense.graph), short_calls(program)
    return {
        node.name
        for node in program.graph.nodes
        if node.op == "call_function"
        and (node.name in cores or not fixed)
        and node.name not in short
        and node.name in before
        and _sizes(node) == _sizes(before[node.name])  # not shortened by the pass liveness
    }


def short_calls(program: Planned) -> set[str]:
    """Calls to which the program gives only the rows that a site has left."""
    index = [node for node in program.graph.nodes if node.target in ops.SELECTIONS]
    counts = {compat.expression(node.meta["val"].shape[1]) for node in index}

    def short(node: fx.Node) -> bool:
        """A value without a type may have them."""
        if not isinstance(node.meta.get("val"), Tensor):
            return "val" not in node.meta
        return any(compat.expression(size).free_symbols & counts for size in graph.shape(node))

    return {node.name for node in program.graph.nodes if any(map(short, node.all_input_nodes))}


def _sizes(node: fx.Node) -> list[Any]:
    leaves = compat.tree_leaves(node.meta.get("val"))
    return [compat.expression(size) for leaf in leaves if isinstance(leaf, Tensor) for size in leaf.shape]


def choices(program: Planned, sites: Sequence[SiteNodes], values: Mapping[str, Any]) -> list[list[Choice]]:
    """For each site and image what was chosen, from the values of the site's nodes."""
    tokens, anew = program.anatomy.tokens, program.plan.rules.reactivate
    before: tuple[Tensor, Tensor] | None = None
    found = []
    for site, planned in zip(sites, program.plan.sites, strict=True):
        score = values[site.score.name]
        batch, length = score.shape[:2]
        in_place = torch.arange(length, device=score.device).expand(batch, -1)
        index = in_place if site.index is None else values[site.index.name]
        _check_rows(planned, index, batch, length)
        if anew and length != tokens:
            refuse(planned, f"are chosen among {length}, not among all {tokens} tokens again")
        if before is None or anew or (before[0].shape[1] != length == tokens):  # the whole stream
            before = in_place, torch.ones_like(in_place, dtype=torch.bool)
        raw = _Raw(site, values, index, *before, tokens, fused=program.plan.step(planned).fate == "fuse")
        found.append([raw.of(image, program.anatomy.suffix) for image in range(batch)])
        before = before[0].gather(1, index), raw.valid
    return found


class _Raw:
    """One site's values by row, to be turned into values by token."""

    def __init__(
        self,
        site: SiteNodes,
        values: Mapping[str, Any],
        index: Tensor,
        numbers: Tensor,
        entering: Tensor,
        tokens: int,
        *,
        fused: bool,
    ) -> None:
        self.site, self.values, self.tokens, self.fused = site, values, tokens, fused
        self.numbers, self.entering = numbers, entering  # which token each row is; which rows count
        self.index = index
        if site.staying is None:
            self.valid = torch.ones_like(self.index, dtype=torch.bool)
        else:
            self.valid = values[site.staying.name].gather(1, self.index)

    def of(self, image: int, suffix: int) -> Choice:
        """One image's choice."""
        numbers, entering = self.numbers[image], self.entering[image]
        rows = numbers[self.index[image]][self.valid[image]]
        alive = torch.zeros(self.tokens, dtype=torch.bool, device=rows.device).index_fill(0, rows, True)
        kept, place = alive, None
        if self.site.kept is not None:
            kept = self._by_token(image, self.values[self.site.kept.name][image])
            new = (alive & ~kept).nonzero()[:, 0].tolist()
            place = new[0] if new else None
        elif self.fused and self.index.shape[1] < len(numbers):
            place = int(rows[len(rows) - suffix - 1])
            kept = alive.index_fill(0, rows.new_tensor([place]), False)
        where = torch.arange(len(numbers), device=rows.device)
        partner = self._of(self.site.partner, image)
        return Choice(
            self._by_token(image, entering), kept, place, rows, self._by_token(image, where),
            self._by_token(image, self.values[self.site.score.name][image]),
            None if partner is None else self._by_token(image, numbers[partner]),
            self._alike(image),
            self._by_token(image, self._of(self.site.classes, image)),
            self._metric(image),
        )  # fmt: skip

    def _alike(self, image: int) -> Tensor | None:
        if self.site.partner is None:
            return None
        pair = self.site.alike
        likeness = self._of(self.site.score, image) if pair is None else self.values[pair.name][0][image]
        found: Tensor = self._by_token(image, likeness)
        return -found if pair is None else found

    def _metric(self, image: int) -> Tensor | None:
        node = self.site.metric
        if node is None:
            return None
        value: Tensor = self.values[node.name]
        found: Tensor = self._by_token(image, value.movedim(self.site.axis, 1)[image])
        return found

    def _of(self, node: fx.Node | None, image: int) -> Any:
        return None if node is None else self.values[node.name][image]

    def _by_token(self, image: int, value: Any) -> Any:
        """A value by row as a value by token, for valid rows."""
        if value is None:
            return None
        counts = self.entering[image]
        whole = value.new_zeros((self.tokens, *value.shape[1:]))
        return whole.index_copy(0, self.numbers[image][counts], value[counts])


def _check_rows(site: Site, index: Tensor, batch: int, length: int) -> None:
    """Check that an index is [B, n], within the stream that the site chooses from, and holds no row twice."""
    if index.dim() != 2 or len(index) != batch or index.dtype != torch.int64:
        refuse(site, f"are {index.dtype}{list(index.shape)}, expected int64[{batch}, n]")
    if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < length:
        refuse(site, f"are {int(index.min())} to {int(index.max())} of {length}")
    if bool((index.sort(dim=1).values.diff(dim=1) == 0).any()):
        refuse(site, "are not all different")
