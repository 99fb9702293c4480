"""`prunec plan` and `prunec apply`: the schedule that reaches a goal, and a model transformed by it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
    ForceOption,
    ImageSizeOption,
    ImagesOption,
    JsonOption,
    LatencyOption,
    MaxDropOption,
    MeanOption,
    MetricOption,
    ModeOption,
    OutputOption,
    PoliciesOption,
    PolicyToPlan,
    RandomWeights,
    RequireOption,
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


def plan(
    source: SourceArgument,
    policy: PolicyToPlan = None,
    policies: PoliciesOption = None,
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
    """Find the schedule that reaches a goal on this device, and print it as YAML: edit it, then apply it.

    With --policies, or --policy auto, the policy is chosen too.
    """
    if (policy is None) == (policies is None):
        raise typer.BadParameter("give --policy NAME, --policy auto, or --policies A,B,C")
    import torch

    from prunec.api import verbs
    from prunec.measure import cost
    from prunec.measure.measure import Measure
    from prunec.planner.planfile import PlanFile
    from prunec.planner.planned import Search
    from prunec.schedules.goal import Goal

    given = read_source(
        source,
        pretrained=not random_weights,
        arch=arch,
        allow_pickle=allow_pickle,
        inputs=inputs_of(example, image_size, mean, std, crop),
        submodule=submodule,
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
            policy or [name.strip() for name in (policies or "").split(",")],
            Goal(latency, speedup, max_drop),
            images=images,
            search=search,
            measure=Measure(target=target, batch=batch, calibrate=calibrate, progress=say),
        )
    if as_json:
        print_json(planned.as_dict())
        return
    file = PlanFile.of(planned, given, target=target, batch=batch)
    out.print(file.text(), end="", markup=False)


def apply(
    file: Annotated[str, typer.Argument(metavar="PLAN", help="what `prunec plan` wrote, perhaps edited")],
    images: ImagesOption = None,
    output: OutputOption = None,
    rounds: RoundsOption = 20,
    threads: ThreadsOption = None,
    require_speedup: RequireOption = False,
    force: ForceOption = False,
    metric: MetricOption = None,
    calibrate: CalibrateOption = True,
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
    import torch

    from prunec.api import verbs
    from prunec.artefact import artefact
    from prunec.frontend import sources
    from prunec.frontend.sources import Asked
    from prunec.measure import cost
    from prunec.measure import metric as own
    from prunec.measure.measure import Measure
    from prunec.planner.planfile import PlanFile
    from prunec.policy.policy import Policy

    saved = PlanFile.read(file)
    judge = None if metric is None else own.read(metric)
    folder = output or folder_of(saved.source, Policy.load(saved.policy).name)
    artefact.check_place(folder)
    pictures = inputs_of(None, None, mean, std, crop)["preprocess"]
    asked = Asked(
        pretrained=saved.weights != "random",
        example=saved.example or None,  # shapes, no file
        preprocess=pictures,
        arch=saved.arch or None,
        allow_pickle=allow_pickle,
        submodule=saved.submodule or None,
    )
    given = sources.load_named(saved.source, file, asked, trust_source=trust_source)
    with cost.threads(threads or torch.get_num_threads()), progress() as say:
        result = verbs.optimize(
            given,
            saved,
            images=images,
            measure=Measure(
                target=saved.target,
                batch=saved.batch,
                rounds=rounds,
                calibrate=calibrate,
                metric=judge,
                progress=say,
            ),
        )
    hand_over(result, folder, as_json=as_json, require_speedup=require_speedup, force=force)
