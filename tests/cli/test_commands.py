from __future__ import annotations

import importlib
import inspect

import pytest

from prunec.cli.commands import COMMANDS, load


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
