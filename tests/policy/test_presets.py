"""What holds for every preset: its controls, its plan as data, its place among the models that it fits."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from prunec import ops
from prunec.calibration.kept import count_kept
from prunec.errors import PolicyError
from prunec.ir.program import Planned, Program, Recognised
from prunec.passes import BACK, run_passes
from prunec.passes.controls import RandomScores, Slices
from prunec.policy.policy import Policy, presets
from prunec.policy.site_plan import make_plan
from tests.tiny import ViT, dialect_of, pixels, recognised, run

SEGMENTER = {"dtop"}


def dense_of(name: str) -> Recognised:
    """A model that the preset fits: 6 x 6 patches, four blocks."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"read": lambda x: x[:, 1:]} if name in SEGMENTER else {}
    return recognised(ViT(depth=4, side=6, **options), pixels(3, side=6))


def visible(name: str) -> Policy:
    """The preset, with rates at which a model of 36 patches prunes at every site."""
    policy = presets()[name]
    data = policy.model_dump()
    for step in (data, *data["then"]):
        selector = step["selector"]
        selector["remove"] = 0.1 if selector["remove"] is not None else None
        selector["multiple_of"] = 1
        merges = step["scorer"]["kind"] == "similarity"
        selector["at"] = (0.05 if merges else 0.3) if selector["at"] is not None else None
    return Policy.load(data)


@pytest.fixture(scope="module", params=sorted(set(presets()) - {"none"}))
def pruned(request: pytest.FixtureRequest) -> Planned:
    """A small model under one preset, not calibrated."""
    dense = dense_of(request.param)
    plan = make_plan(visible(request.param), dense.anatomy)
    assert plan.sites
    program = run_passes(BACK, dense.planned(plan))
    if plan.rules.scorer.kind == "novelty":  # which is above 0 wherever two tokens differ
        for number in range(len(plan.sites)):
            program.module.get_buffer(f"prunec.site_{number}.threshold").fill_(4.0)
    return program


def test_the_ideal_control_scores_and_selects_nothing(pruned: Planned) -> None:
    x = pixels(3, side=6)
    ideal = run_passes((Slices(),), pruned)
    assert set(dialect_of(ideal)) <= {"rows", "put_first", "attend_states"}
    assert not any(isinstance(node.target, ops.Learned) for node in ideal.graph.nodes)
    (found,), (expected,) = run(ideal, x), run(pruned, x)
    assert found.shape == expected.shape
    assert bool(found.isfinite().all())


def test_the_random_control_keeps_as_many_others(pruned: Planned) -> None:
    x = pixels(3, side=6)
    random = run_passes((RandomScores(),), pruned)
    assert kept_by(random, x) == kept_by(pruned, x)  # with one site of several images, image by image
    first, again = (rows_of(random, x, seed) for seed in (0, 1))
    assert not all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_a_plan_is_plain_data(pruned: Planned) -> None:
    data = json.loads(json.dumps(pruned.plan.as_dict()))
    assert [site["block"] for site in data["sites"]] == [site.block for site in pruned.plan.sites]
    assert Policy.load(data["policy"]) == pruned.plan.rules


class _Watching(fx.Interpreter):
    """Keeps what selections choose."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.rows: list[Tensor] = []

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        result = super().call_function(target, args, kwargs)
        if target is ops.pack:
            self.rows.append(args[0])
        elif target in ops.SELECTIONS:
            self.rows.append(result.sort(dim=1).values)
        return result


def rows_of(program: Program, x: Tensor, seed: int = 0) -> list[Tensor]:
    """The first site's choice, which depends on no other."""
    torch.manual_seed(seed)
    watching = _Watching(program.module)
    with torch.no_grad():
        watching.run(x)
    return watching.rows[:1]


def kept_by(program: Program, x: Tensor) -> list[int]:
    """How many rows each image keeps at the first site."""
    (rows,) = rows_of(program, x)
    return rows.sum(dim=1).tolist() if rows.dtype == torch.bool else [rows.shape[1]] * len(rows)


def test_counts_that_only_images_tell_are_counted() -> None:
    dense = dense_of("algm")
    program = run_passes(BACK, dense.planned(make_plan(visible("algm"), dense.anatomy)))
    assert [site.known for site in program.plan.sites] == [False, False]  # type: ignore[union-attr]
    x = pixels(16, side=6)
    watching = _Watching(program.module)
    with torch.no_grad():
        watching.run(x[:8])
        watching.run(x[8:])
    sites = [watching.rows[number::2] for number in range(2)]
    expected = [float(torch.cat([kept[:, 1:].sum(dim=1) for kept in site]).float().mean()) for site in sites]
    assert count_kept(program, x) == pytest.approx(expected)


DROPPING = [name for name, policy in presets().items() if policy.fate in ("drop", "fuse") and name != "none"]


@pytest.mark.parametrize("name", DROPPING)
def test_without_a_way_back_dropping_is_refused_where_all_tokens_are_read(name: str) -> None:
    torch.manual_seed(0)
    dense = recognised(
        ViT(depth=4, side=6, read=lambda x: torch.cat([x[:, :1], x], dim=1)), pixels(3, side=6)
    )
    assert dense.anatomy.class_token == 0
    with pytest.raises(PolicyError, match="leaves tokens out for good") as caught:
        make_plan(visible(name).override(restore="none"), dense.anatomy)
    assert caught.value.where == "restore"
    assert make_plan(visible(name), dense.anatomy).sites


class Segmenter(nn.Module):
    """Class scores of each patch by the layers given, behind a small ViT."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.vit, self.last = ViT(depth=2, read=lambda x: x[:, 1:]), head

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.vit(x)  # [B, 25, 7]
        scores: Tensor = self.last(tokens.transpose(1, 2).unflatten(2, (5, 5)))
        return scores


@pytest.mark.parametrize(
    ("head", "fits"),
    [
        (nn.Identity(), True),
        (nn.Upsample(scale_factor=4.0), True),  # nothing learned comes behind the scores
        (nn.Conv2d(7, 3, 1), True),
        (nn.Conv2d(7, 3, 3, padding=1), False),  # tokens meet
        (nn.ConvTranspose2d(7, 3, 2, 2), False),  # finer than the tokens
        (nn.BatchNorm2d(7), False),  # nothing that makes classes
    ],
)
def test_early_exit_needs_class_scores_of_each_token(head: nn.Module, fits: bool) -> None:
    torch.manual_seed(0)
    dense = recognised(Segmenter(head).eval())
    planned = dense.planned(make_plan(Policy.load("dtop").override(blocks=[1]), dense.anatomy))
    if fits:
        assert "paint" in dialect_of(run_passes(BACK, planned))
        return
    with pytest.raises(PolicyError, match="class scores"):
        run_passes(BACK, planned)
