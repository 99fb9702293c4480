from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prunec import cli, doctor
from prunec.doctor import Finding
from prunec.targets.inductor import Inductor

WELL: dict[str, dict[str, Any]] = {
    "torch": {"version": "2.15.0+cu132", "cuda": "13.2", "device": "NVIDIA H200", "trouble": None},
    "torchvision": {"version": "0.30.0+cu132"},
    "timm": {"version": "1.0.31"},
    "transformers": {"version": "5.23.0"},
}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """A healthy machine, to be made ill."""
    facts = {name: dict(fact) for name, fact in WELL.items()}
    monkeypatch.setattr(doctor, "probe", lambda: facts)
    monkeypatch.setattr(doctor, "has_nvidia_gpu", lambda: True)
    monkeypatch.setattr(doctor, "_requirements", lambda: ["numpy", "torch (==2.15.0)"])
    monkeypatch.setattr(Inductor, "missing", lambda self: None)
    return facts


def of(subject: str) -> Finding:
    (finding,) = [finding for finding in doctor.examine() if finding.subject == subject]
    return finding


def test_a_healthy_machine(machine: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert {finding.health for finding in doctor.examine()} == {"well"}
    assert cli.main(["doctor"]) == 0
    assert "well  GPU           NVIDIA H200, CUDA 13.2" in capsys.readouterr().out
    assert cli.main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["well"] is True
    assert [finding["subject"] for finding in told["findings"]] == [
        "torch", "torchvision", "timm", "transformers", "GPU", "C++ compiler",
    ]  # fmt: skip


NMS = "RuntimeError: operator torchvision::nms does not exist"
ILL: list[tuple[str, dict[str, Any], str, str, str]] = [
    ("torch", {"version": "2.9.1"}, "torch", "too old: prunec needs 2.11", "--upgrade torch"),
    ("torch", {"error": "libcudart.so.13: not found"}, "torch", "libcudart", "--force-reinstall torch"),
    ("torch", {"missing": True}, "torch", "not installed", "pip install"),
    ("torchvision", {"error": NMS}, "torchvision", "torchvision::nms", "torch torchvision: in one"),
    ("torchvision", {"version": "0.30.0+cpu"}, "torchvision", "built for cpu, torch for cu132", "one index"),
    ("timm", {"error": NMS}, "torchvision", "torchvision::nms", "torch torchvision: in one"),
    ("timm", {"version": "1.0.2"}, "timm", "too old: prunec reads 1.0.25", "--upgrade timm"),
    ("transformers", {"version": "4.57.1"}, "transformers", "reads 5 and later", "--upgrade transformers"),
    ("transformers", {"error": "No module named 'yaml'"}, "transformers", "yaml", "reinstall transformers"),
]


@pytest.mark.parametrize(("package", "facts", "subject", "what", "remedy"), ILL)
def test_what_is_ill_and_how_to_mend_it(
    machine: dict[str, Any], package: str, facts: dict[str, Any], subject: str, what: str, remedy: str
) -> None:
    machine[package] = facts
    ill = [finding for finding in doctor.examine() if finding.health == "ill" and finding.subject == subject]
    assert any(what in finding.what and remedy in finding.remedy for finding in ill)
    assert cli.main(["doctor"]) == 1


def test_a_torchvision_for_another_torch(machine: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_requirements", lambda: ["torch==2.14.1"])
    finding = of("torchvision")
    assert (finding.health, "is for torch 2.14.1" in finding.what) == ("ill", True)


def test_optional_packages_may_be_missing(machine: dict[str, Any]) -> None:
    machine["timm"] = {"missing": True}
    assert of("timm") == Finding(
        "timm", "note", "not installed", "pip install 'prunec[timm]', if you want it"
    )
    assert cli.main(["doctor"]) == 0


@pytest.mark.parametrize(
    ("cuda", "has_gpu", "health", "what"),
    [
        ("13.2", True, "ill", "cannot use: the driver is too old"),
        (None, True, "note", "built without CUDA"),
        ("13.2", False, "note", "runs on the CPU"),
        (None, False, "note", "runs on the CPU"),
    ],
)
def test_gpus_that_are_not_used(
    machine: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    cuda: str | None,
    has_gpu: bool,
    health: str,
    what: str,
) -> None:
    machine["torch"].update(cuda=cuda, device=None, trouble="the driver is too old")
    monkeypatch.setattr(doctor, "has_nvidia_gpu", lambda: has_gpu)
    assert (of("GPU").health, what in of("GPU").what) == (health, True)


def test_no_compiler(machine: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Inductor, "missing", lambda self: "apt-get install g++")
    assert (of("C++ compiler").health, of("C++ compiler").remedy) == ("ill", "apt-get install g++")


# The other process ------------------------------------------------------------------------------------------


def test_the_probe_survives_imports_that_fail_and_that_die(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "torch.py").write_text(
        "import types\n__version__ = '2.15.0'\nversion = types.SimpleNamespace(cuda='13.2')\n"
        "def init(): raise RuntimeError('no driver\\nmore')\ncuda = types.SimpleNamespace(init=init)\n"
    )
    (tmp_path / "torchvision.py").write_text("print('hello')\nraise RuntimeError('torchvision::nms')\n")
    (tmp_path / "timm.py").write_text("import os\nos._exit(11)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    facts = doctor.probe()
    assert facts["torch"] == {"version": "2.15.0", "cuda": "13.2", "device": None, "trouble": "no driver"}
    assert facts["torchvision"] == {"error": "RuntimeError: torchvision::nms"}
    assert facts["timm"] == {"error": "the process ended while it was imported"}
    assert facts["transformers"] == {"error": "not looked at: another import failed first"}


def test_a_probe_that_hangs_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: Any) -> SimpleNamespace:
        raise subprocess.TimeoutExpired(command, 1, output=b'{"name": "torch", "version": "2.15.0"}\n')

    monkeypatch.setattr(subprocess, "run", run)
    assert doctor.probe()["torch"] == {"version": "2.15.0"}
    assert "error" in doctor.probe()["timm"]


def test_a_gpu_is_seen_without_its_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device = tmp_path / "0000:01:00.0"
    device.mkdir()
    (device / "vendor").write_text("0x10de\n")
    (device / "class").write_text("0x030200\n")
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    monkeypatch.setattr(doctor, "Path", lambda name: tmp_path if "pci" in name else tmp_path / "none")
    assert doctor.has_nvidia_gpu()
    (device / "class").unlink()
    assert not doctor.has_nvidia_gpu()
