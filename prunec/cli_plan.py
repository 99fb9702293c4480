"""The commands of the planner: bench (measure a table), plan, and apply (run a plan that was edited)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Table

from prunec import artefact, cost, sources, verbs
from prunec.console import (
    AllowPickle,
    ArchOption,
    BatchOption,
    BlocksOption,
    FastOption,
    FirstOption,
    ImagesOption,
    JsonOption,
    LatencyOption,
    MaxDropOption,
    ModeOption,
    OutputOption,
    PolicyOption,
    RandomWeights,
    RequireOption,
    RoundsOption,
    SitesOption,
    SourceArgument,
    SpeedupOption,
    TableOption,
    TargetOption,
    ThreadsOption,
    UntrainedOption,
    folder_of,
    numbers,
    out,
    print_json,
    progress,
    show_report,
    warn,
)
from prunec.planner.planfile import PlanFile
from prunec.planner.planned import Search
from prunec.planner.table import LatencyTable


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
    allow_pickle: AllowPickle = False,
    as_json: JsonOption = False,
) -> None:
    """Find the schedule that reaches a goal on this device, and print it as YAML: edit it, then apply it."""
    given = sources.load(source, pretrained=not random_weights, arch=arch, allow_pickle=allow_pickle)
    search = Search(
        first=first,
        sites=sites,
        fast=fast,
        blocks=numbers(blocks),
        table=None if latency_table is None else Path(latency_table),
        build=not predict,
    )
    with cost.threads(threads or torch.get_num_threads()), progress() as say:
        planned = verbs.plan(
            given,
            policy,
            latency=latency,
            speedup=speedup,
            max_drop=max_drop,
            target=target,
            images=images,
            batch=batch,
            untrained=untrained,
            mode=mode,
            search=search,
            say=say,
            warn=warn,
        )
    if as_json:
        print_json(planned.as_dict())
        return
    file = PlanFile.of(
        planned,
        source=given.spec,
        arch=given.arch,
        weights=given.weights,
        target=target,
        batch=batch,
    )
    out.print(file.text(), end="", markup=False)


def apply(
    file: Annotated[str, typer.Argument(metavar="PLAN", help="what `prunec plan` wrote, perhaps edited")],
    images: ImagesOption = None,
    output: OutputOption = None,
    rounds: RoundsOption = 20,
    threads: ThreadsOption = None,
    require_speedup: RequireOption = False,
    untrained: UntrainedOption = False,
    allow_pickle: AllowPickle = False,
    as_json: JsonOption = False,
) -> None:
    """Transform a model as a plan says, prove it, measure it, and write the artefact."""
    told = PlanFile.read(file)
    folder = output or folder_of(told.source, str(told.policy["name"]))
    artefact.check_place(folder)
    given = sources.load(
        told.source,
        pretrained=told.weights != "random",
        arch=told.arch or None,
        allow_pickle=allow_pickle,
    )
    with cost.threads(threads or torch.get_num_threads()), progress() as say:
        result = verbs.optimize(
            given,
            told.policy,
            schedule=told.schedule,
            target=told.target,
            images=images,
            batch=told.batch,
            rounds=rounds,
            untrained=untrained,
            mode=told.mode,
            say=say,
            warn=warn,
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
    random_weights: RandomWeights = False,
    arch: ArchOption = None,
    allow_pickle: AllowPickle = False,
    as_json: JsonOption = False,
) -> None:
    """Measure a model's latency table: its blocks at every stream length, and what a site costs."""
    given = sources.load(source, pretrained=not random_weights, arch=arch, allow_pickle=allow_pickle)
    with cost.threads(threads or torch.get_num_threads()), progress() as say:
        found = verbs.latency_table(
            given, policy, target=target, images=images, batch=batch, mode=mode, say=say, warn=warn
        )
    if table is not None:
        found.write(Path(table))
    if as_json:
        print_json(found.as_dict())
        return
    out.print(_table(found))
    facts = {**found.place, **found.work}
    out.print(", ".join(f"{name} {value}" for name, value in facts.items()), markup=False)
    out.print(f"measured {found.date} in {found.seconds:.0f} s, spread {found.spread:.1%}", markup=False)


def _table(found: LatencyTable) -> Table:
    """Milliseconds at every stream length."""
    table = Table("tokens", "a block, ms", "last block and head, ms", "one site that halves, ms", box=None)
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
