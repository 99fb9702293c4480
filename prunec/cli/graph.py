"""`prunec graph` and `prunec explain`: what a model is made of, and what a policy changes in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from prunec.cli.options import (
    AllowPickle,
    ArchOption,
    BlocksOption,
    ExampleOption,
    ImageSizeOption,
    JsonOption,
    KeepOption,
    ModeOption,
    RestoreOption,
    SourceArgument,
    SubmoduleOption,
)
from prunec.cli.printing import out, print_json
from prunec.cli.values import inputs_of, numbers, read_source

if TYPE_CHECKING:
    from prunec.report.graph_diff import Diff
    from prunec.structure import Anatomy, Block

Format = Literal["text", "json"]


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
    stages: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--stages", metavar="A B", help="show the lines of the graph that differ between two stages"
        ),
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="text or json")] = "text",
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="load weights; the structure needs none")
    ] = False,
    submodule: SubmoduleOption = None,
    arch: ArchOption = None,
    example: ExampleOption = None,
    image_size: ImageSizeOption = None,
    allow_pickle: AllowPickle = False,
) -> None:
    """Show a model's structure block by block, and what a policy changes in it."""
    if show_diff and policy is None:
        raise typer.BadParameter("--diff needs a --policy to compare with")

    from prunec.compiler import compile_source, recognise
    from prunec.policy.lowering import choose
    from prunec.policy.policy import Policy
    from prunec.report.graph_diff import compare, without_changes
    from prunec.report.stage_diff import between

    with_weights = pretrained or source == "shapes"
    given = read_source(
        source,
        pretrained=with_weights,
        arch=arch,
        allow_pickle=allow_pickle,
        inputs=inputs_of(example, image_size),
        submodule=submodule,
    )
    if policy is None:
        dense = after = recognise(given)
    else:
        chosen = Policy.load(policy, keep=keep, blocks=numbers(blocks), restore=restore)
        compiled = compile_source(given, chosen, calibrate=False, lowering=choose(chosen, mode))
        dense, after = compiled.dense, compiled.pruned
    if stages is not None:
        out.print(between(after, *stages), markup=False)
        return
    shown = compare(dense, after)
    _show(shown if show_diff else without_changes(shown), form)


def _show(shown: Diff, form: Format) -> None:
    """The sections of a model, as text or JSON."""
    from prunec.report.graph_diff import lines

    if form == "json":
        print_json(shown.as_dict())
        return
    for line in lines(shown, colour=out.is_terminal):
        out.print(line, markup=out.is_terminal)


def explain(
    source: SourceArgument,
    submodule: SubmoduleOption = None,
    arch: ArchOption = None,
    example: ExampleOption = None,
    image_size: ImageSizeOption = None,
    allow_pickle: AllowPickle = False,
    as_json: JsonOption = False,
) -> None:
    """Say what is recognised in a model, what is not, and why."""
    from prunec.compiler import recognise

    given = read_source(
        source,
        pretrained=source == "shapes",
        arch=arch,
        allow_pickle=allow_pickle,
        inputs=inputs_of(example, image_size),
        submodule=submodule,
    )
    anatomy = recognise(given).anatomy
    if as_json:
        print_json({**dataclasses.asdict(anatomy), "summary": anatomy.summary()})
        return
    for line in _explained(anatomy):
        out.print(line, markup=False)


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
