"""Scorers that another package announces: examples/scorer_package, and packages with something wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import prunec
from prunec import documents
from prunec.errors import CalibrationError, PolicyError

pytestmark = pytest.mark.usefixtures("recognised_once")

PACKAGE = Path(__file__).parent.parents[1] / "examples" / "scorer_package"
ODD = """
import torch
from torch import nn

class Plain:
    def __init__(self, setting): pass

class Columns(nn.Module):
    def __init__(self, setting):
        super().__init__()
    def forward(self, x):
        return x  # one number for each channel

class Ramp(nn.Module):
    "Numbers that are no parameters, one of them not saved; and what is random in training."
    def __init__(self, setting):
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("ramp", torch.linspace(1, 2, setting.patches))
        self.register_buffer("sign", torch.tensor(-1.0), persistent=False)
    def forward(self, x):
        return self.dropout(self.ramp) * self.sign + 0 * x[..., 0]
"""
Announce = Callable[..., None]


@pytest.fixture
def announce(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Announce]:
    """Makes packages visible as pip does: a folder with their metadata on the path."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(package: str, points: dict[str, str]) -> None:
        folder = tmp_path / f"{package}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"{name} = {value}\n" for name, value in points.items()]
        (folder / "entry_points.txt").write_text("[prunec.scorers]\n" + "".join(lines))

    (tmp_path / "odd_scorers.py").write_text(ODD)
    yield write
    for name in ("odd_scorers", "prunec_edges"):
        sys.modules.pop(name, None)


