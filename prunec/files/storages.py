"""The numbers of tensors, which lie beside the pickle: of which kind, and read when a tensor has them."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import torch
from torch import Tensor

from prunec.files.opcodes import Named, Stored

_KINDS = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "ComplexFloat": torch.complex64,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
STORAGES = {f"torch.{name}Storage": dtype for name, dtype in _KINDS.items()}
DTYPES = {str(dtype): dtype for dtype in _KINDS.values()}


@dataclass
class Numbers:
    """The numbers in an open file, read when a tensor has them."""

    file: BinaryIO
    file_size: int
    places: Mapping[str, tuple[int, int]]  # by their key: where they begin, and how many bytes they are
    found: dict[str, Tensor] = field(default_factory=dict)

    def of(self, key: str) -> Tensor:
        """All bytes of a key. The same ones each time: tensors may share them."""
        if key not in self.found:
            begin, size = self.places[key]
            if begin + size > self.file_size:
                raise ValueError("it is cut short")
            content = bytearray(size)
            self.file.seek(begin)
            if self.file.readinto(content) != size:  # type: ignore[attr-defined]
                raise ValueError("it is cut short")
            self.found[key] = torch.frombuffer(content, dtype=torch.uint8) if size else torch.empty(0).byte()
        return self.found[key]


def begin_of(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Where the bytes of an archive's entry begin: after its own header, a name and padding."""
    file.seek(entry.header_offset + 26)
    name, padding = struct.unpack("<HH", file.read(4))
    return int(entry.header_offset + 30 + name + padding)


def number_type(stored: Any) -> tuple[str, torch.dtype]:
    """The key of numbers beside the pickle, and their kind: ("storage", kind, key, device, how many)."""
    place = stored.place if isinstance(stored, Stored) else None
    if type(place) is not tuple or len(place) < 5 or place[0] != "storage" or type(place[2]) is not str:
        raise ValueError("something in it refers to what is no tensor's numbers")
    if not isinstance(place[1], Named) or place[1].name not in STORAGES:
        raise ValueError("it has numbers of a kind that prunec does not read")
    return place[2], STORAGES[place[1].name]
