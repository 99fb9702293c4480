"""What every run says of its versions; what every test gets: a seed, one thread per worker, golden files."""

from __future__ import annotations

import gc
import os

import pytest
import torch

from prunec import compat
from tests import compat_page, goldens, sharing, versions

golden = goldens.golden
recognised_once = pytest.fixture(scope="module")(sharing.recognised_once)


def pytest_addoption(parser: pytest.Parser) -> None:
    goldens.pytest_addoption(parser)
    parser.addoption(
        "--record", choices=tuple(compat_page.ENVIRONMENTS), help="store this run as a row of docs/compat.md"
    )


def pytest_configure(config: pytest.Config) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores; more threads would only fight for them
        torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # libraries stay: to look through all of them takes a second each time


def pytest_report_header() -> list[str]:
    return versions.report()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    environment = config.getoption("--record")
    if environment is None:
        return
    terminalreporter.section("compat")
    for line in [
        compat_page.COLUMNS,
        *map(compat_page.cells, compat_page.record(environment, terminalreporter.stats)),
    ]:
        terminalreporter.write_line("".join(f"{cell:<14}" for cell in line))


@pytest.fixture(autouse=True)
def _seed() -> None:
    compat.seed(0)
