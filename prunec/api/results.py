"""What `optimize` made, and the folder that it is saved as."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from prunec import compat
from prunec.artefact import artefact, card, portable, recorded
from prunec.artefact.artefact import Content
from prunec.artefact.manifest import KEYS
from prunec.artefact.spec import Description
from prunec.errors import TargetError
from prunec.frontend.source_reading import absolute
from prunec.report.report import Report
from prunec.targets import LoweredModule
from prunec.version import __version__

LABELS = "labels.json"


@dataclass(frozen=True)
class Result:
    """What `optimize` made: a module on its backend, the report, and what the model takes and gives."""

    module: LoweredModule
    report: Report
    description: Description

    @property
    def verdict(self) -> str:
        """Whether pruning pays here, and what it costs, in words; `report.warnings` is what to know first."""
        return self.report.verdict

    def save(self, folder: str | Path) -> Path:
        """Write the artefact, a folder that needs nothing else: the model as its own file, and its report.

        Where the model cannot be such a file, it is warned why, and loading builds it from its source.
        """
        program, spec = self.module.program, self.description.spec
        files: dict[str, Content] = {recorded.FILE: recorded.record(program, self.description.example)}
        reason = ""
        try:
            made = portable.made(program)
            files[portable.FILE] = lambda path: compat.save_exported(made, path)
        except TargetError as error:
            reason = error.what
            warnings.warn(f"there is no {portable.FILE}: {reason}", stacklevel=2)
        notes = (f"there is no {portable.FILE}: {reason}",) if reason else ()
        report = replace(self.report, notes=(*self.report.notes, *notes))
        if self.description.labels:
            files[LABELS] = json.dumps(self.description.labels, indent=0) + "\n"
        data = report.as_dict()
        files["report.json"] = json.dumps(data, indent=2) + "\n"
        files["report.html"] = report.html()
        manifest: dict[str, Any] = {key: data[key] for key in (*KEYS, "submodule", "arch", "example")}
        manifest.update({key: absolute(manifest[key]) for key in ("source", "arch")})
        manifest["versions"] = {"prunec": __version__, "torch": torch.__version__}
        manifest["spec"] = spec.model_dump(mode="json")
        manifest["portable"] = {"file": None if reason else portable.FILE, "reason": reason}
        files["README.md"] = card.text(report, spec, self.description.labels, portable=not reason)
        return artefact.save(folder, manifest, self.module.state_dict(), files)


def save(result: Result, folder: str | Path) -> Path:
    """Write what `optimize` returned as an artefact, a folder that needs nothing else; `load` reads it."""
    return result.save(folder)
