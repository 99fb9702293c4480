"""Runs every hostile case through the command line, each in a process of its own, and says what became of it.

python -m tests.hostile.runner FOLDER [NAME ...]     prints JSON: one object for each case

One process imports what prunec may import, and forks for each case: so a case costs what the case costs.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import transformers
from typer import main as _  # noqa: F401

import prunec
from prunec import cli
from prunec.errors import PruneError
from tests.hostile import CANARY, Hostile, pickles, sources

CASES: tuple[Hostile, ...] = (*pickles.HOSTILE, *sources.HOSTILE)
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
        start, resident = time.perf_counter(), _resident()
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
            "mib": max(0, usage.ru_maxrss - resident) >> 10,
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


def main() -> None:
    """Run the cases that are named, or all."""
    torch.set_num_threads(1)
    folder, *names = sys.argv[1:]
    cases = [case for case in CASES if not names or case.name in names]
    json.dump([run(case, Path(folder, str(number))) for number, case in enumerate(cases)], sys.stdout)


if __name__ == "__main__":
    assert timm
    assert transformers.ViTModel
    main()
