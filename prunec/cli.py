"""The command line. Results go to stdout, chatter to stderr; every failure is one message and an exit code.

Exit codes: 0 done, 1 could not, 2 usage, 3 not recognised, 4 verification failed, 5 no gain.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from rich.table import Table

from prunec import artefact, cli_plan, cost, doctor, sources, targets, verbs
from prunec.anatomy import Anatomy, Block
from prunec.compiler import compile_source, recognise
from prunec.console import (
    AllowPickle,
    ArchOption,
    BatchOption,
    BlocksOption,
    BoundOption,
    BucketsOption,
    CropOption,
    ExampleOption,
    FastOption,
    FirstOption,
    ImageSizeOption,
    ImagesOption,
    JsonOption,
    KeepOption,
    LatencyOption,
    MaxDropOption,
    MeanOption,
    ModeOption,
    OutputOption,
    PolicyOption,
    RandomWeights,
    RequireOption,
    RestoreOption,
    RoundsOption,
    SitesOption,
    SourceArgument,
    SpeedupOption,
    StdOption,
    TableOption,
    TargetOption,
    ThreadsOption,
    UntrainedOption,
    chatter,
    folder_of,
    inputs_of,
    numbers,
    out,
    print_json,
    progress,
    show_report,
    warn,
)
from prunec.diff import compare, lines, without_changes
from prunec.errors import PruneError
from prunec.lowering import choose
from prunec.measure import Measure
from prunec.modes import with_options
from prunec.planner.goal import Goal
from prunec.planner.planned import Search
from prunec.policy import Policy, presets, schema
from prunec.program import Program
from prunec.rules import rates
from prunec.version import __version__

app = typer.Typer(
    help="Make Vision Transformers faster by letting them look at fewer tokens.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
Format = Literal["text", "json"]


@app.command()
def optimize(
    source: SourceArgument,
    policy: PolicyOption,
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
    target: TargetOption = "inductor",
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
    bound: BoundOption = None,
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
    """Transform a model, prove it, measure it, and write the artefact.

    With --latency, --speedup or --max-drop, blocks and counts are planned by what is measured on this device.
    """
    planned = any(goal is not None for goal in (latency, speedup, max_drop))
    if planned and (keep is not None or dry_run):
        raise typer.BadParameter(
            "--latency, --speedup and --max-drop plan counts by measurement: leave out --keep and --dry-run"
        )
    if not planned and (fast or latency_table is not None or (sites, first) != (3, 2)):
        raise typer.BadParameter(
            "--sites, --first, --fast and --latency-table are for a plan: give a goal, such as --latency 0.6"
        )
    backend = targets.load(target)
    chosen = Policy.load(policy, keep=keep, blocks=None if planned else numbers(blocks), restore=restore)
    lengths = numbers(buckets, "--buckets", "lengths such as 64,128") or ()
    asked = with_options(mode, lengths, bound)
    lowering = choose(chosen, asked, batch=batch, can=backend.modes)
    folder = output or folder_of(source, chosen.name)
    if not dry_run:
        artefact.check_place(folder)
    given = sources.load(
        source,
        pretrained=not random_weights,
        arch=arch,
        allow_pickle=allow_pickle,
        **inputs_of(example, image_size, mean, std, crop),
    )
    if dry_run:
        compiled = compile_source(given, chosen, untrained=True, lowering=lowering)
        _show_program(compiled.pruned, as_json=as_json)
        return
    with cost.threads(threads or torch.get_num_threads()), progress() as say:
        measure = Measure(
            target=target, batch=batch, rounds=rounds, calibrate=not untrained, progress=say, warn=warn
        )
        if planned:
            found = verbs.plan(
                given,
                chosen,
                Goal(latency, speedup, max_drop),
                images=images,
                search=Search(
                    first=first,
                    sites=sites,
                    fast=fast,
                    blocks=numbers(blocks),
                    table=None if latency_table is None else Path(latency_table),
                    mode=asked,
                ),
                measure=measure,
            )
            result = verbs.optimize(given, found, images=images, measure=measure)
        else:
            result = verbs.optimize(given, chosen, images=images, mode=asked, measure=measure)
        result.save(folder)
    show_report(result.report.at(folder), as_json=as_json, require_speedup=require_speedup)


@app.command()
def graph(
    source: SourceArgument,
    policy: Annotated[
        str | None, typer.Option("--policy", "-p", metavar="NAME|FILE", help="show the pruned graph")
    ] = None,
    keep: KeepOption = None,
    blocks: BlocksOption = None,
    restore: RestoreOption = None,
    mode: ModeOption = None,
    show_diff: Annotated[bool, typer.Option("--diff", help="show what the policy changes")] = False,
    form: Annotated[Format, typer.Option("--format", help="text or json")] = "text",
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="load weights; the structure needs none")
    ] = False,
    arch: ArchOption = None,
    example: ExampleOption = None,
    image_size: ImageSizeOption = None,
    allow_pickle: AllowPickle = False,
) -> None:
    """Show a model's structure block by block, and what a policy changes in it."""
    if show_diff and policy is None:
        raise typer.BadParameter("--diff needs a --policy to compare with")
    with_weights = pretrained or source == "shapes"
    given = sources.load(
        source,
        pretrained=with_weights,
        arch=arch,
        allow_pickle=allow_pickle,
        **inputs_of(example, image_size),
    )
    if policy is None:
        shown = compare(recognise(given))
    else:
        chosen = Policy.load(policy, keep=keep, blocks=numbers(blocks), restore=restore)
        compiled = compile_source(given, chosen, untrained=True, lowering=choose(chosen, mode))
        shown = compare(compiled.dense, compiled.pruned)
        if not show_diff:
            shown = without_changes(shown)
    if form == "json":
        print_json(shown.as_dict())
    else:
        for line in lines(shown, colour=out.is_terminal):
            out.print(line, markup=out.is_terminal)


