"""`prunec optimize`: transform, prove, measure, write."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunec.cli.options import (
    AllowPickle,
    ArchOption,
    BatchOption,
    BlocksOption,
    BucketsOption,
    CalibrateOption,
    CropOption,
    ExampleOption,
    FastOption,
    FirstOption,
    ForceOption,
    ImageSizeOption,
    ImagesOption,
    JsonOption,
    KeepOption,
    LatencyOption,
    MaxDropOption,
    MaxTokensOption,
    MeanOption,
    MetricOption,
    ModeOption,
    OutputOption,
    PolicyOrAuto,
    PrecisionOption,
    RandomWeights,
    RequireOption,
    RestoreOption,
    RoundsOption,
    SitesOption,
    SourceArgument,
    SpeedupOption,
    StdOption,
    SubmoduleOption,
    TableOption,
    TargetOption,
    ThreadsOption,
)
from prunec.cli.printing import hand_over, out, print_json, progress
from prunec.cli.values import folder_of, inputs_of, numbers, read_source

if TYPE_CHECKING:
    from prunec.ir.program import Planned


def optimize(
    source: SourceArgument,
    policy: PolicyOrAuto,
    keep: KeepOption = None,
    blocks: BlocksOption = None,
    restore: RestoreOption = None,
    latency: LatencyOption = None,
    speedup: SpeedupOption = None,
    max_drop: MaxDropOption = None,
    sites: SitesOption = 3,
    first: FirstOption = 2,
    fast: FastOption = False,
    latency_table: TableOption = None,
    require_speedup: RequireOption = False,
    force: ForceOption = False,
    metric: MetricOption = None,
    target: TargetOption = "inductor",
    precision: PrecisionOption = "fp32",
    images: ImagesOption = None,
    output: OutputOption = None,
    batch: BatchOption = 8,
    rounds: RoundsOption = 20,
    threads: ThreadsOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="rewrite and certify, compile and write nothing")
    ] = False,
    mode: ModeOption = None,
    buckets: BucketsOption = None,
    max_tokens: MaxTokensOption = None,
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
    """Transform a model, prove it, measure it, and write the artefact.

    With --latency, --speedup or --max-drop, blocks and counts are planned by what is measured on this device.
    With --policy auto so is the policy; with --keep instead, presets are compared at equal FLOPs.
    """
    planned = any(goal is not None for goal in (latency, speedup, max_drop))
    auto = policy == "auto"
    if auto and (restore is not None or dry_run or planned == (keep is not None)):
        raise typer.BadParameter(
            "--policy auto needs a goal, such as --latency 0.6, or --keep; leave out --restore and --dry-run"
        )
    if planned and (keep is not None or dry_run):
        raise typer.BadParameter(
            "--latency, --speedup and --max-drop plan counts by measurement: leave out --keep and --dry-run"
        )
    if not planned and (fast or latency_table is not None or (sites, first) != (3, 2)):
        raise typer.BadParameter(
            "--sites, --first, --fast and --latency-table are for a plan: give a goal, such as --latency 0.6"
        )

    import torch

    from prunec import targets
    from prunec.api.verbs_optimize import optimized
    from prunec.artefact import artefact
    from prunec.compiler import compile_source
    from prunec.measure import cost
    from prunec.measure import metric as own
    from prunec.measure.measure import Measure
    from prunec.planner.planned import Search
    from prunec.policy.lowering import choose
    from prunec.policy.modes import with_options
    from prunec.policy.policy import Policy
    from prunec.schedules.goal import Goal
    from prunec.targets import precision as precisions

    kind = precisions.read(precision, where="--precision")
    backend = targets.at_first(target, kind)
    chosen: Policy | str = policy
    lengths = numbers(buckets, "--buckets", "lengths such as 64,128") or ()
    asked = with_options(mode, lengths, max_tokens)
    judge = None if metric is None else own.read(metric)
    folder = output or folder_of(source, policy)
    if not auto:
        alone = Policy.load(policy, keep=keep, blocks=None if planned else numbers(blocks), restore=restore)
        lowering = choose(alone, asked, batch=batch, can=backend.modes)
        chosen, folder = alone, output or folder_of(source, alone.name)
    if not dry_run:
        artefact.check_place(folder)
    given = read_source(
        source,
        pretrained=not random_weights,
        arch=arch,
        allow_pickle=allow_pickle,
        inputs=inputs_of(example, image_size, mean, std, crop),
        submodule=submodule,
    )
    if dry_run:
        compiled = compile_source(given, alone, calibrate=False, lowering=lowering)
        _show_program(compiled.pruned, as_json=as_json)
        return
    with cost.threads(threads or torch.get_num_threads()), progress() as say:
        measure = Measure(
            target=target,
            batch=batch,
            rounds=rounds,
            precision=kind,
            calibrate=calibrate,
            metric=judge,
            progress=say,
        )
        if planned or auto:
            search = Search(
                first=first,
                sites=sites,
                fast=fast,
                blocks=numbers(blocks),
                table=None if latency_table is None else Path(latency_table),
                mode=asked,
            )
            goal = keep if keep is not None else Goal(latency, speedup, max_drop)
            result = optimized(given, chosen, (goal, search), images=images, measure=measure)
        else:
            result = optimized(given, chosen, images=images, mode=asked, measure=measure)
    hand_over(result, folder, as_json=as_json, require_speedup=require_speedup, force=force)


def _show_program(program: Planned, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "plan": program.plan.as_dict(),
                "stages": [stage.as_dict() for stage in program.stages],
            }
        )
        return
    out.print(program.anatomy.summary(), markup=False)
    out.print(f"mode {program.plan.lowering}", markup=False)
    for entry in (*program.plan.sites, *program.plan.notes, *program.stages):
        out.print(str(entry), markup=False)
