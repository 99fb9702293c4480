from __future__ import annotations

import re
from pathlib import Path

import prunec


def test_only_this_package_touches_what_is_private_in_torch() -> None:
    private = re.compile(r"torch\._(?!_version)|torch\.fx\.experimental|import torch\.utils\._(?!pytree)")
    package = Path(prunec.__file__).parent
    found = {
        f"{path.relative_to(package)}: {line.strip()}"
        for path in package.rglob("*.py")
        if path.parent != package / "compat"
        for line in path.read_text(encoding="utf-8").splitlines()
        if private.search(line) and not line.lstrip().startswith(('"', "#"))
    }
    assert found == set()
