"""The planner's commands: bench (a table), plan, apply (a plan that was edited), sweep (the frontier)."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from prunec import artefact, cost, sources, verbs
from prunec.console import (
    AllowPickle,
    ArchOption,
    BatchOption,
    BlocksOption,
    CropOption,
    ExampleOption,
    FastOption,
    FirstOption,
    ImageSizeOption,
    ImagesOption,
    JsonOption,
    LatencyOption,
    MaxDropOption,
    MeanOption,
    ModeOption,
    OutputOption,
    PolicyOption,
    RandomWeights,
    RequireOption,
    RoundsOption,
    SitesOption,
    SourceArgument,
    SpeedupOption,
    StdOption,
    TableOption,
    TargetOption,
    ThreadsOption,
    UntrainedOption,
    folder_of,
    inputs_of,
    numbers,
    out,
    print_json,
    progress,
    show_report,
    warn,
    writable,
)
from prunec.errors import UsageError
from prunec.measure import Measure
from prunec.planner.goal import Goal
from prunec.planner.planfile import PlanFile
from prunec.planner.planned import Search
from prunec.planner.planning import described
from prunec.planner.roofline import Ceilings
from prunec.planner.sweep import Sweep
from prunec.planner.table import LatencyTable
from prunec.policy import Policy


def plan(
    source: SourceArgument,
    policy: PolicyOption,
    latency: LatencyOption = None,
    speedup: SpeedupOption = None,
    max_drop: MaxDropOption = None,
    blocks: BlocksOption = None,
    sites: SitesOption = 3,
    first: FirstOption = 2,
    fast: FastOption = False,
    latency_table: TableOption = None,
    predict: Annotated[
        bool,
        typer.Option("--predict", help="build nothing; a --latency-table may be of a device not here"),
    ] = False,
    target: TargetOption = "inductor",
    images: ImagesOption = None,
    batch: BatchOption = 8,
    threads: ThreadsOption = None,
    mode: ModeOption = None,
    untrained: UntrainedOption = False,
    random_weights: RandomWeights = False,
    arch: ArchOption = None,
    example: ExampleOption = None,
    image_size: ImageSizeOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    crop: CropOption = None,
    allow_pickle: AllowPickle = False,
    as_json: JsonOption = False,
) -> None:
    """Find the schedule that reaches a goal on this device, and print it as YAML: edit it, then apply it."""
    given = sources.load(
        source,
        pretrained=not random_weights,
        arch=arch,
        allow_pickle=allow_pickle,
        **inputs_of(example, image_size, mean, std, crop),
    )
    search = Search(
        first=first,
        sites=sites,
        fast=fast,
        blocks=numbers(blocks),
        table=None if latency_table is None else Path(latency_table),
        build=not predict,
        mode=mode,
    )
    with cost.threads(threads or torch.get_num_threads()), progress() as say:
        planned = verbs.plan(
            given,
            policy,
            Goal(latency, speedup, max_drop),
            images=images,
            search=search,
            measure=Measure(target=target, batch=batch, calibrate=not untrained, progress=say, warn=warn),
        )
    if as_json:
        print_json(planned.as_dict())
        return
    file = PlanFile.of(
        planned,
        source=given.spec,
        arch=given.arch,
        example=given.example,
        weights=given.weights,
        target=target,
        batch=batch,
    )
    out.print(file.text(), end="", markup=False)


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
    untrained: UntrainedOption = False,
    random_weights: RandomWeights = False,
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
    chosen = Policy.load(policy)
    file = writable(output or f"{folder_of(source, chosen.name)}-sweep.json", "-o")
    drawing = None if plot is None else _drawing(writable(plot, "--plot"))
    given = sources.load(
        source,
        pretrained=not random_weights,
        arch=arch,
        allow_pickle=allow_pickle,
        **inputs_of(example, image_size, mean, std, crop),
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
            measure=Measure(target=target, batch=batch, calibrate=not untrained, progress=say, warn=warn),
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


def apply(
    file: Annotated[str, typer.Argument(metavar="PLAN", help="what `prunec plan` wrote, perhaps edited")],
    images: ImagesOption = None,
    output: OutputOption = None,
    rounds: RoundsOption = 20,
    threads: ThreadsOption = None,
    require_speedup: RequireOption = False,
    untrained: UntrainedOption = False,
    trust_source: Annotated[
        bool, typer.Option("--trust-source", help="import and run whatever source the plan names")
    ] = False,
    mean: MeanOption = None,
    std: StdOption = None,
    crop: CropOption = None,
    allow_pickle: AllowPickle = False,
    as_json: JsonOption = False,
) -> None:
    """Transform a model as a plan says, prove it, measure it, and write the artefact."""
    told = PlanFile.read(file)
    folder = output or folder_of(told.source, Policy.load(told.policy).name)
    artefact.check_place(folder)
    given = sources.load_named(
        told.source,
        file,
        pretrained=told.weights != "random",
        arch=told.arch or None,
        trust_source=trust_source,
        allow_pickle=allow_pickle,
        **{**inputs_of(None, None, mean, std, crop), "example": told.example or None},  # shapes, no file
    )
    with cost.threads(threads or torch.get_num_threads()), progress() as say:
        result = verbs.optimize(
            given,
            told,
            images=images,
            measure=Measure(
                target=told.target,
                batch=told.batch,
                rounds=rounds,
                calibrate=not untrained,
                progress=say,
                warn=warn,
            ),
        )
        result.save(folder)
    show_report(result.report.at(folder), as_json=as_json, require_speedup=require_speedup)


def bench(
    source: SourceArgument,
    policy: PolicyOption = "evit",
    table: Annotated[
        str | None, typer.Option("--table", metavar="FILE", help="write the latency table there")
    ] = None,
    target: TargetOption = "inductor",
    images: ImagesOption = None,
    batch: BatchOption = 8,
    threads: ThreadsOption = None,
    mode: ModeOption = None,
    estimate: Annotated[
        str | None,
        typer.Option(
            "--estimate",
            metavar="TFLOPS,GBS[,PROCESSORS]",
            help="measure nothing: estimate for a device that sustains this (±30%)",
        ),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="what that device is called")] = "elsewhere",
    random_weights: RandomWeights = False,
    arch: ArchOption = None,
    example: ExampleOption = None,
    image_size: ImageSizeOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    crop: CropOption = None,
    allow_pickle: AllowPickle = False,
    as_json: JsonOption = False,
) -> None:
    """Measure a model's latency table: its blocks at every stream length, and what a site costs."""
    ceilings = None if estimate is None else replace(_ceilings(estimate), name=device)
    file = None if table is None else writable(table, "--table")
    given = sources.load(
        source,
        pretrained=not random_weights,
        arch=arch,
        allow_pickle=allow_pickle,
        **inputs_of(example, image_size, mean, std, crop),
    )
    with cost.threads(threads or torch.get_num_threads()), progress() as say:
        found = verbs.latency_table(
            given,
            policy,
            images=images,
            mode=mode,
            device=ceilings,
            measure=Measure(target=target, batch=batch, progress=say, warn=warn),
        )
    if file is not None:
        found.write(file)
    if as_json:
        print_json(found.as_dict())
        return
    out.print(_table(found))
    facts = {**found.place, **found.work}
    out.print(", ".join(f"{name} {value}" for name, value in facts.items()), markup=False)
    how = f"estimated, ±{found.error:.0%}" if found.estimated else f"measured, spread {found.spread:.1%}"
    out.print(f"{how}, {found.date}, in {found.seconds:.0f} s", markup=False)