@app.command()
def explain(
    source: SourceArgument,
    arch: ArchOption = None,
    example: ExampleOption = None,
    image_size: ImageSizeOption = None,
    allow_pickle: AllowPickle = False,
    as_json: JsonOption = False,
) -> None:
    """Say what is recognised in a model, what is not, and why."""
    given = sources.load(
        source,
        pretrained=source == "shapes",
        arch=arch,
        allow_pickle=allow_pickle,
        **inputs_of(example, image_size),
    )
    anatomy = recognise(given).anatomy
    assert anatomy is not None
    if as_json:
        print_json({**dataclasses.asdict(anatomy), "summary": anatomy.summary()})
        return
    for line in _explained(anatomy):
        out.print(line, markup=False)


@app.command("policies")
def list_policies(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME|FILE]", help="print this one as YAML, to copy and edit")
    ] = None,
    show_schema: Annotated[
        bool, typer.Option("--schema", help="print the JSON Schema of a policy file")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the presets, what each needs and which tasks it fits; or print one of them."""
    if show_schema and name is not None:
        raise typer.BadParameter("--schema is of every policy file, give no name")
    if show_schema:
        print_json(schema())
    elif name is not None:
        policy = Policy.load(name)
        print_json(policy.as_dict()) if as_json else out.print(policy.to_yaml(), end="", markup=False)
    elif as_json:
        print_json({name: policy.as_dict() for name, policy in presets().items()})
    else:
        out.print(_policies())


@app.command("targets")
def list_targets(as_json: JsonOption = False) -> None:
    """List the backends and whether each can run here."""
    rows = {
        name: (target.summary, target.missing())
        for name in targets.TARGETS
        for target in [targets.find(name)]
    }
    if as_json:
        print_json(
            {name: {"summary": summary, "missing": missing} for name, (summary, missing) in rows.items()}
        )
        return
    table = Table("target", "summary", "here", box=None, pad_edge=False)
    for name, (summary, missing) in rows.items():
        table.add_row(name, summary, missing or "yes")
    out.print(table)


@app.command("doctor")
def examine(as_json: JsonOption = False) -> None:
    """Find what is wrong with this installation, and say how to mend it (exit code 1)."""
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


for command in (cli_plan.plan, cli_plan.apply, cli_plan.sweep, cli_plan.bench):
    app.command()(command)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="print the version")] = False) -> None:
    """Make Vision Transformers faster by letting them look at fewer tokens."""
    if version:
        out.print(f"prunec {__version__}")
        raise typer.Exit


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    _quiet()
    try:
        app(arguments)
    except SystemExit as stop:  # typer's own way to end, also after a usage error
        return stop.code if isinstance(stop.code, int) else 1
    except PruneError as error:
        chatter.print(f"prunec: {error}", markup=False, soft_wrap=True)
        return error.exit_code
    except Exception as error:
        if os.environ.get("PRUNEC_TRACEBACK"):
            raise
        chatter.print(
            f"prunec: {type(error).__name__}: {error}\n"
            "  to do: this is a fault of prunec; PRUNEC_TRACEBACK=1 shows where, please report it",
            markup=False,
            soft_wrap=True,
        )
        return 1
    return 0


# --- small helpers ----------------------------------------------------------------------------


def _quiet() -> None:
    """Keep other libraries' chatter away from people who only asked for a result."""
    logging.getLogger("torch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(torch|timm|transformers)\b")
    warnings.showwarning = _warn


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    warn(str(message))


def _show_program(program: Program, *, as_json: bool) -> None:
    assert program.anatomy is not None
    assert program.plan is not None
    if as_json:
        print_json(
            {
                "plan": program.plan.as_dict(),
                "stages": [dataclasses.asdict(stage) for stage in program.stages],
            }
        )
        return
    out.print(program.anatomy.summary(), markup=False)
    out.print(f"mode {program.plan.lowering}", markup=False)
    for entry in (*program.plan.sites, *program.plan.notes, *program.stages):
        out.print(str(entry), markup=False)


def _policies() -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("policy", no_wrap=True)
    table.add_column("summary")
    table.add_column("rate", max_width=9)  # or a terminal of 80 columns would cut words
    table.add_column("needs")
    table.add_column("fits")
    for name, policy in presets().items():
        needs = ", ".join(sorted(policy.needs)) or "nothing"
        table.add_row(name, policy.summary, rates(policy), needs, "\n".join(policy.fits))
    return table


def _explained(anatomy: Anatomy) -> Iterator[str]:
    yield anatomy.summary()
    yield f"token axis   dimension {anatomy.token_dim} of the stream, {anatomy.tokens} tokens"
    row = "none that a head reads" if anatomy.class_token is None else f"row {anatomy.class_token}"
    row += ", row 0 can score" if anatomy.scoring_token != anatomy.class_token else ""
    yield f"class token  {row}"
    yield f"taps         {', '.join(anatomy.taps) or 'none'}"
    yield ""
    for block in anatomy.blocks:
        yield _described(block)
    for miss in anatomy.unmatched:
        yield f"not recognised: {miss}"
    for note in anatomy.notes:
        yield f"note: {note}"


def _described(block: Block) -> str:
    parts = []
    for branch in block.branches:
        words = [branch.kind, f"{branch.norm}-norm" if branch.norm != "none" else "no norm"]
        words += [core.form for core in branch.cores]
        words += [branch.activation] if branch.activation else []
        words += ["LayerScale"] if branch.layer_scale else []
        parts.append(" ".join(words))
    return f"block {block.index:<3} {block.path:<24} {' | '.join(parts)}"
