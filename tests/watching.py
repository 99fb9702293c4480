"""Compiled programs beside the references of tests/methods: models, policies, and what a run chose."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import timm
import torch
from torch import Tensor, fx, nn

from prunec import ops
from prunec.compiler import plan, recognise
from prunec.frontend import sources
from prunec.ir.program import Program, ProgramModule
from prunec.passes import BACK, run_passes
from prunec.policy.lowering import choose
from prunec.policy.policy import Policy
from prunec.policy.site_plan import Site
from prunec.verify.certificate import certify
from tests.families import difference, randomise
from tests.methods import Segmenter

TOLERANCE = 1e-5
GRID = (4, 7)
PATCHES = 28
CLASSES = 10

Groups = list[list[int]]  # for each token of one image, the original rows that it stands for


# --- models and images ----------------------------------------------------------------------


@functools.cache
def vit(depth: int = 4, **options: Any) -> nn.Module:
    """A timm ViT on 4 x 7 patches, every parameter filled with numbers that matter."""
    small = {"embed_dim": 48, "num_heads": 3, "depth": depth, "img_size": (64, 112), "num_classes": CLASSES}
    torch.manual_seed(0)
    return randomise(timm.create_model("vit_tiny_patch16_224", **{**small, **options}).eval(), seed=1)


@functools.cache
def segmenter(depth: int = 4, classes: int = 6) -> Segmenter:
    """The same with a linear head on every patch."""
    model = Segmenter(vit(depth), classes).eval()
    randomise(model.head, seed=2)
    return model


def images(batch: int = 3) -> Tensor:
    """Images of different contents and contrast."""
    contrast = torch.linspace(0.6, 1.6, batch).view(-1, 1, 1, 1)
    return torch.randn(batch, 3, 64, 112, generator=torch.Generator().manual_seed(2)) * contrast


# --- policies and programs ------------------------------------------------------------------


def preset(name: str, **changes: Any) -> Policy:
    """A preset, some of its axes changed: mappings are updated, anything else is replaced."""
    data = Policy.load(name).model_dump()
    for axis, change in changes.items():
        updates = isinstance(change, dict) and isinstance(data[axis], dict)
        data[axis] = {**data[axis], **change} if updates else change
    return Policy.load(data)


def at(*blocks: int) -> dict[str, Any]:
    """The axis `sites` changed to these blocks."""
    return {"blocks": blocks, "depths": None, "between": None}


@functools.cache
def recognised(model: nn.Module, size: tuple[int, ...] = ()) -> Program:
    """What prunec.transform starts with, once for each model and size of images."""
    height, width = size or (64, 112)
    return recognise(sources.from_module(model, torch.randn(3, 3, height, width)))


def transformed(model: nn.Module, policy: Policy | str, size: tuple[int, ...] = ()) -> nn.Module:
    """The certified program, as prunec.transform makes it.

    Learned parts get parameters that matter, thresholds are as they came.
    """
    dense = recognised(model, size)
    chosen = Policy.load(policy)
    pruned = run_passes(BACK, plan(dense, chosen, choose(chosen)))
    certify(dense, pruned, original=model)
    fast = ProgramModule(pruned)
    generator = torch.Generator().manual_seed(3)
    for name, tensor in fast.state_dict().items():
        if name.startswith("prunec.") and ".gate." in name:
            noise = torch.randn(tensor.shape, generator=generator)
            scaled = noise / tensor[0].numel() ** 0.5 if tensor.dim() > 1 else tensor + 0.4 * noise
            tensor.copy_(scaled)
    return fast


def sites(fast: nn.Module) -> tuple[Site, ...]:
    """The sites of its plan."""
    found: tuple[Site, ...] = fast.__dict__["program"].plan.sites
    return found


def counts(fast: nn.Module) -> list[tuple[int, int]]:
    """Block and count of each site, as the references want them."""
    return [(site.block, site.keep) for site in sites(fast)]


def learned(fast: nn.Module) -> list[dict[str, Tensor]]:
    """The parameters of the scorer of each site."""
    state = fast.state_dict()
    return [
        {name.removeprefix(start): tensor for name, tensor in state.items() if name.startswith(start)}
        for start in (f"prunec.site_{number}.gate." for number in range(len(sites(fast))))
    ]


def threshold(fast: nn.Module, number: int) -> Tensor:
    """The threshold of a site; to be filled in place."""
    found: Tensor = fast.state_dict()[f"prunec.site_{number}.threshold"]
    return found


def thresholds(fast: nn.Module) -> list[tuple[int, float]]:
    """Block and threshold of each site."""
    return [(site.block, float(threshold(fast, number))) for number, site in enumerate(sites(fast))]


def separate(fast: nn.Module, x: Tensor, share: float = 0.6) -> None:
    """Set each threshold where about `share` of the scores pass, and none is near to it."""
    for number in range(len(sites(fast))):
        score, _, prefix, suffix, _, valid = watch(fast, x).passing[number]
        end = score.shape[1] - suffix
        patches = score[:, prefix:end]
        patches = patches[patches.isfinite() if valid is None else valid[:, prefix:end]].sort().values
        middle, width = round((1 - share) * len(patches)), max(1, len(patches) // 10)
        near = patches[middle - width : middle + width + 1]
        place = int(near.diff().argmax())
        threshold(fast, number).fill_(float(near[place] + near[place + 1]) / 2)


# --- what a run chose -----------------------------------------------------------------------


class Watching(fx.Interpreter):
    """Runs a program and keeps, for each site and image, what each token of the stream stands for.

    `change` may replace the value of any call: it gets the target and the result.
    """

    def __init__(self, fast: nn.Module, change: Callable[[Any, Any], Any] | None = None) -> None:
        program = fast.__dict__["program"]
        super().__init__(program.module)
        self.anew = program.plan.rules.reactivate
        self.change = change
        self.found: list[list[Groups]] = []  # site -> image -> groups; of padding: none
        self.passing: list[tuple[Any, ...]] = []
        self.values: list[tuple[Any, Any]] = []  # (target, result) of every operator of the dialect
        self.remembered: Tensor | None = None
        self.chosen: list[tuple[Tensor, Tensor]] = []  # site -> rows of the stream before it, which count

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """As it is, and noted."""
        result = super().call_function(target, args, kwargs)
        if target is ops.threshold_mask:
            self.passing.append(args)
        elif target is ops.remembered:
            self.remembered = result
        elif target in ops.SELECTIONS:
            self._select(target, args, result)
        elif target is ops.pool:
            self._merge(args[2])
        if ops.is_ours(target):
            self.values.append((target, result))
        return result if self.change is None else self.change(target, result)

    def _select(self, target: Any, args: Any, index: Tensor) -> None:
        batch, tokens = args[0].shape
        counts = args[0].gather(1, index) if target is ops.pack else torch.ones_like(index, dtype=torch.bool)
        self.chosen.append((index, counts))
        first = self.anew or not self.found
        self.before = [[[row] for row in range(tokens)] for _ in range(batch)] if first else self.found[-1]
        now = [
            [groups[row] for row in rows] for groups, rows in zip(self.before, index.tolist(), strict=True)
        ]
        if target is ops.pack:
            now = [
                [group if valid else [] for group, valid in zip(*pair, strict=True)]
                for pair in zip(now, counts.tolist(), strict=True)
            ]
        if target is ops.select and args[4:] and args[4] and index.shape[1] < tokens:
            for number, rows in enumerate(index.tolist()):
                place = len(rows) - args[3] - 1
                stay = {*rows[:place], *rows[place + 1 :]}
                others = [self.before[number][row] for row in range(tokens) if row not in stay]
                now[number][place] = [row for group in others for row in group]
        self.found.append(now)

    def _merge(self, places: Tensor) -> None:
        for number, row_places in enumerate(places.tolist()):
            now: Groups = [[] for _ in self.found[-1][number]]
            for row, place in enumerate(row_places):
                if self.remembered is None or self.remembered[number, row] > 0:
                    now[place] = now[place] + self.before[number][row]
            self.found[-1][number] = now

    def places(self, image: int) -> list[list[int]]:
        """For each site, where the tokens that went on had stood among those before it."""
        return [index[image][counts[image]].tolist() for index, counts in self.chosen]

    def groups(self, image: int) -> list[Groups]:
        """For each site, what each token stands for, padding left out."""
        return [[sorted(group) for group in found[image] if group] for found in self.found]

    def rows(self, image: int) -> Groups:
        """For each site, the original rows that went on, where each token stands for one."""
        return [[group[0] for group in groups] for groups in self.groups(image)]


def watch(fast: nn.Module, x: Tensor, change: Callable[[Any, Any], Any] | None = None) -> Watching:
    """One run."""
    run = Watching(fast, change)
    with torch.no_grad():
        run.result = run.run(x)
    return run


def check(
    fast: nn.Module,
    reference: Callable[[Tensor], tuple[Any, ...]],
    *,
    x: Tensor | None = None,
    merged: bool = False,
    read: Callable[[Any], Tensor] = lambda output: output,
) -> Sequence[Any]:
    """Each image of a batch gets what the reference gives it, and its sites choose the same.

    Returns what the sites chose, for each image.
    """
    x = images() if x is None else x
    with torch.no_grad():
        output = read(fast(x))
        expected = [reference(image) for image in x]
    run = watch(fast, x)
    chosen = [run.groups(number) if merged else run.rows(number) for number in range(len(x))]
    assert chosen == [found[1] for found in expected]
    assert difference(output, torch.stack([found[0] for found in expected])) < TOLERANCE
    return chosen
