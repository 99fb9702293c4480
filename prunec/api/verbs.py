"""What people call: transform, optimize, benchmark, plan, sweep, save and load, anatomy, diff."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, nn

from prunec.api.deprecated import old_spellings
from prunec.api.hub import from_pretrained as from_pretrained
from prunec.api.loading import load as load
from prunec.api.results import Result as Result
from prunec.api.results import save as save
from prunec.api.side_by_side import benchmark as benchmark
from prunec.api.verbs_optimize import optimize as optimize
from prunec.api.verbs_plan import Chosen, PlanLike
from prunec.api.verbs_plan import latency_table as latency_table
from prunec.api.verbs_plan import plan as plan
from prunec.api.verbs_plan import sweep as sweep
from prunec.capture.submodule import with_submodule
from prunec.compiler import compile_recognised, recognise
from prunec.errors import UsageError
from prunec.frontend import sources
from prunec.frontend.sources import ImageSet, Source
from prunec.ir.program import ProgramModule
from prunec.policy.modes import ModeLike
from prunec.report.graph_diff import compare, text
from prunec.structure import Anatomy


@old_spellings
def transform(
    model: nn.Module,
    policy: PlanLike,
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
        policy: a `Policy`, such as `Policy.load("evit", keep=0.5)`, a preset's name, a file, a mapping, or
            what `plan` returned.
        example: an input (tensor, tuple, or mapping of keywords); inferred for timm and Hugging Face models.
        submodule: the path of a part, as in model.named_modules(): only this part is captured and pruned, on
            the inputs that it sees when the whole model runs on the example. A batch of two shows the batch
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
    chosen = Chosen.of(policy, mode)
    chosen.lowering()  # refuses what cannot run before a model is read
    image_set = None if calibration is None else ImageSet(calibration, None, "images")
    _check_calibration(image_set, calibrate=calibrate, submodule=submodule)
    if submodule is None:
        return _pruned(sources.from_module(model, example), chosen, image_set, calibrate=calibrate)
    return with_submodule(
        model,
        submodule,
        example,
        lambda part, call: _pruned(Source(submodule, part, *call, "given"), chosen, calibrate=calibrate),
    )


def _check_calibration(image_set: ImageSet | None, *, calibrate: bool, submodule: str | None) -> None:
    if image_set is None:
        return
    if not calibrate:
        raise UsageError(
            "there are images to calibrate on, and calibrate=False says not to",
            where="calibration=, calibrate=",
            remedy="leave one of them out",
        )
    if submodule is not None:
        raise UsageError(
            "a part of a model cannot be calibrated on images: it sees what the rest makes of them",
            where=f"submodule={submodule!r}",
            remedy="transform the whole model, or use a policy without learned parts",
        )


def _pruned(
    source: Source, chosen: Chosen, image_set: ImageSet | None = None, *, calibrate: bool
) -> nn.Module:
    """The model of a source with fewer tokens."""
    dense = recognise(source)
    compiled = compile_recognised(
        source.module, dense, chosen.on(dense), image_set, calibrate=calibrate, lowering=chosen.lowering()
    )
    if image_set is not None and compiled.calibration is None and compiled.pruned.plan.sites:
        raise UsageError(
            f"policy {chosen.policy.name!r} has nothing to calibrate: no learned parts, no thresholds",
            where="calibration=",
            remedy="leave calibration out",
        )
    doubts = compiled.calibration.doubts if compiled.calibration else ()
    for note in (*dense.anatomy.notes, *doubts):
        warnings.warn(note, stacklevel=5)
    return ProgramModule(compiled.pruned, source.module)


def anatomy(model: nn.Module, *, example: Any = None) -> Anatomy:
    """What prunec recognises in a model."""
    return recognise(sources.from_module(model, example)).anatomy


def diff(model: nn.Module, fast: nn.Module, *, example: Any = None) -> str:
    """What `transform` did to a model, block by block, as text."""
    if not isinstance(fast, ProgramModule):
        raise UsageError(
            "the second module was not made by prunec", remedy="give what prunec.transform returned"
        )
    dense = recognise(sources.from_module(model, example))
    return text(compare(dense, fast.program))
