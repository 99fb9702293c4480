"""Latency tables: the measured seconds of a model's pieces on one device, and where they are kept.

A table is one JSON file with a checksum. It says where and what it was measured on, and serves nothing else:

```
measure --> LatencyTable --> costs(losses) --> search
               |    ^
               v    |          one file for each place and work, written whole or not at all;
            the cache          one process measures at a time, the others wait and find its table
```
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

from filelock import FileLock, Timeout
from platformdirs import user_cache_path
from pydantic import TypeAdapter, ValidationError

from prunec import documents
from prunec.errors import TableError, brief, first_few, shown
from prunec.policy.language import mistakes
from prunec.schedules.search import Costs, Row, Site, check_counts, check_rows

Facts = Mapping[str, str | int]
Warn = Callable[[str], None]

#: The version of the file's format; a table of another version is measured again.
FORMAT = 1
#: The spread of samples from which a table is not worth keeping.
NOISY = 0.2
#: How many stream lengths, and how many blocks, a table may have.
MOST = 1024
#: Seconds that nothing in a table takes.
LONGEST = 1e6
#: The folder of the cache, where the user's own is not wanted.
CACHE_VARIABLE = "PRUNEC_CACHE"


@dataclass(frozen=True)
class LatencyTable:
    """Measured seconds of a model's pieces on one device: what schedules are predicted from."""

    place: Facts  # where: device, threads, versions
    work: Facts  # what: model, kind of site, batch, dtype, mode, target
    counts: tuple[int, ...]  # lengths of the stream, descending; the first is that of the dense model
    dense: float  # seconds of the whole dense model, as it is: what a budget is a share of
    fixed: float  # seconds before the first block whose row is not zero
    blocks: tuple[Row, ...]  # [blocks][counts] seconds of a block; the last row has the head
    sites: tuple[float, ...]  # the four numbers that `site` computes with
    spread: float  # how far the samples lay apart, relative
    seconds: float  # what measuring took
    date: str
    samples: Mapping[str, tuple[float, ...]]  # as they were taken
    estimated: bool = False  # computed from ceilings of the device, not measured
    error: float = 0.05  # expected relative error of a prediction

    def __post_init__(self) -> None:
        check_counts(self.counts)
        if max(len(self.counts), len(self.blocks)) > MOST:  # the search takes the square of the counts
            raise ValueError(f"more than {MOST} counts or blocks")
        check_rows("blocks", self.blocks, len(self.blocks), len(self.counts))
        check_rows("sites", [self.sites], 1, 4)
        for name in ("dense", "fixed", "spread", "seconds", "error"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)}, not a finite number")
        if self.dense <= 0:
            raise ValueError(f"dense is {self.dense}, and nothing takes no time")
        largest = max(map(abs, chain((self.dense, self.fixed), self.sites, *self.blocks)))
        if largest > LONGEST:
            raise ValueError(f"a number is {largest:.3g}, more than {LONGEST:g}")

    # What things take ---------------------------------------------------------------------------------------

    def block(self, index: int, length: int) -> float:
        """Seconds of a block on a stream of that length: measured, or on the line between two that were."""
        return _between(self.counts, self.blocks[index], length)

    def site(self, entering: int, leaving: int) -> float:
        """Seconds that a site adds to its block: a fixed part, one for each token, one of what it saves.

        The last term is of a site inside its block, where a part of the block still sees all tokens.
        """
        always, entered, left, saved = self.sites
        difference = self._typical(entering) - self._typical(leaving)
        return always + entered * entering + left * leaving + saved * difference

    def predict(self, counts: Sequence[int], sites: Sequence[Site]) -> float:
        """Seconds of a schedule: the length of each block's stream, and its sites."""
        if len(counts) != len(self.blocks):
            raise ValueError(f"{len(counts)} counts for a table of {len(self.blocks)} blocks")
        blocks = sum(self.block(index, length) for index, length in enumerate(counts))
        return self.fixed + blocks + sum(self.site(entering, leaving) for _, entering, leaving in sites)

    def costs(self, losses: Sequence[Sequence[float]]) -> Costs:
        """The table, and what each block loses at each of its counts, as the search wants them."""
        sites = tuple(
            tuple(self.site(entering, leaving) for leaving in self.counts) for entering in self.counts
        )
        return Costs(self.counts, self.fixed, self.blocks, sites, tuple(map(tuple, losses)))

    def scaled(self, factor: float) -> LatencyTable:
        """The same table where all takes `factor` times as long; the samples stay as they were taken."""
        always, entered, left, saved = self.sites  # `saved` multiplies seconds of blocks: scaled already
        return replace(
            self,
            fixed=self.fixed * factor,
            blocks=tuple(tuple(seconds * factor for seconds in row) for row in self.blocks),
            sites=(always * factor, entered * factor, left * factor, saved),
        )

    def _typical(self, length: int) -> float:
        """Seconds of a block in the middle: the first may be counted elsewhere, the last has the head."""
        return self.block(len(self.blocks) // 2, length)

    @property
    def noise(self) -> str:
        """What is wrong with it where it was measured beside other work; empty where it was quiet."""
        if self.spread <= NOISY:
            return ""
        apart = f"its samples lie {self.spread:.0%} apart"
        return f"the latency table was measured in noise, {apart}: predictions may be far off"

    # Where it holds -----------------------------------------------------------------------------------------

    def differences(self, place: Facts, work: Facts) -> tuple[str, ...]:
        """Each field in which the table is about something else, named with both values."""
        return (*_differences(self.place, place), *_differences(self.work, work))

    def check(self, place: Facts, work: Facts, *, foreign: bool = False, file: Path | None = None) -> None:
        """TableError when the table is about something else.

        Args:
            place: where it is to be used.
            work: what is to be predicted.
            foreign: the table may be from another place, to plan for a device that is not here.
            file: where it was read from.
        """
        wrong = self.differences(self.place if foreign else place, work)
        if wrong:
            raise TableError(
                f"the latency table does not fit: {first_few(wrong, '; ', most=16)}",
                where=f"the table of {brief(self.date)}" if file is None else str(file),
                remedy="measure again; `prunec plan --predict` plans for a device that is not here",
            )

    # Its file -----------------------------------------------------------------------------------------------

    def as_dict(self) -> dict[str, Any]:
        """All fields as JSON has them, and the format's version."""
        return {"format": FORMAT, **cast(dict[str, Any], _ADAPTER.dump_python(self, mode="json"))}

    def write(self, path: Path) -> None:
        """Write the file, so that a reader finds the old one or the new one, never a part."""
        plain = self.as_dict()
        text = json.dumps({**plain, "checksum": _digest(plain)}, indent=1, allow_nan=False)
        partial = path.with_name(f".{path.name}.{uuid4().hex}")
        try:
            partial.write_text(text + "\n", encoding="utf-8")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def read(cls, path: Path) -> LatencyTable:
        """The table in a file; TableError when it is not one, or not as it was written."""
        try:
            plain = documents.load(path, "json", documents.LARGE)
        except documents.Unreadable as error:
            raise _unreadable(path, f"it {error}") from error
        if not isinstance(plain, dict):
            raise _unreadable(path, "it is not a JSON object")
        version = plain.get("format")
        if version != FORMAT:
            raise _unreadable(path, f"its format is {shown(version)}, this prunec reads {FORMAT}")
        if plain.pop("checksum", None) != _digest(plain):
            raise _unreadable(path, "its checksum is wrong: it was changed or damaged")
        return _built(plain, path)


_ADAPTER = TypeAdapter(LatencyTable)


# The cache --------------------------------------------------------------------------------------------------


def cached(
    place: Facts, work: Facts, measure: Callable[[], LatencyTable], *, folder: Path | None = None, warn: Warn
) -> LatencyTable:
    """The table of this place and work from the cache, measured first where there is none.

    Two processes that measure at once would disturb each other: only one does, whatever it measures.

    Args:
        place: where tables are to hold.
        work: what they are to tell.
        measure: gives the table of just that place and work.
        folder: where tables are kept; by default `cache_folder()`.
        warn: called for a damaged table, while it waits for another process, for a folder it cannot use.
    """
    folder = folder or cache_folder()
    path = folder / f"{_digest([dict(place), dict(work)])}.json"
    with suppress(TableError):
        return _kept(path, place, work)  # needs no lock: a file is whole or not there
    lock = _locked(folder, warn)
    if lock is None:
        return measure()  # which has been warned of
    with lock:
        if path.exists():  # another process wrote it meanwhile, or it is damaged
            try:
                return _kept(path, place, work)
            except TableError as error:
                warn(f"{error.what}; measuring again")
        table = measure()
        table.check(place, work)
        if table.noise:
            warn(f"{table.noise}; it is not kept: let nothing else run while a table is measured")
            return table
        try:
            table.write(path)
        except OSError as error:
            warn(_not_kept(folder, error))
    return table


def cache_folder() -> Path:
    """Where tables are kept: below PRUNEC_CACHE where that is set, else below the user's cache folder."""
    parent = os.environ.get(CACHE_VARIABLE)
    return (Path(parent) if parent else user_cache_path("prunec")) / "latency"


def _kept(path: Path, place: Facts, work: Facts) -> LatencyTable:
    table = LatencyTable.read(path)
    table.check(place, work)  # a file may have been renamed
    return table


def _locked(folder: Path, warn: Warn) -> AbstractContextManager[object] | None:
    """The right to measure, given back at the end of its `with`; None where the folder cannot be used."""
    lock = FileLock(folder / "measuring.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            return lock.acquire(timeout=0)
        except Timeout:
            warn("another process is measuring; waiting for it")
            return lock.acquire()
    except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
        warn(_not_kept(folder, error))
        return None


def _not_kept(folder: Path, error: Exception) -> str:
    return f"the latency table is not kept, {folder} cannot be used: {error}"


# Small parts ------------------------------------------------------------------------------------------------


def _between(counts: Sequence[int], row: Row, length: int) -> float:
    """The value at a count, or on the line between the two counts around it."""
    if not counts[-1] <= length <= counts[0]:
        raise ValueError(f"the table goes from {counts[-1]} to {counts[0]} tokens, not to {length}")
    below = bisect_left(counts, -length, key=lambda count: -count)
    if counts[below] == length:
        return row[below]
    share = (length - counts[below]) / (counts[below - 1] - counts[below])
    return row[below] + (row[below - 1] - row[below]) * share


def _differences(table: Facts, here: Facts) -> list[str]:
    return [
        f"{brief(name)} is {brief(str(table.get(name, 'not given')))} in the table, "
        f"{here.get(name, 'not given')} here"
        for name in {**table, **here}
        if table.get(name) != here.get(name)
    ]


def _built(plain: dict[str, Any], path: Path) -> LatencyTable:
    missing = [field.name for field in fields(LatencyTable) if field.name not in plain]
    if missing:
        raise _unreadable(path, f"it has no {', '.join(missing)}")
    try:
        return _ADAPTER.validate_python(plain)
    except ValidationError as error:
        raise _unreadable(path, mistakes(error)) from error


def _unreadable(path: Path, why: str) -> TableError:
    return TableError(
        f"{path.name} is not a latency table that can be used: {why}",
        where=str(path),
        remedy="measure again; a table is written by prunec and not edited",
    )


def _digest(plain: object) -> str:
    """Of the canonical JSON: the same for the same content, however it was written."""
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
