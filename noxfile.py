"""The core of the tests on the oldest, the tested and the newest versions, each in an environment of its own.

`make compat` runs all three (each takes about 5 GB and some minutes); `.venv/bin/nox -s oldest` runs one, and
`.venv/bin/nox -s oldest -- @tests/fast.txt` other tests, as .github/workflows/tests.yml does.
"""

from __future__ import annotations

import nox

EXTRAS = ("timm", "hf", "report", "test")
PROJECT = f".[{','.join(EXTRAS)}]"
PYTEST = ("python", "-m", "pytest", "-n", "2", "--dist", "worksteal")

nox.options.reuse_existing_virtualenvs = True


@nox.session
def oldest(session: nox.Session) -> None:
    """The lower bounds of pyproject.toml."""
    session.install("--upgrade", *lower_bounds(), "--editable", PROJECT)
    check(session)


@nox.session
def current(session: nox.Session) -> None:
    """The versions of constraints.txt."""
    session.install("--upgrade", "--constraint", "constraints.txt", "--editable", PROJECT)
    check(session)


@nox.session
def newest(session: nox.Session) -> None:
    """Whatever pip takes."""
    session.install("--upgrade", "--upgrade-strategy", "eager", "--editable", PROJECT)
    check(session)


def lower_bounds() -> list[str]:
    """`torch==2.11` for `torch>=2.11`: of everything that is needed at run time, extras included."""
    project = nox.project.load_toml("pyproject.toml")["project"]
    extras = [extra for extra in EXTRAS if extra != "test"]
    needed = [
        *project["dependencies"],
        *(each for extra in extras for each in project["optional-dependencies"][extra]),
    ]
    return [each.replace(">=", "==") for each in needed]


def check(session: nox.Session) -> None:
    """Run the core and store what came out, whether it passed or not; or run what is given after `--`."""
    tests = session.posargs or ["@tests/core.txt", f"--record={session.name}"]
    session.run(*PYTEST, *tests, env={"OMP_NUM_THREADS": "1"})
