"""The commands, each imported when it is run or its own help is asked for: `prunec --help` imports none.

A command in turn imports what it runs in its function, not in its module, so that its help needs no torch.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from prunec.cli.printing import warn


class Entry(NamedTuple):
    """Where a command is, and the first line of its help."""

    place: str  # module:function
    help: str


#: In the order of `prunec --help`.
COMMANDS = {
    "optimize": Entry(
        "prunec.cli.optimize:optimize", "Transform a model, prove it, measure it, and write the artefact."
    ),
    "run": Entry(
        "prunec.cli.artefacts:run",
        "Run an artefact's model on pictures, prepared as it needs them, and print what it says.",
    ),
    "verify": Entry(
        "prunec.cli.artefacts:verify",
        "Check an artefact's files, and compare its model with what was recorded (exit code 4).",
    ),
    "graph": Entry(
        "prunec.cli.graph:graph",
        "Show a model's structure block by block, and what a policy changes in it.",
    ),
    "explain": Entry("prunec.cli.graph:explain", "Say what is recognised in a model, what is not, and why."),
    "policies": Entry(
        "prunec.cli.lists:list_policies",
        "List the presets, what each needs, fits, and lost on real weights; or print one of them.",
    ),
    "targets": Entry(
        "prunec.cli.lists:list_targets", "List the backends, what each needs, and whether it can run here."
    ),
    "doctor": Entry(
        "prunec.cli.doctor:examine",
        "Find what is wrong with this installation, and say how to fix it (exit code 1).",
    ),
    "plan": Entry(
        "prunec.cli.plan:plan",
        "Find the schedule that reaches a goal on this device, and print it as YAML: edit it, then apply it.",
    ),
    "apply": Entry(
        "prunec.cli.plan:apply",
        "Transform a model as a plan says, prove it, measure it, and write the artefact.",
    ),
    "sweep": Entry(
        "prunec.cli.sweep:sweep",
        "Build and time schedules from the fastest to the gentlest: what each share of the time costs.",
    ),
    "triton": Entry(
        "prunec.cli.triton:triton",
        "Write a model repository of Triton Inference Server out of an artefact of target onnx or aoti.",
    ),
    "bench": Entry(
        "prunec.cli.bench:bench",
        "Measure a model's latency table: its blocks at every stream length, and what a site costs.",
    ),
}


#: Options under the name that they had in the last release, and the one that they have now.
RENAMED = {"--bound": "--max-tokens", "--untrained": "--no-calibrate"}


def load(name: str) -> TyperCommand:
    """The command of that name, imported, with all its options."""
    module, function = COMMANDS[name].place.split(":")
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    alone.command(name)(getattr(importlib.import_module(module), function))
    command = typer.main.get_command(alone)
    assert isinstance(command, TyperCommand)
    return command


class LazyGroup(TyperGroup):
    """A group that lists its commands from the table, and imports the one that is called."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, entry in COMMANDS.items():
            self.add_command(TyperCommand(name, help=entry.help))

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command that the arguments name: its own in the place of the table's line."""
        name, _, rest = super().resolve_command(ctx, args)
        return name, None if name is None else load(name), [_renamed(argument) for argument in rest]


def _renamed(argument: str) -> str:
    """An option by the name that it has now, with a warning where that is not what was typed."""
    option, equals, value = argument.partition("=")
    if option not in RENAMED:
        return argument
    warn(f"{option} is now {RENAMED[option]}; the old name works for one release")
    return RENAMED[option] + equals + value
