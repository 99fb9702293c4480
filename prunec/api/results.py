"""What `optimize` made: saved as a folder, and loaded again."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunec import targets
from prunec.artefact import artefact
from prunec.artefact.manifest import KEYS
from prunec.compiler import compile_source
from prunec.errors import SourceError, UsageError
from prunec.frontend import sources
from prunec.frontend.sources import Asked, Source
from prunec.ir.program import Program
from prunec.policy.lowering import from_dict
from prunec.policy.policy import Policy
from prunec.report.report import Report
from prunec.version import __version__


@dataclass(frozen=True)
class Result:
    """What `optimize` made: a module on its backend, and the report."""

    module: nn.Module
    report: Report

    @property
    def verdict(self) -> str:
        """Whether pruning pays here, and what it costs, in words; `report.warnings` is what to know first."""
        return self.report.verdict

    def save(self, folder: str | Path) -> Path:
        """Write the artefact: manifest, weights and report."""
        report = self.report.at(folder)
        data = report.as_dict()
        manifest = {key: data[key] for key in (*KEYS, "submodule", "arch", "example")}
        versions = {"prunec": __version__, "torch": torch.__version__}
        files = {"report.json": json.dumps(data, indent=2) + "\n", "report.html": report.html()}
        return artefact.save(folder, {**manifest, "versions": versions}, self.module.state_dict(), files)


def save(result: Result, folder: str | Path) -> Path:
    """Write what `optimize` returned as an artefact: manifest, weights and report; `load` reads it."""
    return result.save(folder)


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
        folder: what `Result.save` or `prunec optimize -o` wrote. One of a part (`--submodule`) gives that
            part, to be put in its place: `model.backbone.body = prunec.load(folder)`.
        model: the model, for artefacts of a module that no SOURCE names. It is not changed.
        example: an input of that model, as for `transform`; left out, of the shapes that the artefact names.
        target: the backend; the one the artefact was made for when left out.
        trust_source: build the model from whatever SOURCE the artefact names, which may import and run code.
            Without it, only from shapes, timm:, hf: and .safetensors.
        allow_pickle: for such a source: unpickle whatever a .pt, .pth or .pt2 file holds.
    """
    for name, given in (("trust_source", trust_source), ("allow_pickle", allow_pickle)):
        if given and model is not None:
            raise UsageError(
                f"{name} has no effect where the model is given: no source is read",
                where="load",
                remedy=f"leave {name} out",
            )
    manifest, state = artefact.read(folder)
    backend = targets.load(target or manifest["target"])
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
