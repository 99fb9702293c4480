"""The golden fixture of goldens.py: it must notice, explain and rewrite."""

from __future__ import annotations

from pathlib import Path

import pytest

CASE = """
def test_case(golden):
    golden("graphs/case", "one\\ntwo\\nthree")
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest(Path(__file__).with_name("goldens.py").read_text())
    pytester.makepyfile(CASE)
    return pytester


def test_a_missing_file_fails_and_names_the_command(project: pytest.Pytester) -> None:
    result = project.runpytest_inprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["+one", "+two", "+three", "*make golden*"])


def test_the_option_writes_the_file_and_then_it_passes(project: pytest.Pytester) -> None:
    project.runpytest_inprocess("--update-golden").assert_outcomes(passed=1)
    assert (project.path / "golden/graphs/case.txt").read_text() == "one\ntwo\nthree\n"
    project.runpytest_inprocess().assert_outcomes(passed=1)


def test_a_difference_is_shown_and_the_file_is_left_alone(project: pytest.Pytester) -> None:
    file = project.path / "golden/graphs/case.txt"
    file.parent.mkdir(parents=True)
    file.write_text("one\n2\nthree\n")
    result = project.runpytest_inprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["--- golden/graphs/case.txt", " one", "-2", "+two", " three"])
    assert file.read_text() == "one\n2\nthree\n"
