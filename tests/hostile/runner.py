"""Runs every hostile case through the command line, each in a process of its own, and says what became of it.

    python -m tests.hostile.runner FOLDER [NAME ...]     prints JSON: one object for each case
    python -m tests.hostile.runner FOLDER --page         writes docs/security.md

One process imports what prunec may import, and forks for each case: so a case costs what the case costs.
"""

from __future__ import annotations

import datetime
import importlib
import json
import os
import pkgutil
import resource
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch._dynamo
import transformers

import prunec
from prunec import cli
from prunec.errors import PruneError
from tests.hostile import CANARY, Hostile, documents, folders, opcodes, pickles, sources

# Modules of prunec and PyTorch that are imported when they are first used: once here, and not in each case.
for module in pkgutil.walk_packages(prunec.__path__, "prunec."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)

CASES: tuple[Hostile, ...] = (
    *pickles.HOSTILE,
    *opcodes.HOSTILE,
    *folders.HOSTILE,
    *sources.HOSTILE,
    *documents.HOSTILE,
)
PAGE = Path(__file__).parents[2] / "docs" / "security.md"
HEAD = "## The table"
#: After so many seconds a case is ended.
SECONDS = 30
#: What a case may not do: start a program, or reach the network.
WATCHED = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "subprocess.Popen",
    "socket.connect",
    "socket.getaddrinfo",
)


def run(case: Hostile, folder: Path) -> dict[str, Any]:
    """One case, in a folder of its own."""
    folder.mkdir(parents=True)
    before = Path.cwd()
    os.chdir(folder)
    try:
        arguments = case.write(Path())
        start = time.perf_counter()
        child = os.fork()
        if child == 0:
            _child(arguments)
        _, status, usage = os.wait4(child, 0)
        seconds = time.perf_counter() - start
        message = Path("stderr").read_text(errors="replace") if Path("stderr").exists() else ""
        return {
            "name": case.name,
            "what": case.what,
            "code": os.waitstatus_to_exitcode(status),
            "seconds": round(seconds, 1),
            "mib": (usage.ru_maxrss - int(Path("resident").read_text())) >> 10,
            "message": [line for line in message.splitlines() if line.strip()],
            "ran": Path(CANARY).exists(),
            "watched": Path("watched").read_text().split() if Path("watched").exists() else [],
        }
    finally:
        os.chdir(before)


def _child(arguments: Sequence[str]) -> None:
    """Never returns."""
    code = 70
    try:
        signal.alarm(SECONDS)
        Path("resident").write_text(str(_resident()))
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), number)
        watched = os.open("watched", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        sys.addaudithook(
            lambda event, _: os.write(watched, f"{event}\n".encode()) if event in WATCHED else None
        )
        code = _called(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _called(arguments: Sequence[str]) -> int:
    if arguments[0] != "load":
        return cli.main(list(arguments))
    try:  # artefacts are read in Python
        prunec.load(arguments[1])
    except PruneError as error:
        print(f"prunec: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _resident() -> int:
    """KiB of this process, which the child begins with."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() >> 10


def page(results: Sequence[dict[str, Any]]) -> str:
    """The page of docs: what each case is, and what it got."""
    rows = [
        f"| {row['name']} | {row['what']} | {row['code']} | {_cell(row['message'])} | {row['seconds']} s |"
        for row in results
    ]
    facts = f"torch {torch.__version__}, timm {timm.__version__}, transformers {transformers.__version__}"
    slowest, largest = (max(row[of] for row in results) for of in ("seconds", "mib"))
    return (
        PAGE.read_text(encoding="utf-8").partition(HEAD)[0]
        + f"{HEAD}\n\n{len(results)} files, {datetime.date.today()}, {facts}; the slowest took {slowest} s, "
        f"the largest {largest} MiB beyond what was imported.\n\n"
        "| case | what it is | exit code | first line of the message | time |\n|---|---|---|---|---|\n"
        + "\n".join(rows)
        + "\n"
    )


def _cell(message: Sequence[str]) -> str:
    first = (message or [""])[0].removeprefix("prunec: ").replace("|", "\\|").replace("<", "&lt;")
    return first if len(first) <= 160 else f"{first[:160]}..."


def main() -> None:
    """Run the cases that are named, or all."""
    torch.set_num_threads(1)
    folder, *names = sys.argv[1:]
    is_page = names == ["--page"]
    cases = [case for case in CASES if is_page or not names or case.name in names]
    results = [run(case, Path(folder, str(number))) for number, case in enumerate(cases)]
    if is_page:
        PAGE.write_text(page(results), encoding="utf-8")
    else:
        json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
