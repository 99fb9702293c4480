"""Checkpoints that torch.save wrote: read without running anything that is in them.

parse    the pickle's opcodes become inert values (opcodes.py); a training checkpoint's model is taken out
check    every name in what is left is looked at: one that is not trusted (trust.py) refuses the file
build    tensors from the file's numbers, and instances of trusted classes (building.py)
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from prunec.errors import first_few
from prunec.files import trust
from prunec.files.building import KNOWN, Builder
from prunec.files.opcodes import MOST_BYTES, Call, Named, NotTrusted, Pairs, Stored, parse
from prunec.files.storages import Numbers, begin_of, number_type

__all__ = ["NotTrusted", "read"]

#: Names that a file may want: each may import a file of the library that has it.
MOST_NAMES = 200
#: How a file of torch 1.6 or later begins.
ZIP = b"PK\x03\x04"
#: What the first pickle of an older file is.
MAGIC = 0x1950A86A20F9469CFC6C


def read(path: Path, keys: Sequence[str] = ()) -> Any:
    """What a .pt or .pth file holds: tensors, plain containers, and modules of trusted classes.

    Args:
        path: the file that torch.save wrote.
        keys: where the file holds a dict with one of them, only that item is read, the first one found; what
            stands beside it may be of any class, and is passed over.

    Raises:
        NotTrusted: it wants other names, or gives an object a state that such an object never has.
        Exception: whatever zipfile, pickletools and torch raise for a damaged file.
    """
    with path.open("rb") as file:
        is_zip = file.read(len(ZIP)) == ZIP
        file.seek(0)
        value, numbers = _zipped(file, path) if is_zip else _older(file, path)
        if key := _key(value, keys):
            value = [item for name, item in value.pairs if type(name) is str and name == key][-1]
        _check_names(value)
        built = Builder(numbers).build(value)
        return {key: built} if key else built


def _key(value: Any, keys: Sequence[str]) -> str | None:
    if not isinstance(value, Pairs):
        return None
    held = {name for name, _ in value.pairs if type(name) is str}
    return next((key for key in keys if key in held), None)


def _check_names(value: Any) -> None:
    """NotTrusted where a value holds a name that is not trusted, wherever in it."""
    names = _names(value) - KNOWN
    if len(names) > MOST_NAMES:
        raise NotTrusted(f"wants {len(names)} classes and functions, more than {MOST_NAMES}")
    refused = sorted(name for name in names if name != trust.PARTIAL and trust.find(name) is None)
    if refused:
        raise NotTrusted(f"wants {first_few(refused)}")


def _names(value: Any) -> set[str]:
    names: set[str] = set()
    seen: set[int] = set()
    left = [value]
    while left:
        part = left.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, Named):
            names.add(part.name)
        elif isinstance(part, Stored):
            left.append(part.place)
        elif isinstance(part, list | tuple):
            left.extend(part)
        elif isinstance(part, Pairs):
            left.extend(half for pair in part.pairs for half in pair)
            if isinstance(part, Call):
                left.extend((part.function, part.args, part.state, part.elements))
    return names


# Where things are in a file ---------------------------------------------------------------------------------


def _zipped(file: BinaryIO, path: Path) -> tuple[Any, Numbers]:
    """The pickle in an archive, and where its numbers are."""
    with zipfile.ZipFile(file) as archive:
        pickle = _pickle_of(archive, path)
        value, _ = parse(io.BytesIO(archive.read(pickle)))
        prefix = pickle.filename.removesuffix("data.pkl")
        entries = {entry.filename: entry for entry in archive.infolist()}
        order = entries.get(f"{prefix}byteorder")
        if order is not None and (order.file_size > 8 or archive.read(order) != b"little"):
            raise ValueError("its numbers are not written in little-endian order")
        places = {
            name.removeprefix(f"{prefix}data/"): (begin_of(file, entry), entry.file_size)
            for name, entry in entries.items()
            if name.startswith(f"{prefix}data/")
        }
    return value, Numbers(file, path.stat().st_size, places)


def _pickle_of(archive: zipfile.ZipFile, path: Path) -> zipfile.ZipInfo:
    entries = archive.infolist()
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise ValueError("it is TorchScript, which holds code")
    if len({entry.filename for entry in entries}) < len(entries):
        raise NotTrusted("holds two entries of one name")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise NotTrusted("is a compressed archive, which torch.save does not write")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise NotTrusted("is an archive whose entries overlap")
    pickles = [entry for entry in entries if entry.filename.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise NotTrusted(f"holds {len(pickles)} pickles where torch.save writes one")
    if pickles[0].file_size > MOST_BYTES:
        raise NotTrusted(f"holds a pickle of {pickles[0].file_size >> 20} MiB, without its numbers")
    return pickles[0]


def _older(file: BinaryIO, path: Path) -> tuple[Any, Numbers]:
    """Before torch 1.6: magic number, protocol, system, objects, keys of the numbers, and then these."""
    if parse(file)[0] != MAGIC:
        raise ValueError("torch.save did not write it")
    for _ in ("protocol", "system"):
        parse(file)
    value, stored = parse(file)
    keys, _ = parse(file)
    sizes = dict(number_type(found) for found in stored)
    places: dict[str, tuple[int, int]] = {}
    for key in keys:
        count = struct.unpack("<q", file.read(8))[0]
        size = count * sizes[key].itemsize
        if count < 0 or key in places:
            raise ValueError("its numbers are not where it says")
        places[key] = file.tell(), size
        file.seek(size, io.SEEK_CUR)
    return value, Numbers(file, path.stat().st_size, places)
