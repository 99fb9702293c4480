"""`prunec bench`: what a model takes at every stream length."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from prunec.cli.options import (
    AllowPickle,
    ArchOption,
    BatchOption,
    CropOption,
    ExampleOption,
    ImageSizeOption,
    ImagesOption,
    JsonOption,
    MeanOption,
    ModeOption,
    PolicyOption,
    RandomWeights,
    SourceArgument,
    StdOption,
    SubmoduleOption,
    TargetOption,
    ThreadsOption,
)
from prunec.cli.printing import out, print_json, progress
from prunec.cli.values import inputs_of, read_source, writable

if TYPE_CHECKING:
    from prunec.latency.roofline import Ceilings
    from prunec.latency.table import LatencyTable


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
    device: Annotated[
        str | None, typer.Option("--device", help="with --estimate: what that device is called")
    ] = None,
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
    """Measure a model's latency table: its blocks at every stream length, and what a site costs."""
    if device is not None and estimate is None:
        raise typer.BadParameter("--device names the device of an --estimate: give both, or leave it out")

    import torch

    from prunec.api import verbs
    from prunec.measure import cost
    from prunec.measure.measure import Measure

    ceilings = None if estimate is None else replace(_ceilings(estimate), name=device or "elsewhere")
    file = None if table is None else writable(table, "--table")
    given = read_source(
        source,
        pretrained=not random_weights,
        arch=arch,
        allow_pickle=allow_pickle,
        inputs=inputs_of(example, image_size, mean, std, crop),
        submodule=submodule,
    )
    with cost.threads(threads or torch.get_num_threads()), progress() as say:
        found = verbs.latency_table(
            given,
            policy,
            images=images,
            mode=mode,
            device=ceilings,
            measure=Measure(target=target, batch=batch, progress=say),
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


def _ceilings(text: str) -> Ceilings:
    """What a device sustains: TFLOP/s, GB/s, and perhaps how many processors it has."""
    from prunec.latency.roofline import Ceilings

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
