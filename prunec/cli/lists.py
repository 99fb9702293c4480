"""`prunec policies` and `prunec targets`: what there is to choose from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from prunec.cli.options import JsonOption
from prunec.cli.printing import out, print_json

if TYPE_CHECKING:
    from prunec.policy.judged import Judged
    from prunec.policy.policy import Policy


def list_policies(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME|FILE]", help="print this one as YAML, to copy and edit")
    ] = None,
    show_schema: Annotated[
        bool, typer.Option("--schema", help="print the JSON Schema of a policy file")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the presets, what each needs, fits, and lost on real weights; or print one of them."""
    if show_schema and name is not None:
        raise typer.BadParameter("--schema is of every policy file, give no name")

    from prunec.policy.judged import judged
    from prunec.policy.policy import Policy, presets, schema

    if show_schema:
        print_json(schema())
    elif name is not None:
        policy = Policy.load(name)
        print_json(policy.as_dict()) if as_json else out.print(policy.to_yaml(), end="", markup=False)
    elif as_json:
        found = judged().as_dict()
        print_json(
            {name: {**policy.as_dict(), "measured": found.get(name)} for name, policy in presets().items()}
        )
    else:
        out.print(_table(presets()))
        out.print(f"\n{_about(judged())}", markup=False)
        out.print(_measured(judged()))


def list_targets(as_json: JsonOption = False) -> None:
    """List the backends, what each needs, and whether it can run here."""
    from prunec import targets

    found = {name: targets.find(name) for name in targets.TARGETS}
    if as_json:
        print_json(
            {
                name: {
                    "summary": target.summary,
                    "needs": target.needs,
                    "missing": target.missing(),
                    "modes": list(target.modes),
                    "precisions": list(target.precisions),
                    "files": list(target.files) if isinstance(target, targets.FileTarget) else [],
                }
                for name, target in found.items()
            }
        )
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("target", no_wrap=True)
    table.add_column("summary")
    table.add_column("needs", no_wrap=True)
    table.add_column("here")
    for name, target in found.items():
        kinds = ", ".join(target.precisions)
        cells = (f"{target.summary}; {kinds}", target.needs or "nothing", target.missing() or "yes")
        table.add_row(name, *map(escape, cells))  # prunec[onnx] is no markup
    out.print(table)


def _table(policies: Mapping[str, Policy]) -> Table:
    from prunec.policy.rules import rates

    table = Table(box=None, pad_edge=False)
    table.add_column("policy", no_wrap=True)
    table.add_column("summary")
    table.add_column("rate", max_width=9)  # or a terminal of 80 columns would cut words
    table.add_column("needs")
    table.add_column("fits")
    for name, policy in policies.items():
        needs = ", ".join(sorted(policy.needs)) or "nothing"
        table.add_row(name, policy.summary, rates(policy), needs, "\n".join(policy.fits))
    return table


def _about(found: Judged) -> str:
    resize = found.resize
    return "\n".join(
        [
            f"On real weights ({found.model}, {found.pictures}, {found.date}),",
            "nothing trained. error: relative L2 of all tokens, in brackets that of random",
            "tokens in the same numbers; class token: cosine; heatmap: correlation. The same",
            f"model on a smaller picture, at {resize.flops:.0%} of the FLOPs: {resize.error:.2f}, "
            f"{resize.class_token:.3f}, {resize.heatmap:.3f}.",
        ]
    )


def _measured(found: Judged) -> Table:
    table = Table("policy", "FLOPs", "error", "class token", "heatmap", box=None, pad_edge=False)
    for name, own in sorted(found.presets.items(), key=lambda pair: pair[1].error):
        error = f"{own.error:.2f} ({found.random[name].error:.2f})"
        table.add_row(name, f"{own.flops:.0%}", error, f"{own.class_token:.3f}", f"{own.heatmap:.3f}")
    return table
