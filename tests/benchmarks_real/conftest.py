"""The benchmark's files are scripts that stand in one folder, as Python finds them when it runs one."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "real"))
