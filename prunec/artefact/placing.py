"""Where an artefact is written: beside its place, which it takes at the end, and over nothing of the user's.

    out, .out.prunec.new                 the new one is being written
    .out.prunec.old, .out.prunec.new     the old one is out of the way; stopped here, the next use restores it
    .out.prunec.old, out                 the new one has taken its place, the old one is deleted

Only files that prunec wrote are ever deleted: those that the manifest lists, and the usual ones.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from prunec.artefact.manifest import MANIFEST, WEIGHTS, Manifest
from prunec.errors import PruneError, UsageError, brief, first_few

#: What artefacts hold whose manifest does not list their files.
OWN = frozenset({MANIFEST, WEIGHTS, "report.json", "report.html"})
#: Under such a name safetensors writes a file before it gets its own.
_HALF_WRITTEN = re.compile(r"\.tmp\w{6}")
_WAIT = 60.0  # seconds for another process that writes to the same place


def check_place(folder: str | Path) -> None:
    """UsageError when no artefact can be written there; cheap, so that it is known before the work."""
    target = Path(folder)
    try:
        str(target).encode()  # the report names it
        places = _Places.of(target)
        for leftover in (places.new, places.old):
            _check_own(leftover, leftover)
        _check_replaceable(places.target, target)
        parent = next(parent for parent in places.target.parents if parent.exists())
        writable = parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)
        why = "may not be written to" if parent.is_dir() else "is a file"
    except (OSError, ValueError) as error:  # a name that is too long, has a NUL or is no text
        raise _unwritable(target, error) from error
    if not writable:
        raise UsageError(
            f"{target} cannot be written: {parent} {why}", remedy="choose another folder with -o"
        )


@contextmanager
def aside(target: Path) -> Iterator[Path]:
    """A new folder beside `target` that takes its place when all went well, and is removed when not."""
    places = _Places.of(target)
    try:
        places.target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(target, error) from error
    try:
        with _locked(places):
            _recover(places)
            places.new.mkdir()
            try:
                yield places.new
                _take_place(places, target)
            finally:
                with suppress(OSError, UsageError):
                    _remove(places.new)
    except (OSError, SafetensorError) as error:
        raise PruneError(
            f"{target} could not be written: {error}", remedy="nothing was left behind; is the disk full?"
        ) from error


def restore(folder: Path) -> None:
    """Bring back an artefact that was out of the way when its replacement was killed, where that is so."""
    with suppress(OSError, ValueError, UsageError):  # then it stays missing, which its reader says
        places = _Places.of(folder)
        if places.old.is_dir() and _vacant(places.target):
            with _locked(places):
                _recover(places)


# Whose files they are ---------------------------------------------------------------------------------------


def _check_replaceable(folder: Path, called: Path) -> None:
    """UsageError unless nothing is there, or nothing but an artefact."""
    if _vacant(folder):
        return
    try:
        Manifest.read(folder / MANIFEST)
    except PruneError as error:
        raise UsageError(
            f"{called} exists and is no prunec artefact", remedy="choose another folder with -o, or remove it"
        ) from error
    _check_own(folder, called)


def _there(path: Path) -> bool:
    """Whether something has the name; OSError where nothing can have it."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _vacant(folder: Path) -> bool:
    """Whether there is nothing, or an empty folder."""
    return not _there(folder) or (folder.is_dir() and not any(folder.iterdir()))


def _check_own(folder: Path, called: Path) -> None:
    """UsageError when a folder of prunec holds anything that prunec did not write."""
    foreign = _foreign(folder) if _there(folder) else []
    if foreign:
        raise UsageError(
            f"{called} holds {first_few(foreign)}, which prunec did not write and will not delete",
            where=str(called),
            remedy="move that elsewhere, or choose another folder with -o",
        )


def _foreign(folder: Path) -> list[str]:
    """What is no file of ours: files of other names, folders, links."""
    if folder.is_symlink() or not folder.is_dir():
        return [folder.name]
    own = _own(folder)
    with os.scandir(folder) as entries:
        return sorted(
            brief(e.name) for e in entries if not (e.name in own and e.is_file(follow_symlinks=False))
        )


def _own(folder: Path) -> set[str]:
    """Names of the files in a folder of prunec that are ours: the usual ones, and what the manifest lists."""
    listed: Iterable[str] = ()
    with suppress(PruneError):
        listed = Manifest.read(folder / MANIFEST).files
    half_written = (path.name for path in folder.iterdir() if _HALF_WRITTEN.fullmatch(path.name))
    return {*OWN, *listed, *half_written}


def _remove(folder: Path) -> None:
    """Delete a folder of ours, file by file: what is not ours stays, and an error says so."""
    _check_own(folder, folder)
    if not folder.exists():
        return
    own = _own(folder) - {MANIFEST}
    for name in (*own, MANIFEST):  # the manifest last, because it says which files are ours
        (folder / name).unlink(missing_ok=True)
    folder.rmdir()


# Taking the place -------------------------------------------------------------------------------------------


class _Places(NamedTuple):
    """The folder of an artefact, and what lies beside it while it is written."""

    target: Path
    new: Path
    old: Path
    lock: Path

    @classmethod
    def of(cls, folder: Path) -> _Places:
        target = Path(os.path.realpath(folder))  # a link stays, what it points to is replaced
        return cls(
            target, *(target.with_name(f".{target.name}.prunec.{end}") for end in ("new", "old", "lock"))
        )


def _take_place(places: _Places, called: Path) -> None:
    _check_replaceable(places.target, called)  # again: the work took its time
    if _vacant(places.target):
        places.new.rename(places.target)  # an empty folder makes way by itself
        return
    places.target.rename(places.old)
    try:
        _check_replaceable(places.old, called)  # from here on nobody can put a file in by the folder's name
        places.new.rename(places.target)
    except BaseException:
        places.old.rename(places.target)
        raise
    _remove(places.old)


def _recover(places: _Places) -> None:
    """Finish what a stopped process has left; nobody else is writing, because we have the lock."""
    _remove(places.new)
    if places.old.is_dir() and _vacant(places.target):
        places.old.rename(places.target)
    _remove(places.old)


@contextmanager
def _locked(places: _Places) -> Iterator[None]:
    """The right to write to a place; one process has it at a time, and a killed one has it no more."""
    lock = FileLock(places.lock)
    try:
        lock.acquire(timeout=_WAIT)
    except Timeout as error:
        raise UsageError(
            f"another process is writing to {places.target}", remedy="wait, or choose another folder with -o"
        ) from error
    except NotImplementedError:  # a file system without locks
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):
            places.lock.unlink(missing_ok=True)
        lock.release()


def _unwritable(target: Path, error: Exception) -> UsageError:
    why = error.strerror if isinstance(error, OSError) else str(error)
    return UsageError(
        f"{brief(str(target))} cannot be written: {why}", remedy="choose another folder with -o"
    )
