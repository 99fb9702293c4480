"""`prunec run` and `prunec verify`: what a model says about pictures, and whether its folder is whole."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from prunec.cli.options import JsonOption
from prunec.cli.printing import out, print_json
from prunec.errors import VerificationError

OutArgument = Annotated[str, typer.Argument(metavar="OUT", help="the folder that `prunec optimize -o` wrote")]


def run(
    folder: OutArgument,
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="pictures: jpg, png, bmp or webp")],
    target: Annotated[
        str,
        typer.Option("--target", "-t", help="the backend: eager answers at once, inductor compiles first"),
    ] = "eager",
    top: Annotated[int, typer.Option("--top", min=1, max=1000, help="how many classes to name")] = 5,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="write all outputs: .safetensors or .npz"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run an artefact's model on pictures, prepared as it needs them, and print what it says."""
    from prunec.api.running import run as answered
    from prunec.artefact.answers import in_words
    from prunec.data.numbers import check_name, write

    if output is not None:
        check_name(output)
    found = answered(folder, images, target=target, top=top)
    if output is not None:
        write(output, found.outputs)
    if as_json:
        print_json(found.as_dict())
        return
    for image, said in zip(found.images, found.answers, strict=True):
        out.print(image, markup=False)
        for line in (line for answer in said for line in in_words(answer)):
            out.print(f"  {line}", markup=False)


def verify(
    folder: OutArgument,
    rebuild: Annotated[
        bool, typer.Option("--rebuild/--no-rebuild", help="build the model anew from its source too")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Check an artefact's files, and compare its model with what was recorded (exit code 4)."""
    from dataclasses import asdict

    from prunec.api.verifying import verify as verified

    rows = verified(folder, rebuild=rebuild)
    if as_json:
        print_json([asdict(row) for row in rows])
    else:
        table = Table("what", "verdict", "detail", box=None, pad_edge=False)
        for row in rows:
            table.add_row(row.what, row.verdict, row.detail)
        out.print(table)
    failed = [row for row in rows if row.verdict == "failed"]
    if failed:
        raise VerificationError(
            f"{failed[0].what} of {folder}: {failed[0].detail}",
            remedy="write the artefact again, or take it from where it came from",
        )
