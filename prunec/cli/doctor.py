"""`prunec doctor`: what is wrong with an installation."""

from __future__ import annotations

import dataclasses

import typer

from prunec.cli.options import JsonOption
from prunec.cli.printing import out, print_json


def examine(as_json: JsonOption = False) -> None:
    """Find what is wrong with this installation, and say how to fix it (exit code 1)."""
    from prunec import doctor

    findings = doctor.examine()
    well = all(finding.health != "ill" for finding in findings)
    if as_json:
        print_json({"well": well, "findings": [dataclasses.asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            out.print(f"{finding.health:<5} {finding.subject:<13} {finding.what}", markup=False)
            if finding.remedy:
                out.print(f"{'':<19} to do: {finding.remedy}", markup=False)
    if not well:
        raise typer.Exit(1)
