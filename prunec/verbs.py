"""What people call: transform, optimize, load, anatomy, diff."""

from __future__ import annotations

import copy
import dataclasses
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunec import artefact, figures, sources, targets
from prunec.anatomy import Anatomy
from prunec.calibrate import Calibration
from prunec.compiler import Compiled, compile_recognised, compile_source, has_blanks, recognise
from prunec.deprecated import old_spellings
from prunec.diff import compare, text
from prunec.errors import SourceError, UsageError
from prunec.figures import Progress
from prunec.labels import fitting
from prunec.lowering import choose, from_dict
from prunec.manifest import KEYS
from prunec.modes import ModeLike
from prunec.pictures import SCENES, doubts, pictures_of, split_off
from prunec.planner.goal import Goal
from prunec.planner.planned import Request, Search
from prunec.planner.planned import plan as plan_schedule
from prunec.planner.schedule import Schedule, scheduled
from prunec.policy import Policy, PolicyLike
from prunec.program import Program, ProgramModule
from prunec.report import Report
from prunec.sources import Pictures, Source
from prunec.verbs_plan import as_source
from prunec.verbs_plan import latency_table as latency_table
from prunec.verbs_plan import plan as plan
from prunec.verbs_plan import sweep as sweep
from prunec.version import __version__
from prunec.within import with_part


@old_spellings
def transform(
    model: nn.Module,
    policy: PolicyLike,
    *,
    example: Any = None,
    submodule: str | None = None,
    mode: ModeLike | None = None,
    calibration: Tensor | None = None,
    calibrate: bool = True,
) -> nn.Module:
    """An unmodified Vision Transformer in, the same model with fewer tokens out.

    Args:
        model: a timm, Hugging Face or other module in eval mode. It is not changed; parameters are shared.
        policy: a `Policy`, such as `Policy.load("evit", keep=0.5)`, a preset's name, a file, or a mapping.
        example: an input (tensor, tuple, or mapping of keywords); inferred for timm and Hugging Face models.
        submodule: the path of a part, as in model.named_modules(): only this part is captured and pruned, on
            the inputs that it sees when the whole model runs on the example. A batch of two tells the batch
            best.
        mode: how a batch lies in memory whose images keep different numbers of tokens: `Static()`,
            `Padded(...)`, `Packed(...)`, `Masked()` (for training), or such a mode's name, "padded". Left
            out: static where all keep as many, else padded.
        calibration: images [n, ...], normalised, for a policy with learned parts or thresholds.
        calibrate: False leaves those parts as they are at first, for timing only, or because weights follow.

    Returns:
        A module with the same signature, outputs and parameter names. With `submodule`, a copy of the model
        with that part replaced: the parameters are shared.

    Raises:
        PruneError: with what, where and what to do; see prunec.errors for the tree.
    """
    chosen = Policy.load(policy)
    lowering = choose(chosen, mode)
    pictures = None if calibration is None else Pictures(calibration, None, "images")
    if submodule is not None and pictures is not None:
        raise UsageError(
            "a part of a model cannot be calibrated on images: it sees what the rest makes of them",
            where=f"submodule={submodule!r}",
            remedy="transform the whole model, or use a policy without learned parts",
        )

    def pruned(source: Source) -> nn.Module:
        compiled = compile_source(source, chosen, pictures, untrained=not calibrate, lowering=lowering)
        assert compiled.dense.anatomy is not None
        doubts = compiled.calibration.doubts if compiled.calibration else ()
        for told in (*compiled.dense.anatomy.notes, *doubts):
            warnings.warn(told, stacklevel=5)
        return ProgramModule(compiled.pruned, source.module)

    if submodule is None:
        return pruned(sources.from_module(model, example))
    return with_part(
        model, submodule, example, lambda part, call: pruned(Source(submodule, part, *call, "given"))
    )


def anatomy(model: nn.Module, *, example: Any = None) -> Anatomy:
    """What prunec recognises in a model."""
    found = recognise(sources.from_module(model, example)).anatomy
    assert found is not None
    return found


def diff(model: nn.Module, fast: nn.Module, *, example: Any = None) -> str:
    """What `transform` did to a model, block by block, as text."""
    if not isinstance(fast, ProgramModule):
        raise UsageError(
            "the second module was not made by prunec", remedy="give what prunec.transform returned"
        )
    dense = recognise(sources.from_module(model, example))
    return text(compare(dense, fast.__dict__["program"]))