def _drawing(path: Path) -> Any:
    """The module that draws, which needs an extra; UsageError where that is not installed."""
    try:
        drawing = importlib.import_module("prunec.planner.drawing")
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


def _ceilings(text: str) -> Ceilings:
    """What a device sustains: TFLOP/s, GB/s, and perhaps how many processors it has."""
    try:
        flops, bandwidth, *more = (float(part) for part in text.split(","))
        (processors,) = more or (None,)
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} is not TFLOP/s,GB/s or TFLOP/s,GB/s,processors, such as 550,3440,132",
            param_hint="--estimate",
        ) from error
    return Ceilings(flops * 1e12, bandwidth * 1e9, processors=None if processors is None else int(processors))


def _table(found: LatencyTable) -> Table:
    """Milliseconds at every stream length."""
    names = ("tokens", "a block, ms", "last block and head, ms", "one site that halves, ms")
    table = Table(*names, box=None, pad_edge=False)
    middle = len(found.blocks) // 2
    for length in found.counts:
        half = max(length // 2, found.counts[-1])
        numbers = (found.block(middle, length), found.blocks[-1][found.counts.index(length)])
        site = f"{found.site(length, half) * 1e3:.3f}" if half < length else ""
        table.add_row(str(length), *(f"{seconds * 1e3:.3f}" for seconds in numbers), site)
    table.add_row("", "", "", "")
    table.add_row("before", f"{found.fixed * 1e3:.3f}", "", "")
    table.add_row("dense", f"{found.dense * 1e3:.3f}", "", "")
    return table
