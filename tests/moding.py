"""One policy in every mode, side by side: programs, kept sets by force, and what a run made of each token.

Tokens go by their number in the whole stream here, whatever rows a mode has them in: that is what makes modes
comparable. Nothing of prunec's own comparison of modes is used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from prunec import compat, ops
from prunec.ir.program import Planned, Program, Recognised
from prunec.passes import BACK, lowering_passes, run_passes
from prunec.policy.lowering import MODES, choose
from prunec.policy.modes import ModeLike
from prunec.policy.policy import Policy
from prunec.policy.site_plan import make_plan
from tests.families import difference

TOLERANCE = 1e-5
Inputs = Callable[[Tensor], Sequence[Any]]  # images to the flat inputs of a program


# --- programs -------------------------------------------------------------------------------


def plain(dense: Recognised, policy: Policy, mode: ModeLike = "padded", **options: Any) -> Planned:
    """The program that a mode is made from; learned scorers get numbers that matter."""
    return run_passes(BACK[-1:], unfinished(dense, policy, mode, **options))


def unfinished(dense: Recognised, policy: Policy, mode: ModeLike = "padded", **options: Any) -> Planned:
    """The same before the last pass, which alone asks for the mode."""
    plan = make_plan(policy, dense.anatomy, choose(policy, mode, **options))
    program = run_passes(BACK[:-1], dense.planned(plan))
    torch.manual_seed(3)
    for name, parameter in program.module.named_parameters():
        if name.startswith("prunec."):
            nn.init.normal_(parameter, std=0.5)
    return program


def lowered(program: Program, mode: ModeLike, **options: Any) -> Planned:
    """A padded program in another mode, on the same parameters."""
    program = _for(program, mode, **options)
    return run_passes(lowering_passes(program.plan.lowering), program)


def _for(program: Program, mode: ModeLike, **options: Any) -> Planned:
    lowering = choose(program.plan.rules, mode, **options)
    return program.replace(plan=dataclasses.replace(program.plan, lowering=lowering))


def in_all_modes(program: Program) -> dict[str, Program]:
    """An unfinished program in every mode, on the same parameters and thresholds.

    Static only where it goes image by image: as many of every image is another program.
    """
    modes = MODES if program.plan.rules.ragged else ("padded", "packed", "masked")
    return {mode: lowered(run_passes(BACK[-1:], _for(program, mode)), mode) for mode in modes}


def separate(padded: Planned, flat: Sequence[Any], share: float = 0.5) -> None:
    """Put each threshold where about `share` of all scores pass and none is near."""
    for number in range(len(padded.plan.sites)):
        score, _, prefix, suffix, _, valid = run(padded, flat).scored[number]
        end = score.shape[1] - suffix
        patches = score[:, prefix:end]
        patches = patches[patches.isfinite() if valid is None else valid[:, prefix:end]].sort().values
        middle, width = round((1 - share) * len(patches)), max(1, len(patches) // 8)
        near = patches[middle - width : middle + width + 1]
        place = int(near.diff().argmax())
        assert float(near.diff()[place]) > 1e-4, "no score is within rounding of the threshold"
        threshold = padded.module.get_buffer(f"prunec.site_{number}.threshold")
        threshold.fill_(float(near[place] + near[place + 1]) / 2)


# --- runs -----------------------------------------------------------------------------------


class Tracking(fx.Interpreter):
    """Runs a program and keeps, for each site, which token every row is and whether it counts.

    With `kept` [sites, B, T] those tokens stay, whatever their scores; what a site has not stays away.
    """

    def __init__(self, program: Program, kept: Tensor | None = None) -> None:
        super().__init__(program.module)
        self.anew = program.plan.rules.reactivate
        self.states, self.kept = set(program.anatomy.states), kept
        self.rows: list[tuple[Tensor, Tensor]] = []  # tokens [B, n], live [B, n]
        self.scored: list[tuple[Any, ...]] = []
        self.values: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        """As it is; the states of the stream are noted."""
        result = super().run_node(n)
        if n.name in self.states:
            self.values[n.name] = result
        return result

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """As it is, but for what is kept by force."""
        if target in ops.MASKS:
            self.scored.append((*args, None) if len(args) < 6 else args)
            kept = target(*args) if self.kept is None else self._forced(args[0], self.scored[-1][5])
            self.rows.append((self._tokens(args[0]), kept))
            return kept
        if target is ops.kept_rows and self.kept is not None:  # which does not take fewer than two rows
            result = args[0].nonzero()[:, 1].unsqueeze(0)
        else:
            result = super().call_function(target, args, kwargs)
        if target in (ops.with_best_dropped, ops.context_mask):
            self.rows[-1] = self.rows[-1][0], result
        elif target in ops.FIXED:
            assert self.kept is None, "as many of every image: nothing to force"
            self.rows.append((self._tokens(args[0]).gather(1, result), result >= 0))
        elif target in ops.SELECTIONS:
            tokens, valid = self.rows[-1]
            self.rows[-1] = tokens.gather(1, result), valid.gather(1, result)
        return result

    def _tokens(self, rows: Tensor) -> Tensor:
        """Which token each row is that a site chooses from: [B, rows]."""
        if self.anew or not self.rows:
            return torch.arange(rows.shape[1]).expand(rows.shape[0], -1)
        return self.rows[-1][0]

    def _forced(self, score: Tensor, valid: Tensor | None) -> Tensor:
        """Rows of infinite score stay too: others are merged into them."""
        assert self.kept is not None
        wanted = self.kept[len(self.rows)].gather(1, self._tokens(score)) | score.isposinf()
        return wanted if valid is None else wanted & valid


def run(program: Program, flat: Sequence[Any], kept: Tensor | None = None) -> Tracking:
    """One run; its outputs are in `result`."""
    tracking = Tracking(program, kept)
    with torch.no_grad():
        tracking.result = tracking.run(*flat)
    return tracking


# --- what came of each token ----------------------------------------------------------------


@dataclasses.dataclass
class Outcome:
    """The outputs, for each site the tokens that are left, and every state, tokens in their places."""

    outputs: list[Tensor]
    left: list[Tensor]  # [B, T] each
    states: dict[str, Tensor]  # [B, T, C]: 0 where a token is gone


def outcome(program: Program, places: dict[str, int | None], flat: Sequence[Any], kept: Any) -> Outcome:
    """What a program makes of a batch; `places` says behind which site each state is."""
    tracking, tokens = run(program, flat, kept), program.anatomy.tokens
    left = [
        torch.zeros(len(number), tokens, dtype=torch.bool).scatter(1, number, valid)
        for number, valid in tracking.rows
    ]
    states = {}
    for name, value in tracking.values.items():
        if name in places:
            dim = program.anatomy.token_dim
            batch = 1 - dim
            rows = value.movedim((batch, dim), (0, 1))
            site = places[name]
            states[name] = rows if site is None else _in_place(rows, *tracking.rows[site], tokens)
    outputs = [value for value in tracking.result if isinstance(value, Tensor)]
    return Outcome(outputs, left, states)


def _in_place(rows: Tensor, numbers: Tensor, valid: Tensor, tokens: int) -> Tensor:
    """Padded rows [B, n, C], or packed ones [1, S, C], as tokens [B, T, C]."""
    if rows.shape[:2] == valid.shape:
        rows = rows[valid]
    else:
        assert rows.shape[:2] == (1, int(valid.sum()))
        rows = rows[0]
    image = torch.arange(len(valid)).unsqueeze(1).expand_as(valid)[valid]
    whole = rows.new_zeros(len(valid), tokens, rows.shape[-1])
    whole[image, numbers[valid]] = rows
    return whole


def places_of(program: Program) -> dict[str, int | None]:
    """The site that each state of the stream stands behind; None for the whole stream."""
    nodes = {node.name: node for node in program.graph.nodes}
    chosen = [node for node in program.graph.nodes if node.target in ops.SELECTIONS]
    numbers = {compat.expression(node.meta["val"].shape[1]): number for number, node in enumerate(chosen)}
    found: dict[str, int | None] = {}
    for name in program.anatomy.states:
        if name in nodes:
            size = compat.expression(nodes[name].meta["val"].shape[program.anatomy.token_dim])
            if size in numbers or size == program.anatomy.tokens:
                found[name] = numbers.get(size)
    return found


def apart(
    program: Program, places: dict[str, int | None], inputs: Inputs, images: Tensor, kept: Any
) -> Outcome:
    """The outcome of each image by itself, put together."""
    found = [
        outcome(program, places, inputs(images[[n]]), None if kept is None else kept[:, [n]])
        for n in range(len(images))
    ]
    return Outcome(
        [torch.cat(parts) for parts in zip(*(one.outputs for one in found), strict=True)],
        [torch.cat(parts) for parts in zip(*(one.left for one in found), strict=True)],
        {name: torch.cat([one.states[name] for one in found]) for name in found[0].states},
    )


def assert_modes_agree(
    programs: dict[str, Program], inputs: Inputs, images: Tensor, kept: Tensor | None = None
) -> Outcome:
    """All modes give the outputs of the padded one, and its states of every token that is left."""
    padded = programs["padded"]
    places = places_of(padded)
    expected = outcome(padded, places, inputs(images), kept)
    assert all(bool(value.isfinite().all()) for value in [*expected.outputs, *expected.states.values()])
    for mode, program in programs.items():
        single = isinstance(program, Planned) and program.plan.lowering.mode == "static"
        if single:
            found = apart(program, places_of(program), inputs, images, kept)
        else:
            found = outcome(program, places, inputs(images), kept)
        assert_same(found, expected, mode)
    return expected


def assert_same(found: Outcome, expected: Outcome, mode: str) -> None:
    """The same tokens are left, with the same values, and the outputs are the same."""
    for number, (one, other) in enumerate(zip(found.left, expected.left, strict=True)):
        assert torch.equal(one, other), f"{mode}: site {number} keeps other tokens"
    assert found.states.keys() == expected.states.keys()
    for name, other in expected.states.items():
        worst = difference(found.states[name], other)
        assert worst < TOLERANCE, f"{mode}: {name} differs by {worst:.1e}"
    for number, (one, other) in enumerate(zip(found.outputs, expected.outputs, strict=True)):
        worst = difference(one, other)
        assert worst < TOLERANCE, f"{mode}: output {number} differs by {worst:.1e}"


# --- kept sets ------------------------------------------------------------------------------


def kept_sets(program: Program, batch: int, *, seed: int = 0, least: int = 0) -> Tensor:
    """For each site and image the tokens that are to stay: [sites, B, T].

    The first image keeps everything, the second its protected tokens (and the `least` first patches), the
    others each another share.
    """
    anatomy, generator = program.anatomy, torch.Generator().manual_seed(seed)
    shares = torch.linspace(0.95, 0.1, max(1, batch - 2)).tolist()
    shares = [1.0, 0.0, *shares][:batch] if batch > 1 else [0.7]
    chance = torch.rand(len(program.plan.sites), batch, anatomy.tokens, generator=generator)
    kept = chance < torch.tensor(shares).view(1, -1, 1)
    end = anatomy.tokens - anatomy.suffix
    kept[:, :, : anatomy.prefix + least] = True
    kept[:, :, end:] = True
    return kept