@pytest.fixture
def edges(announce: Announce, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example, with the entry points that its pyproject.toml names."""
    monkeypatch.syspath_prepend(PACKAGE)
    project = documents.load(PACKAGE / "pyproject.toml", "toml")
    announce("prunec_edges", project["project"]["entry-points"]["prunec.scorers"])


def vit() -> Any:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=80, depth=4, num_classes=7).eval()
    for block in model.blocks:  # so that the tokens matter
        nn.init.normal_(block.attn.proj.weight, std=0.3)
    nn.init.normal_(model.head.weight)
    return model


def images() -> Tensor:
    """Each patch with a contrast of its own."""
    contrast = torch.rand(3, 1, 5, 5).repeat_interleave(16, 2).repeat_interleave(16, 3)
    return torch.randn(3, 3, 80, 80) * contrast


def contrast_of(image: Tensor, row: int, column: int) -> float:
    patch = image[:, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16].mean(0)
    return float(((patch - patch.mean()) ** 2).sum().div(255).sqrt())


def reference(model: Any, image: Tensor, kept: dict[int, int]) -> Tensor:
    """The model on one image where before block b only the `kept[b]` patches of highest contrast go on."""
    tokens = model.norm_pre(model._pos_embed(model.patch_embed(image[None])))
    score = [contrast_of(image, row, column) for row in range(5) for column in range(5)]
    left = list(range(25))
    for number, block in enumerate(model.blocks):
        if number in kept:
            best = sorted(sorted(left, key=lambda patch: -score[patch])[: kept[number]])
            tokens = tokens[:, [0, *(1 + left.index(patch) for patch in best)]]
            left = best
        tokens = block(tokens)
    return model.forward_head(model.norm(tokens))


def policy_with(kind: str, **changes: Any) -> dict[str, Any]:
    text = documents.load(PACKAGE / "edges.yaml", "yaml")
    assert isinstance(text, dict)
    return {**text, "scorer": {"kind": kind}, **changes}


@pytest.mark.usefixtures("edges")
def test_the_example_keeps_the_patches_of_highest_contrast_at_both_sites() -> None:
    model, batch = vit(), images()
    fast = prunec.transform(model, PACKAGE / "edges.yaml")  # no parameters, so nothing to calibrate
    plan = fast.__dict__["program"].plan
    assert [(site.block, site.tokens, site.leaves) for site in plan.sites] == [(0, 26, 14), (2, 14, 8)]
    expected = torch.cat([reference(model, image, {0: 13, 2: 7}) for image in batch])
    found = fast(batch)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - model(batch)).abs().max() > 1e-2


@pytest.mark.filterwarnings("ignore:calibrated on", "ignore:the scorers of")  # few images do here
@pytest.mark.usefixtures("edges")
def test_images_keep_as_many_patches_as_pass_a_threshold_of_contrast() -> None:
    model, batch = vit(), images()
    choose = {"kind": "threshold", "keep_per_site": 0.5}
    mine = policy_with("edges", selector=choose, sites={"where": "before_block", "blocks": [1, 2]})
    with pytest.raises(CalibrationError, match="'edges' has learned parts or thresholds"):
        prunec.transform(model, mine)
    fast = prunec.transform(model, mine, calibration=images().repeat(6, 1, 1, 1))
    state = fast.state_dict()
    bounds = [float(state[f"prunec.site_{number}.threshold"]) for number in (0, 1)]
    for image in batch:
        score = [contrast_of(image, row, column) for row in range(5) for column in range(5)]
        kept = {1 + place: sum(each > bound for each in score) for place, bound in enumerate(bounds)}
        assert 0 < kept[2] < kept[1] < 25
        torch.testing.assert_close(fast(image[None]), reference(model, image, kept), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:calibrated on", "ignore:the scorers of")  # few images do here
@pytest.mark.usefixtures("edges")
def test_a_scorer_with_parameters_is_calibrated() -> None:
    model = vit()
    mine = policy_with("probe", scorer={"kind": "probe", "options": {"bias": False}})
    with pytest.raises(CalibrationError, match="there are no images to fit them to"):
        prunec.transform(model, mine)
    fresh = prunec.transform(model, mine, calibrate=False).state_dict()
    fitted = prunec.transform(model, mine, calibration=torch.randn(16, 3, 80, 80)).state_dict()
    names = {f"prunec.site_{number}.gate.linear.weight" for number in (0, 1)}
    assert {name for name in fitted if ".gate." in name} == names
    assert all(not torch.equal(fresh[name], fitted[name]) for name in names)


@pytest.mark.usefixtures("edges")
def test_an_option_that_the_scorer_refuses() -> None:
    for options, said in (
        ({"bye": "range"}, "the scorer 'edges' cannot be made: .*unexpected keyword argument 'bye'"),
        ({"by": "colour"}, "the scorer 'edges' cannot be made: by must be spread or range, got 'colour'"),
    ):
        with pytest.raises(PolicyError, match=said) as caught:
            prunec.transform(vit(), policy_with("edges", scorer={"kind": "edges", "options": options}))
        assert caught.value.where == "scorer.options, prunec_edges:Edges"


@pytest.mark.usefixtures("edges")
def test_an_unknown_scorer_is_answered_with_the_nearest() -> None:
    with pytest.raises(PolicyError, match=r"got 'edgse'; nearest: edges.* @ scorer.kind") as caught:
        prunec.Policy.load(policy_with("edgse"))
    assert "grader, edges or probe, got" in caught.value.what


def test_a_scorer_of_a_package_that_is_not_installed() -> None:
    with pytest.raises(PolicyError, match="pre_net or grader, got 'edges'"):
        prunec.Policy.load(PACKAGE / "edges.yaml")


def test_what_is_no_scorer_is_refused(announce: Announce) -> None:
    announce(
        "odd", {"plain": "odd_scorers:Plain", "gone": "odd_scorers:Gone", "columns": "odd_scorers:Columns"}
    )
    for kind, said in (
        ("plain", "the scorer 'plain' is a Plain, not a torch.nn.Module"),
        ("gone", "the scorer 'gone' cannot be made: .*'Gone'"),
        ("columns", r"scorer columns gives \[.*25, 192\], and must give one number for each of 25 patches"),
    ):
        with pytest.raises(PolicyError, match=said):
            prunec.transform(vit(), policy_with(kind))


def test_two_packages_that_announce_one_name(announce: Announce) -> None:
    announce("odd", {"ramp": "odd_scorers:Ramp"})
    announce("other", {"ramp": "odd_scorers:Columns"})
    with pytest.raises(PolicyError, match="the scorer 'ramp' is announced 2 times") as caught:
        prunec.transform(vit(), policy_with("ramp"))
    assert set((caught.value.where or "").split(", ")) == {"odd_scorers:Ramp", "odd_scorers:Columns"}


@pytest.mark.filterwarnings("ignore:calibrated on", "ignore:the scorers of")  # few images do here
def test_numbers_that_are_no_parameters_go_along(announce: Announce) -> None:
    announce("odd", {"ramp": "odd_scorers:Ramp"})
    model, batch = vit(), images()
    fast = prunec.transform(model, policy_with("ramp", sites={"where": "before_block", "blocks": [1]}))
    tokens = model.norm_pre(model._pos_embed(model.patch_embed(batch)))
    tokens = model.blocks[0](tokens)[:, :14]  # the first patches score best
    for block in model.blocks[1:]:
        tokens = block(tokens)
    torch.testing.assert_close(fast(batch), model.forward_head(model.norm(tokens)), rtol=1e-4, atol=1e-4)
    calibrated = policy_with("ramp", selector={"kind": "threshold", "keep_per_site": 0.5})
    prunec.transform(model, calibrated, calibration=torch.randn(16, 3, 80, 80))
