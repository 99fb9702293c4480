"""`prunec triton`: a model repository of Triton Inference Server, out of an artefact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunec.cli.options import JsonOption
from prunec.cli.printing import out, print_json


def triton(
    folder: Annotated[str, typer.Argument(metavar="OUT", help="the folder that `prunec optimize -o` wrote")],
    repository: Annotated[
        str, typer.Argument(metavar="REPOSITORY", help="the folder of models that Triton is started with")
    ],
    name: Annotated[
        str | None, typer.Option("--name", help="what clients call the model (default: the name of OUT)")
    ] = None,
    wanted: Annotated[
        str | None,
        typer.Option("--engine", help="onnx or aoti (default: the first of them that OUT has)"),
    ] = None,
    most: Annotated[int, typer.Option("--max-batch", min=1, max=4096, help="images in a batch")] = 32,
    delay: Annotated[
        int,
        typer.Option("--delay", min=0, max=10_000_000, help="microseconds that a request waits for others"),
    ] = 2000,
    as_json: JsonOption = False,
) -> None:
    """Write a model repository of Triton Inference Server out of an artefact of target onnx or aoti."""
    from prunec.serving.triton import Batching, write

    source = Path(folder)
    called = name if name is not None else source.resolve().name
    place = write(source, Path(repository), called, Batching(most, delay), wanted)
    if as_json:
        print_json({"place": str(place), "name": called})
        return
    out.print(f"{place}: start Triton with --model-repository={repository}", markup=False)
