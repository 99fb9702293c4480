"""Promises about the repository itself that no other tool checks."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
LINKS = ("passes", "targets")

# Written in pieces, or this file would find itself.
MACHINE_PATHS = ["/" + folder + "/" for folder in ("home", "root", "Users", "work", "workspace")]
REGISTRY_HOSTS = [
    "py" + "pi.org",
    "python" + "hosted.org",
    "registry." + "npmjs",
    "deb." + "debian.org",
    "conda." + "io",
]


def tracked_files() -> list[Path]:
    """Every file that is, or is about to be, in the repository; links are not followed."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    paths = [ROOT / name for name in listing.split("\0") if name]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def imported_modules(path: Path) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.append(node.module or "")
    return names


def test_there_are_files_to_check() -> None:
    assert {"pyproject.toml", "errors.py", "test_layout.py"} <= {path.name for path in tracked_files()}


@pytest.mark.parametrize("name", LINKS)
def test_a_front_door_is_a_relative_link_to_its_package(name: str) -> None:
    link = ROOT / name
    assert link.is_symlink()
    assert link.readlink() == Path("prunec") / name
    assert link.resolve() == ROOT / "prunec" / name
    assert link.is_dir()


def test_nobody_imports_through_a_front_door() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in tracked_files()
        if path.suffix == ".py"
        for name in imported_modules(path)
        if name.split(".")[0] in LINKS
    ]
    assert wrong == []


def test_ruff_reads_each_file_once() -> None:
    command = [sys.executable, "-m", "ruff", "check", "--show-files", "."]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    read = [Path(line).relative_to(ROOT) for line in listing.splitlines() if line.endswith(".py")]
    assert Path("prunec/errors.py") in read
    assert [path for path in read if path.parts[0] in LINKS] == []
    assert set((ROOT / "prunec").rglob("*.py")) <= {ROOT / path for path in read}


def test_every_pass_has_a_test_of_its_name() -> None:
    passes = {path.stem for path in (ROOT / "prunec" / "passes").glob("*.py")} - {"__init__"}
    tested = {path.stem.removeprefix("test_") for path in (ROOT / "tests" / "passes").glob("test_*.py")}
    assert passes - tested == set()


def test_no_file_names_a_folder_of_somebodys_machine_or_a_registry_host() -> None:
    forbidden = re.compile(
        "|".join(rf"(?<![\w.])({re.escape(path)})" for path in MACHINE_PATHS)
        + "|"
        + "|".join(map(re.escape, REGISTRY_HOSTS))
    )
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]}"
        for path in tracked_files()
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="ignore").splitlines(), 1)
        if (match := forbidden.search(line))
    ]
    assert found == []


def test_optional_packages_are_not_imported_with_prunec() -> None:
    optional = ["timm", "transformers", "torchvision", "onnx", "onnxruntime", "matplotlib", "jinja2"]
    code = (
        "import sys, prunec, prunec.policy.policy, prunec.frontend.sources\n"
        f"print([name for name in {optional} if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_version_stands_in_one_place() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.findall(r"^version *=.*$", project, flags=re.MULTILINE) == []
    assert '[tool.hatch.version]\npath = "prunec/version.py"\n' in project


def test_workflows_run_tasks_and_sessions_that_there_are() -> None:
    folder = ROOT / ".github" / "workflows"
    workflows = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.yml")}
    assert set(workflows) == {"checks", "tests"}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    tasks = {task for text in workflows.values() for task in re.findall(r"run: make ([a-z-]+)", text)}
    assert tasks == {"check", "coverage"}
    assert [task for task in tasks if f"\n{task}: setup" not in makefile] == []
    noxfile = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))
    sessions = [
        node.name for node in noxfile.body if isinstance(node, ast.FunctionDef) and node.decorator_list
    ]
    fast = yaml.safe_load(workflows["tests"])["jobs"]["fast"]
    assert fast["strategy"]["matrix"]["versions"] == sessions == ["oldest", "current", "newest"]
