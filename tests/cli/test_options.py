"""An option that several commands have is the same one in each of them."""

from __future__ import annotations

import re
from typing import Annotated, get_args, get_origin

import pytest
import typer

from prunec import cli
from prunec.cli import options
from prunec.cli.commands import COMMANDS, load

SHARED = {
    name: get_args(value)[1]
    for name, value in vars(options).items()
    if get_origin(value) is Annotated or name.endswith(("Option", "Weights"))
}


def parameters(command: str) -> dict[str, typer.core.TyperOption]:
    return {option: one for one in load(command).params for option in one.opts if option.startswith("--")}


def test_an_option_of_many_commands_has_one_help() -> None:
    helps: dict[str, set[str]] = {}
    for name in COMMANDS:
        for option, parameter in parameters(name).items():
            helps.setdefault(option, set()).add(parameter.help or "")
    # a table, a plan, a folder; graph needs no policy; run answers at once where it does not compile
    own = {"--json", "--output", "--help", "--policy", "--target"}
    assert {option: said for option, said in helps.items() if len(said) > 1 and option not in own} == {}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is(name: str) -> None:
    assert [option for option, parameter in parameters(name).items() if not parameter.help] == []


def test_every_shared_option_is_one_of_some_command() -> None:
    used = {option for name in COMMANDS for option in parameters(name)}
    declared = {name for info in SHARED.values() for name in getattr(info, "param_decls", None) or ()}
    assert {name for name in declared if name.startswith("--")} - used == set()


@pytest.mark.parametrize(
    ("option", "least"), [("--batch", 1), ("--rounds", 5), ("--threads", 1), ("--sites", 1), ("--bound", 1)]
)
def test_counts_have_a_least(option: str, least: int, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["optimize", "shapes", "--policy", "evit", option, str(least - 1)])
    said = capsys.readouterr()
    assert (code, said.out) == (2, "")
    assert option in said.err
    assert re.search(rf"(>=|equal to) ?{least}\b", said.err)  # as the version of typer says it
