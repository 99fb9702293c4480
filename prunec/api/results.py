"""What `optimize` made, and the folder that it is saved as."""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from prunec import compat, targets
from prunec.api.hub import upload
from prunec.artefact import artefact, card, export_json, portable, recorded
from prunec.artefact.artefact import Content
from prunec.artefact.manifest import KEYS
from prunec.artefact.spec import Description
from prunec.errors import TargetError
from prunec.frontend.source_reading import absolute
from prunec.ir.program import Program
from prunec.report.report import Report
from prunec.targets import FileTarget, FixedBatch, LoweredModule, Target
from prunec.targets.precision import Precision
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

    def for_target(self, name: str, precision: Precision) -> Result:
        """The same, with the files of a target that cannot run here."""
        why = targets.find(name, precision).missing()
        note = f"target {name} was not run ({why}): times and outputs are of {self.report.target}"
        notes = (*self.report.notes, note)
        return replace(self, report=replace(self.report, written=(name, precision), notes=notes))

    def save(self, folder: str | Path) -> Path:
        """Write the artefact, a folder that needs nothing else: the model as its own file, and its report.

        Where the model cannot be such a file, it is warned why, and loading builds it from its source. A
        target that runs from files (onnx, openvino, aoti) has them beside it.
        """
        program, spec = self.module.program, self.description.spec
        target = targets.find(self.report.target, self.report.precision)
        files: dict[str, Content] = {recorded.FILE: recorded.record(program, self.description.example)}
        reason = ""
        try:
            made = portable.made(target.prepared(program))
            files[portable.FILE] = lambda path: compat.save_exported(made, path)
            if said := export_json.text(made, spec):
                files[export_json.FILE] = said
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
        manifest["precision"] = report.precision
        manifest.update({key: absolute(manifest[key]) for key in ("source", "arch")})
        manifest["versions"] = {"prunec": __version__, "torch": torch.__version__}
        manifest["spec"] = spec.model_dump(mode="json")
        manifest["portable"] = {"file": None if reason else portable.FILE, "reason": reason}
        files["README.md"] = card.text(report, spec, self.description.labels, portable=not reason)
        with tempfile.TemporaryDirectory() as place:
            files |= _of_target(self._to_write(), program, Path(place))
            return artefact.save(folder, manifest, self.module.state_dict(), files)

    def _to_write(self) -> Target:
        """The target whose files are in the artefact: those of a fixed batch take what was timed."""
        report = self.report
        target = targets.find(*(report.written or (report.target, report.precision)))
        if isinstance(target, FixedBatch) and report.latency is not None:
            return target.with_batch(report.latency.batch)
        return target

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        **options: Any,
    ) -> Path:
        """`save`, and with `push_to_hub` what that does; options as there. `from_pretrained` reads it."""
        place = self.save(folder)
        if push_to_hub:
            upload(place, repo_id or place.name, **options)
        return place

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Put the artefact on the Hugging Face hub, with its model card; the address of the commit.

        Args:
            repo_id: ORG/NAME, created where it does not exist.
            options: private, token, commit_message.
        """
        with tempfile.TemporaryDirectory() as folder:
            return upload(self.save(Path(folder) / "artefact"), repo_id, **options)


def _of_target(target: Target, program: Program, place: Path) -> dict[str, Content]:
    """The files that a target runs from, written to a place; none where it has none but the model's own."""
    if not isinstance(target, FileTarget) or portable.FILE in target.files:
        return {}
    target.write(program, place)
    written = [each for each in target.files if (place / each).exists()]  # small models have no second one
    return {each: partial(shutil.copyfile, place / each) for each in written}


def save(result: Result, folder: str | Path) -> Path:
    """Write what `optimize` returned as an artefact, a folder that needs nothing else; `load` reads it."""
    return result.save(folder)
