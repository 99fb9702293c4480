from __future__ import annotations

import importlib
import inspect

import click
import pytest

from prunec.cli.commands import COMMANDS, RENAMED, LazyGroup, load


@pytest.mark.parametrize("name", COMMANDS)
def test_the_line_of_a_command_is_the_first_of_its_own_help(name: str) -> None:
    module, function = COMMANDS[name].place.split(":")
    said = inspect.getdoc(getattr(importlib.import_module(module), function)) or ""
    assert said.splitlines()[0] == COMMANDS[name].help


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_loaded_with_its_name_and_options(name: str) -> None:
    command = load(name)
    options = {option for parameter in command.params for option in parameter.opts}
    assert command.name == name
    assert "--json" in options or (name == "graph" and "--format" in options)


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_old_option_works_with_a_warning(old: str, new: str, capsys: pytest.CaptureFixture[str]) -> None:
    group = LazyGroup(name="prunec")
    with click.Context(group) as context:
        _, _, arguments = group.resolve_command(context, ["optimize", "shapes", old, f"{old}=9"])
    assert arguments == ["shapes", new, f"{new}=9"]
    said = f"prunec: warning: {old} is now {new}; the old name works for one release"
    assert capsys.readouterr().err.splitlines() == [said, said]


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_help_shows_the_new_option_alone(old: str, new: str) -> None:
    options = {
        option
        for parameter in load("optimize").params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    assert new in options
    assert old not in options
