"""The guide says what is so: its files load, its code is the example, its tables and commands are real."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch
import yaml

import prunec
from prunec.api.deprecated import SPELLINGS
from prunec.cli.commands import COMMANDS, load
from prunec.latency.table import CACHE_VARIABLE
from prunec.planner.planfile import PlanFile
from prunec.planner.planning import BOUND, LEAST_GAIN
from prunec.policy import policy
from prunec.policy.language import Selector
from prunec.policy.lowering import MODES
from prunec.policy.policy import Policy
from tests.tiny import ViT

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "guide" / "policies.md").read_text(encoding="utf-8")
FITS = {
    "all three": ("classification", "detection", "segmentation"),
    "classification, detection tokens": ("classification", "detection tokens"),
    "segmentation": ("segmentation",),
}


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", GUIDE, flags=re.DOTALL)


@pytest.mark.parametrize("text", [text for text in blocks("yaml") if text.startswith("version:")])
def test_every_policy_of_the_guide_is_canonical(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    assert Policy.load(tmp_path / "mine.yaml").to_yaml() == text


def test_what_is_shown_of_presets_is_theirs() -> None:
    assert Policy.load("evit").to_yaml() in blocks("yaml")
    (then,) = (text for text in blocks("yaml") if "then:" in text)
    assert Policy.load("algm").to_yaml().endswith(then)


def test_the_scorer_is_the_example() -> None:
    source = (ROOT / "examples" / "scorer_package" / "prunec_edges.py").read_text(encoding="utf-8")
    project = (ROOT / "examples" / "scorer_package" / "pyproject.toml").read_text(encoding="utf-8")
    (code,), (table,) = blocks("python"), blocks("toml")
    assert [line for line in code.splitlines() if line.strip() != "..." and line not in source] == []
    assert [line for line in table.splitlines() if line not in project] == []


def test_the_table_of_presets() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in GUIDE[GUIDE.index("## All presets") :].splitlines()
        if line.startswith("| `")
    ]
    assert [name.strip("`") for name, *_ in rows] == list(policy.presets())
    for name, needs, fits, _ in rows:
        preset = Policy.load(name.strip("`"))
        told = {need.replace("training", "training for the paper's accuracy") for need in needs.split(", ")}
        assert told == (set(preset.needs) or {"nothing"})
        assert FITS[fits] == preset.fits


def test_the_readme_names_every_preset() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in policy.presets() if f"`{name}`" not in readme] == []
    assert "docs/guide/policies.md" in readme


MODES_GUIDE = (ROOT / "docs" / "guide" / "modes.md").read_text(encoding="utf-8")


def test_the_guide_on_modes_names_all_and_its_selector_is_one() -> None:
    rows = [line.split("`")[1] for line in MODES_GUIDE.splitlines() if line.startswith("| `")]
    assert rows == list(MODES)
    (text,) = re.findall(r"```yaml\nselector: (.*?)\n```", MODES_GUIDE, flags=re.DOTALL)
    assert Selector.model_validate(yaml.safe_load(text)).ragged


def test_weights_trained_as_the_guide_on_modes_says_load_into_another_mode() -> None:
    *_, code = re.findall(r"```python\n(.*?)```", MODES_GUIDE, flags=re.DOTALL)
    names = {"prunec": prunec, "torch": torch, "model": ViT(depth=4).eval()}
    exec(code.replace("(model, ", "(model, example=torch.randn(2, 3, 20, 20), policy="), names)
    train, fast = names["train"].state_dict(), names["fast"].state_dict()  # type: ignore[union-attr]
    assert any(name.startswith("prunec.site_0.gate") for name in train)
    assert all(torch.equal(fast[name], value) for name, value in train.items())


PLANNING = (ROOT / "docs" / "guide" / "planning.md").read_text(encoding="utf-8")


def test_the_plan_of_the_guide_is_one(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", PLANNING, flags=re.DOTALL)
    (tmp_path / "plan.yaml").write_text(text)
    plan = PlanFile.read(tmp_path / "plan.yaml")
    assert plan.text() == text
    assert Policy.load(plan.policy) == Policy.load("evit")
    assert plan.about["measured_share"] <= 0.6
    ((block, leaves),) = plan.schedule.items()
    assert (
        f"`{block}: {leaves}` means: behind the site of block {block} the stream is {leaves} tokens"
        in PLANNING
    )


def test_every_command_of_the_guide_on_planning_is_one() -> None:
    commands = {name: load(name) for name in COMMANDS}
    written = re.findall(r"^(?:\$ )?prunec (\w+) ([^>#\n]*)", PLANNING, flags=re.M)
    assert {"bench", "plan", "apply", "sweep"} <= {name for name, _ in written}
    for name, rest in written:
        known = {option for parameter in commands[name].params for option in parameter.opts}
        given = re.findall(r"(?<!\S)(--?[a-z][a-z-]*)", rest)
        assert [option for option in given if option not in known] == [], name


def test_the_guide_on_planning_names_every_goal_and_limit() -> None:
    rows = [line.split("`")[1].split()[0] for line in PLANNING.splitlines() if line.startswith("| `")]
    assert rows == ["--latency", "--speedup", "--max-drop"]
    assert f"less than {LEAST_GAIN:.0%}" in PLANNING
    assert f"takes {BOUND:.0%} of the dense time" in PLANNING
    assert CACHE_VARIABLE in PLANNING
    assert "It is no accuracy" in PLANNING


def test_the_readme_leads_to_the_guides() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    guides = sorted(path.name for path in (ROOT / "docs" / "guide").glob("*.md"))
    assert [name for name in guides if f"docs/guide/{name}" not in readme] == []


DOCS = [ROOT / "README.md", ROOT / "examples" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [path for path in DOCS if path.parent.name != "design"]  # which tell what was, when it was
OLD = {name for name, *_ in SPELLINGS}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_name_of_the_documentation_is_exported(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    named = set(re.findall(r"\bprunec\.([A-Za-z]\w*)\b(?=[(`\s,.)])(?!\.\w)", text))
    modules = {file.stem for file in (ROOT / "prunec").iterdir()}
    assert sorted(named - set(prunec.__all__) - modules - {"site_0", "scorers", "json"}) == []
    called = set(re.findall(r"\bprunec\.([A-Za-z]\w*)\(", text))  # a module is not called
    assert sorted(called - set(prunec.__all__)) == []
    assert all(hasattr(prunec, name) for name in called)


@pytest.mark.parametrize(
    "path", [*PAGES, *sorted((ROOT / "examples").glob("*.py"))], ids=lambda path: path.name
)
def test_the_documentation_uses_no_old_spelling(path: Path) -> None:
    for name, arguments in re.findall(r"prunec\.(transform|optimize)\((.*)\)", path.read_text("utf-8")):
        signature = inspect.signature(getattr(prunec, name)).parameters
        outer = re.sub(r"\([^()]*\)", "", re.sub(r"\([^()]*\)", "", arguments))
        given = set(re.findall(r"(\w+)=", outer))
        assert given <= set(signature), (name, arguments)
        assert not given & OLD


def test_all_that_is_exported_is_there_once() -> None:
    assert len(set(prunec.__all__)) == len(prunec.__all__)
    assert [name for name in prunec.__all__ if not hasattr(prunec, name)] == []
    verbs = (
        "save",
        "load",
        "benchmark",
        "sweep",
        "plan",
        "presets",
        "diff",
        "anatomy",
        "transform",
        "optimize",
    )
    assert set(verbs) <= set(prunec.__all__)
    assert [name for name in verbs if not inspect.getdoc(getattr(prunec, name))] == []
