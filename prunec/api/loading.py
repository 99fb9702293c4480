"""Artefacts, read back: from the file of their own, or built anew from where the model came from."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunec import targets
from prunec.artefact import artefact, portable
from prunec.artefact.manifest import Manifest, unreadable
from prunec.compiler import compile_source
from prunec.errors import SourceError, UsageError
from prunec.frontend import sources
from prunec.frontend.sources import Asked, Source
from prunec.ir.program import Program
from prunec.policy.lowering import from_dict
from prunec.policy.policy import Policy
from prunec.targets import Target


def load(
    folder: str | Path,
    model: nn.Module | None = None,
    *,
    example: Any = None,
    target: str | None = None,
    trust_source: bool = False,
    allow_pickle: bool = False,
    rebuild: bool = False,
) -> nn.Module:
    """The module of an artefact, from its own file: neither the model's source nor its library is needed.

    With `model`, `example`, `trust_source` or `rebuild`, and where there is no such file, the model is built
    anew from its source, the weights loaded, and the plan repeated.

    Args:
        folder: what `Result.save` or `prunec optimize -o` wrote. One of a part (`--submodule`) gives that
            part, to be put in its place: `model.backbone.body = prunec.load(folder)`.
        model: the model, for artefacts of a module that no SOURCE names. It is not changed.
        example: an input of that model, as for `transform`; left out, of the shapes that the artefact names.
        target: the backend; the one the artefact was made for when left out.
        trust_source: build the model from whatever SOURCE the artefact names, which may import and run code.
            Without it, only from shapes, timm:, hf: and .safetensors.
        allow_pickle: for such a source: unpickle whatever a .pt, .pth or .pt2 file holds.
        rebuild: build it anew, to have the model's own outputs and attributes, and its plan.
    """
    for name, given in (("trust_source", trust_source), ("allow_pickle", allow_pickle)):
        if given and model is not None:
            raise UsageError(
                f"{name} has no effect where the model is given: no source is read",
                where="load",
                remedy=f"leave {name} out",
            )
    place, found = artefact.opened(folder)
    chosen = target or found.target
    backend = targets.load(chosen, found.precision if chosen == found.target else "fp32")
    anew = rebuild or trust_source or allow_pickle or model is not None or example is not None
    if not anew and found.portable.file is not None:
        return _own(place, found, backend)
    manifest, state = artefact.read(folder)
    if model is None:
        source = _source_of(manifest, folder, example, trust_source, allow_pickle)
    else:
        source = sources.from_module(model, example)
        if manifest["submodule"]:
            source = sources.part_of(source, manifest["submodule"])
    module = copy.deepcopy(source.module) if model is not None else source.module
    _load_state(module, state, folder)
    source = dataclasses.replace(source, module=module)
    policy, options = Policy.load(manifest["policy"]), manifest["plan"].get("lowering", {})
    lowering = from_dict(policy, options, can=backend.modes)
    compiled = compile_source(source, policy, calibrate=False, lowering=lowering)
    _check_names(compiled.pruned, state, folder)
    own = {name: tensor for name, tensor in state.items() if name.startswith("prunec.")}
    compiled.pruned.module.load_state_dict(own, strict=False)
    return targets.LoweredModule(compiled.pruned, backend.lower(compiled.pruned), source.module)


def _own(folder: Path, manifest: Manifest, backend: Target) -> nn.Module:
    """The model from the file of its own, or from those of the backend that are only data."""
    if manifest.spec is None or manifest.portable.file != portable.FILE:
        raise unreadable(folder, "its manifest does not say what the model takes and gives")
    files = backend.files if portable.has_files(backend, manifest.files) else ()
    for name in (portable.FILE, *files):
        if name in manifest.files:
            artefact.check(folder, manifest, name)
    return portable.module(folder, manifest.spec, backend, files)


def _source_of(
    manifest: Mapping[str, Any], folder: str | Path, example: Any, trust_source: bool, allow_pickle: bool
) -> Source:
    if manifest["weights"] == "given" and ":" not in manifest["source"]:  # pkg.module:callable names one
        raise UsageError(
            f"{folder} was made from a module in Python, which no SOURCE names",
            remedy="give that module: prunec.load(folder, model=...)",
        )
    asked = Asked(
        pretrained=False,
        allow_pickle=allow_pickle,
        submodule=manifest["submodule"] or None,
        example=(manifest["example"] or None) if example is None else example,
    )
    named = manifest.get("arch") or manifest["source"]
    return sources.load_named(named, folder, asked, trust_source=trust_source)


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
