from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import prunec
from prunec.version import __version__

ROOT = Path(__file__).parents[1]


def test_it_is_a_version_that_tools_can_order() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc|\.dev)\d+)?", __version__)


def test_the_package_and_its_metadata_say_the_same() -> None:
    assert prunec.__version__ == __version__ == version("prunec")


def test_the_newest_part_of_the_changelog_is_of_it_or_of_what_comes_next() -> None:
    headings = re.findall(r"^## +\[?([^\]\s]+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert headings[0].lower() == "unreleased" or headings[0] == __version__
