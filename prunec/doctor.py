"""What is wrong with this installation, and how to fix it.

Packages that do not fit each other fail in odd places: an operator that does not exist, a crash in an import.
So each is imported in another process, which reports what happened and may crash without harm.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prunec import targets

Health = Literal["well", "note", "ill"]
Facts = Mapping[str, Any]

SECONDS = 120  # for all imports together; a cold disk is slow
OLDEST_TORCH = (2, 11)
#: package -> (its extra of prunec, the oldest version that is read)
OPTIONAL = {"torchvision": ("timm", (0, 26)), "timm": ("timm", (1, 0, 25)), "transformers": ("hf", (5,))}
NVIDIA, DISPLAY = "0x10de", "0x03"  # vendor and class of a PCI device

PROBE = """
import importlib, json

def report(name, **facts):
    print(json.dumps({"name": name, **facts}), flush=True)

for name in ("torch", "torchvision", "timm", "transformers"):
    report(name, error="the process ended while it was imported")  # stands unless another line follows
    try:
        package = importlib.import_module(name)
        if name == "transformers":
            importlib.import_module("transformers.modeling_utils")  # the package itself loads nothing
        facts = {"version": package.__version__}
        if name == "torch":
            facts.update(cuda=package.version.cuda, device=None, trouble=None)
            try:
                package.cuda.init()
                facts.update(device=package.cuda.get_device_name())
            except Exception as error:
                facts.update(trouble=str(error).splitlines()[0])
        report(name, **facts)
    except ModuleNotFoundError as error:
        report(name, **({"missing": True} if error.name == name else {"error": str(error)}))
    except BaseException as error:
        report(name, error=f"{type(error).__name__}: {error}")
"""


@dataclass(frozen=True)
class Finding:
    """One thing looked at: how it is, and what to do about it."""

    subject: str
    health: Health
    what: str
    remedy: str = ""


def examine() -> tuple[Finding, ...]:
    """Look at everything; all is well when no finding is ill."""
    facts = probe()
    torch = facts["torch"]
    packages = [_package(name, facts[name], torch) for name in OPTIONAL]
    return (_torch(torch), *packages, _gpu(torch), _compiler())


def probe() -> dict[str, Facts]:
    """What happened when another process imported the packages."""
    command = [sys.executable, "-W", "ignore", "-c", PROBE]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False).stdout
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
    facts: dict[str, Facts] = {
        name: {"error": "not looked at: another import failed first"} for name in ("torch", *OPTIONAL)
    }
    for line in output.splitlines():
        if line.startswith('{"name"'):  # packages may print as well
            fact = json.loads(line)
            facts[fact.pop("name")] = fact
    return facts


# One function per subject -----------------------------------------------------------------------------------


def _torch(facts: Facts) -> Finding:
    if "version" not in facts:
        return Finding(
            "torch", "ill", facts.get("error", "not installed"), "pip install --force-reinstall torch"
        )
    if _numbers(facts["version"]) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        what = f"{facts['version']} is too old: prunec needs {oldest}"
        return Finding("torch", "ill", what, "pip install --upgrade torch torchvision")
    return Finding("torch", "well", facts["version"])


def _package(name: str, facts: Facts, torch: Facts) -> Finding:
    extra, oldest = OPTIONAL[name]
    if facts.get("missing"):
        return Finding(name, "note", "not installed", f"pip install 'prunec[{extra}]', if you want it")
    if "torchvision::nms" in facts.get("error", "") or (name == "torchvision" and "error" in facts):
        return _unfit(f"does not fit this torch ({facts['error']})")
    if "error" in facts:
        remedy = f"pip install --upgrade --force-reinstall {name}; fix what is reported above first"
        return Finding(name, "ill", f"cannot be imported: {facts['error']}", remedy)
    if _numbers(facts["version"]) < oldest:
        what = f"{facts['version']} is too old: prunec reads {'.'.join(map(str, oldest))} and later"
        return Finding(name, "ill", what, f"pip install --upgrade {name}")
    if name == "torchvision" and (reason := _mismatch(facts["version"], torch.get("version", ""))):
        return _unfit(reason)
    return Finding(name, "well", facts["version"])


def _unfit(what: str) -> Finding:
    remedy = "pip install --upgrade --force-reinstall torch torchvision: in one command, from one index"
    return Finding("torchvision", "ill", what, remedy)


def _mismatch(version: str, torch: str) -> str | None:
    """Why this torchvision is not of this torch, by its own metadata and by what both were built for."""
    pinned = next(
        (match[1] for line in _requirements() if (match := re.match(r"torch\W*==([\d.]+)", line))), ""
    )
    if pinned and torch.partition("+")[0] != pinned:
        return f"{version} is for torch {pinned}, here is {torch}"
    mine, theirs = version.partition("+")[2], torch.partition("+")[2]
    if mine and theirs and mine != theirs:
        return f"{version} is built for {mine}, torch for {theirs}"
    return None


def _requirements() -> list[str]:
    try:
        return importlib.metadata.requires("torchvision") or []
    except importlib.metadata.PackageNotFoundError:  # built from a checkout
        return []


def _gpu(torch: Facts) -> Finding:
    cuda, has_gpu = torch.get("cuda"), has_nvidia_gpu()
    if torch.get("device"):
        return Finding("GPU", "well", f"{torch['device']}, CUDA {cuda}")
    if cuda and has_gpu:
        return Finding(
            "GPU",
            "ill",
            f"there is an NVIDIA GPU that torch cannot use: {torch.get('trouble') or 'no driver'}",
            f"install a driver for CUDA {cuda} or later (nvidia-smi shows what the present one takes), or a "
            "torch that is built for an older CUDA",
        )
    if has_gpu:
        what = "there is an NVIDIA GPU, but this torch is built without CUDA"
        return Finding("GPU", "note", what, "install a torch that is built for CUDA, if you want to use it")
    remedy = "if there is one, install its driver" if cuda else ""
    return Finding("GPU", "note", "no NVIDIA GPU found: everything runs on the CPU", remedy)


def has_nvidia_gpu() -> bool:
    """Whether the machine shows an NVIDIA GPU, with a driver or without."""
    if shutil.which("nvidia-smi") or Path("/dev/nvidiactl").exists():
        return True
    return any(
        _read(device / "vendor") == NVIDIA and _read(device / "class").startswith(DISPLAY)
        for device in Path("/sys/bus/pci/devices").glob("*")
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _compiler() -> Finding:
    missing = targets.find("inductor").missing()
    if missing:
        return Finding("C++ compiler", "ill", "torch.compile cannot build code for the CPU", missing)
    return Finding("C++ compiler", "well", "found")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])
