"""`prunec sweep`: what each share of the time costs."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from prunec.cli.options import (
    AllowPickle,
    ArchOption,
    BatchOption,
    BlocksOption,
    CalibrateOption,
    CropOption,
    ExampleOption,
    FastOption,
    FirstOption,
    ImageSizeOption,
    ImagesOption,
    JsonOption,
    MeanOption,
    ModeOption,
    PolicyOption,
    RandomWeights,
    SitesOption,
    SourceArgument,
    StdOption,
    SubmoduleOption,
    TableOption,
    TargetOption,
    ThreadsOption,
)
from prunec.cli.printing import out, print_json, progress
from prunec.cli.values import folder_of, inputs_of, numbers, read_source, writable
from prunec.errors import UsageError

if TYPE_CHECKING:
    from prunec.planner.sweep import Sweep


def sweep(
    source: SourceArgument,
    policy: PolicyOption,
    points: Annotated[int, typer.Option("--points", min=1, help="how many schedules to build and time")] = 8,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="JSON; run again, it goes on there")
    ] = None,
    plot: Annotated[
        str | None, typer.Option("--plot", metavar="FILE", help="draw it: a .png, .svg or .html")
    ] = None,
    sites: SitesOption = 3,
    first: FirstOption = 2,
    blocks: BlocksOption = None,
    fast: FastOption = False,
    latency_table: TableOption = None,
    target: TargetOption = "inductor",
    images: ImagesOption = None,
    batch: BatchOption = 8,
    threads: ThreadsOption = None,
    mode: ModeOption = None,
    calibrate: CalibrateOption = True,
    random_weights: RandomWeights = False,
    submodule: SubmoduleOption = None,
    arch: ArchOption = None,
    example: ExampleOption = None,
    image_size: ImageSizeOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    crop: CropOption = None,
    allow_pickle: AllowPickle = False,
    as_json: JsonOption = False,
) -> None:
    """Build and time schedules from the fastest to the gentlest: what each share of the time costs."""
    import torch

    from prunec.api import verbs
    from prunec.measure import cost
    from prunec.measure.measure import Measure
    from prunec.planner.planned import Search
    from prunec.policy.policy import Policy

    chosen = Policy.load(policy)
    file = writable(output or f"{folder_of(source, chosen.name)}-sweep.json", "-o")
    drawing = None if plot is None else _drawing(writable(plot, "--plot"))
    given = read_source(
        source,
        pretrained=not random_weights,
        arch=arch,
        allow_pickle=allow_pickle,
        inputs=inputs_of(example, image_size, mean, std, crop),
        submodule=submodule,
    )
    table = None if latency_table is None else Path(latency_table)
    search = Search(
        first=first, sites=sites, blocks=numbers(blocks), table=table, fast=fast, mode=mode, points=points
    )
    with cost.threads(threads or torch.get_num_threads()), progress() as say:
        found = verbs.sweep(
            given,
            chosen,
            file,
            images=images,
            search=search,
            measure=Measure(target=target, batch=batch, calibrate=calibrate, progress=say),
        )
    if drawing is not None:
        drawing.draw(found.as_dict(), Path(str(plot)))
    if as_json:
        print_json(found.as_dict())
        return
    out.print(_points(found))
    facts = {**found.about["place"], **found.about["work"]}
    out.print(", ".join(f"{name} {value}" for name, value in facts.items()), markup=False)
    losses = found.maps[0].losses
    out.print(
        f"loss: {losses.kind} from the dense model on {losses.images} {losses.name}, no accuracy",
        markup=False,
    )
    out.print(f"* the measured frontier; written to {file}", markup=False)


def _drawing(path: Path) -> Any:
    """The module that draws, which needs an extra; UsageError where that is not installed."""
    try:
        drawing = importlib.import_module("prunec.report.drawing")
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{error.name} is not installed, which draws",
            where="--plot",
            remedy="pip install 'prunec[report]'",
        ) from error
    drawing.check_name(path)
    return drawing


def _points(found: Sweep) -> Table:
    """The points of a sweep, the fastest first."""
    from prunec.planner.workshop import described

    names = ("", "share of dense", "predicted", "loss", "added up", "mode", "schedule")
    table = Table(*names, box=None, pad_edge=False)
    for point in sorted(found.points, key=lambda point: point.share):
        table.add_row(
            "*" if point in found.best else "",
            f"{point.share:.3f} ±{point.noise:.3f}",
            f"{point.predicted:.3f}",
            f"{point.loss:.2e}",
            f"{point.expected:.2e}",
            point.mode,
            described(point.schedule),
        )
    return table