@old_spellings
def optimize(
    source: Source | nn.Module | str,
    policy: PolicyLike,
    *,
    target: str = "inductor",
    images: str | Path | None = None,
    batch: int = 8,
    rounds: int = 20,
    calibrate: bool = True,
    mode: ModeLike | None = None,
    latency: float | None = None,
    speedup: float | None = None,
    max_drop: float | None = None,
    search: Search | None = None,
    schedule: Schedule | None = None,
    example: Any = None,
    preprocess: Any = None,
    say: Progress = lambda step: None,
    warn: Progress = warnings.warn,
) -> Result:
    """Transform, lower, and measure against the compiled dense model, the ideal and the random control.

    A policy with learned parts or thresholds is calibrated first: on some of the images of the folder (which
    are then left out of the measurement), else on images that the source knows, else on scenes of Shapes.

    Args:
        source: a SOURCE string, a `Source`, or a module.
        policy: as for `transform`.
        target: the backend, for the dense model and the controls too.
        images: a folder of images to measure on; subfolders that name the model's classes give labels.
        batch: images at a time when latency is measured.
        rounds: interleaved rounds of the latency measurement.
        calibrate: False leaves learned parts and thresholds as they are at first, for timing only.
        mode: as for `transform`; left out, a batch of one is static, and so is a policy that keeps as many
            tokens of every image.
        latency: plan blocks and counts so that this share of the compiled dense model's time is not exceeded.
        speedup: the same, said the other way round.
        max_drop: plan the fastest schedule whose outputs diverge no more than this from the dense model's.
        search: which schedules to look among, for such a goal.
        schedule: the stream's length behind each block that has a site, instead of the policy's rates.
        example: an input of a module or a SOURCE, as for `transform`, or its shapes as text: 2x3x224x224.
        preprocess: how pictures become that input, where the model does not say or you know better: a
            `Preprocess`, a processor of transformers, transforms of torchvision, or single values such as
            {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "crop": 0.9}.
        say: called with each step's name.
        warn: called with what should be known, and stops nothing.
    """
    backend = targets.load(target)
    chosen = Policy.load(policy)
    lowering = choose(chosen, mode, batch=batch, can=backend.modes)
    goals = (latency, speedup, max_drop)
    goal = None if goals == (None, None, None) else Goal.of(*goals)
    given = as_source(source, example, preprocess)
    pictures = pictures_of(given, images)
    fitted_on, planned = None, None
    if ((chosen.calibrated or chosen.ragged) and calibrate) or goal:
        pictures, fitted_on = split_off(given, pictures)
    say("capture, recognise")
    dense = recognise(given)
    if schedule is not None:
        assert dense.anatomy is not None
        chosen = scheduled(chosen, dense.anatomy, schedule)
    if goal is not None:
        assert fitted_on is not None
        request = Request(
            chosen, backend, target, batch, fitted_on, calibrate, mode, search or Search(), say, warn
        )
        planned = plan_schedule(given, dense, goal, request)
        chosen, lowering = planned.policy, planned.lowering
    if not calibrate or not (chosen.calibrated or chosen.ragged):
        fitted_on = None
    say("rewrite, certify")
    compiled = compile_recognised(
        given.module, dense, chosen, fitted_on, untrained=not calibrate, lowering=lowering
    )
    pruned, plain = compiled.pruned, compiled.plain
    lowered = {"dense": backend.lower(dense), "pruned": backend.lower(pruned)}
    scenes = pictures or fitted_on
    inputs = figures.inputs(dense, batch, scenes.images if scenes else None)
    timed = figures.latency(dense, plain, lowered, backend, inputs, rounds, say)
    if pictures:
        say("compare on images")
    told = _told(given, dense, pictures, fitted_on, compiled.calibration)
    for doubt in told:
        warn(doubt)
    accuracy = figures.accuracy(dense, plain, lowered, pictures) if pictures else None
    assert pruned.anatomy is not None
    assert pruned.plan is not None
    report = Report(
        source=given.spec,
        weights=given.weights,
        target=target,
        policy=chosen.model_dump(mode="json"),
        anatomy=pruned.anatomy,
        plan=pruned.plan,
        stages=pruned.stages,
        certificate=compiled.certificate,
        flops={"dense": figures.flops(dense, inputs), "pruned": figures.flops(pruned, inputs)},
        images=pictures.name if pictures else "",
        accuracy=accuracy,
        latency=timed,
        notes=(*given.notes, *_calibration_notes(compiled), *told),
        arch=given.arch,
        example=given.example,
        calibration=compiled.calibration,
        planned=planned,
        preprocess=pictures.preprocess if pictures else None,
    )
    return Result(targets.LoweredModule(pruned, lowered["pruned"], given.module), report)


