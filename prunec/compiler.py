"""The compiler, on one screen.

capture -> normalise -> recognise -> plan -> insert sites -> repair tokens -> certify -> lower -> measure
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from prunec import sources, targets
from prunec.anatomy import Anatomy
from prunec.capture import capture
from prunec.certificate import Certificate, certify
from prunec.passes import BACK, FRONT, run_passes
from prunec.plan import make_plan
from prunec.policy import Policy
from prunec.program import Program, ProgramModule, Stage
from prunec.sources import Source

PolicyLike = Policy | str | Path | Mapping[str, Any]


@dataclass(frozen=True)
class Compiled:
    """One model through the compiler: before, after, and the proof."""

    dense: Program  # captured and recognised, nothing inserted
    pruned: Program
    certificate: Certificate


def compile_source(source: Source, policy: Policy) -> Compiled:
    """The whole way from a module to a certified program."""
    captured = capture(source.module, source.args, source.kwargs)
    dense = run_passes(FRONT, captured)
    planned = plan(dense, policy)
    pruned = run_passes(BACK, planned)
    certificate = certify(dense, pruned)
    stage = Stage("certify", certificate.seconds, {"forwards": 3}, (str(certificate),))
    return Compiled(dense, pruned.replace(stages=(*pruned.stages, stage)), certificate)


def plan(dense: Program, policy: Policy) -> Program:
    """The policy made concrete for this model."""
    assert dense.anatomy is not None
    start = time.perf_counter()
    made = make_plan(policy, dense.anatomy)
    stage = Stage("plan", time.perf_counter() - start, {"sites": len(made.sites)}, made.notes)
    return dense.replace(plan=made, stages=(*dense.stages, stage))


# --- the public verbs -------------------------------------------------------------------------


def transform(
    model: nn.Module,
    policy: PolicyLike,
    *,
    keep: float | None = None,
    blocks: tuple[int, ...] | None = None,
    example: Any = None,
) -> nn.Module:
    """An unmodified Vision Transformer in, the same model with fewer tokens out.

    Args:
        model: a timm, Hugging Face or other module in eval mode. It is not changed; parameters are shared.
        policy: the name of a preset, a file, a mapping, or a `Policy`.
        keep: the share of the patch tokens entering a site that survives it; the policy's own when left out.
        blocks: the blocks that have a site, counted from 0; the policy's own when left out.
        example: an input (tensor, tuple, or mapping of keywords); inferred for timm and Hugging Face models.

    Returns:
        A module with the same signature, outputs and parameter names.

    Raises:
        PruneError: with what, where and what to do; see prunec.errors for the tree.
    """
    chosen = load_policy(policy, keep=keep, blocks=blocks)
    compiled = compile_source(sources.from_module(model, example), chosen)
    return ProgramModule(compiled.pruned)


def anatomy(model: nn.Module, *, example: Any = None) -> Anatomy:
    """What prunec recognises in a model."""
    source = sources.from_module(model, example)
    recognised = run_passes(FRONT, capture(source.module, source.args, source.kwargs))
    assert recognised.anatomy is not None
    return recognised.anatomy


def load_policy(
    policy: PolicyLike, *, keep: float | None = None, blocks: tuple[int, ...] | None = None
) -> Policy:
    """A policy from a name, file, mapping or Policy, with overrides."""
    loaded = policy if isinstance(policy, Policy) else Policy.load(policy)
    return loaded.override(keep=keep, blocks=blocks) if keep is not None or blocks is not None else loaded


def lower(compiled: Compiled, target: str) -> nn.Module:
    """The pruned program on a backend, with the original's signature."""
    return targets.LoweredModule(compiled.pruned, targets.load(target).lower(compiled.pruned))
