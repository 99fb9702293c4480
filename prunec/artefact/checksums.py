"""Size and SHA-256 of what an artefact holds: a file that was cut short or changed is refused by its name.

They tell an accident, not an attack: whoever can change a file can change its checksum too. What a file may
do once it is read is decided by its reader.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from prunec import documents

#: The key of the manifest's own checksum: of everything else that stands in it.
DIGEST = "digest"
_CHUNK = 2**20


def record(path: Path) -> dict[str, Any]:
    """Size and checksum of a file, as the manifest says them."""
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": _sha256(file)}


def digest(manifest: Mapping[str, Any]) -> str:
    """The checksum of a manifest, its own left out; how the file is laid out does not count."""
    rest = {key: value for key, value in manifest.items() if key != DIGEST}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def fault(path: Path, size: int, sha256: str) -> str | None:
    """What is wrong with a file: it is missing, cut short, or of other bytes; None where it is as it was."""
    try:
        with documents.open_file(path, 2**63) as file:
            found = path.stat().st_size
            if found != size:
                return f"has {found} bytes, and {size} were written"
            return None if _sha256(file) == sha256 else "is not what was written: its checksum differs"
    except documents.Unreadable as error:
        return str(error)


def _sha256(file: BinaryIO) -> str:
    found = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        found.update(chunk)
    return found.hexdigest()