@dataclass(frozen=True)
class Result:
    """What `optimize` made: a module on its backend, and the report."""

    module: nn.Module
    report: Report

    def save(self, folder: str | Path) -> Path:
        """Write the artefact: manifest, weights and report."""
        report = self.report.at(folder)
        data = report.as_dict()
        manifest = {key: data[key] for key in (*KEYS, "arch", "example")}
        versions = {"prunec": __version__, "torch": torch.__version__}
        files = {"report.json": json.dumps(data, indent=2) + "\n", "report.html": report.html()}
        return artefact.save(folder, {**manifest, "versions": versions}, self.module.state_dict(), files)


def load(
    folder: str | Path,
    model: nn.Module | None = None,
    *,
    example: Any = None,
    target: str | None = None,
    trust_source: bool = False,
    allow_pickle: bool = False,
) -> nn.Module:
    """The module of an artefact: its model is built anew, the weights loaded, the plan repeated.

    Args:
        folder: what `Result.save` or `prunec optimize -o` wrote.
        model: the model, for artefacts of a module that no SOURCE names. It is not changed.
        example: an input of that model, as for `transform`; left out, of the shapes that the artefact names.
        target: the backend; the one the artefact was made for when left out.
        trust_source: build the model from whatever SOURCE the artefact names, which may import and run code.
            Without it, only from shapes, timm:, hf: and .safetensors.
        allow_pickle: for such a source: unpickle whatever a .pt, .pth or .pt2 file holds.
    """
    manifest, state = artefact.read(folder)
    backend = targets.load(target or manifest["target"])
    if model is None:
        source = _source_of(manifest, folder, example, trust_source, allow_pickle)
    else:
        source = sources.from_module(model, example)
    module = copy.deepcopy(source.module) if model is not None else source.module
    _load_state(module, state, folder)
    source = dataclasses.replace(source, module=module)
    policy, options = Policy.load(manifest["policy"]), manifest["plan"].get("lowering", {})
    lowering = from_dict(policy, options, can=backend.modes)
    compiled = compile_source(source, policy, untrained=True, lowering=lowering)
    _check_names(compiled.pruned, state, folder)
    own = {name: tensor for name, tensor in state.items() if name.startswith("prunec.")}
    compiled.pruned.module.load_state_dict(own, strict=False)
    return targets.LoweredModule(compiled.pruned, backend.lower(compiled.pruned), source.module)


def _source_of(
    manifest: Mapping[str, Any], folder: str | Path, example: Any, trust_source: bool, allow_pickle: bool
) -> Source:
    if manifest["weights"] == "given" and ":" not in manifest["source"]:  # pkg.module:callable names one
        raise UsageError(
            f"{folder} was made from a module in Python, which no SOURCE names",
            remedy="give that module: prunec.load(folder, model=...)",
        )
    return sources.load_named(
        manifest.get("arch") or manifest["source"],
        folder,
        pretrained=False,
        trust_source=trust_source,
        allow_pickle=allow_pickle,
        example=(manifest["example"] or None) if example is None else example,
    )


def _load_state(module: nn.Module, state: Mapping[str, torch.Tensor], folder: str | Path) -> None:
    try:
        module.load_state_dict(state, strict=False)  # which names there must be, the graph knows
    except RuntimeError as error:
        raise SourceError(
            f"the weights of {folder} do not fit the model: {error}",
            remedy="give the model that the artefact was made from",
        ) from error


def _check_names(program: Program, state: Mapping[str, torch.Tensor], folder: str | Path) -> None:
    """The graph's weights are those of the artefact, no more and no less."""
    names = set(program.module.state_dict())
    for verb, differing in (("lack", names - set(state)), ("hold more than the model:", set(state) - names)):
        if differing:
            first, *others = sorted(differing)
            more = f" and {len(others)} more" if others else ""
            raise SourceError(
                f"the weights of {folder} {verb} {first}{more}",
                remedy="give the model that the artefact was made from",
            )


def _told(
    source: Source,
    dense: Program,
    pictures: Pictures | None,
    fitted_on: Pictures | None,
    calibration: Calibration | None,
) -> tuple[str, ...]:
    """What is doubtful about pictures, labels and calibration: warned of, and noted in the report."""
    shown = pictures or fitted_on
    about_pictures = () if shown is None or shown.name == SCENES else doubts(source, shown)
    labels = fitting(pictures, figures.classes(dense))[1] if pictures else ""
    return (*about_pictures, *filter(None, [labels]), *(calibration.doubts if calibration else ()))


def _calibration_notes(compiled: Compiled) -> tuple[str, ...]:
    if compiled.calibration is not None and compiled.calibration.name == SCENES:
        return ("calibrated on synthetic scenes: give --images for counts that fit your images",)
    if compiled.calibration is None and has_blanks(compiled.pruned):
        return ("the policy's learned parts are untrained: the figures say how fast it is, not how good",)
    return ()
