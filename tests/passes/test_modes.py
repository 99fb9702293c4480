"""For the same kept sets static, padded, packed and masked give the same outputs and the same kept rows.

Families and presets with their own scores, and with sets by force: everything kept, nothing but protected
tokens, and very different counts side by side. Plain loops are in tests/passes/test_modes_by_hand.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

import prunec
from prunec import ops
from prunec.compiler import recognise
from prunec.errors import PolicyError
from prunec.frontend import sources
from prunec.ir import graph
from prunec.ir.program import Program, Recognised
from prunec.policy.policy import Policy, presets
from tests import moding, tiny
from tests.families import FAMILIES, Family
from tests.passes.padding import Biased
from tests.tiny import Block, ViT, pixels
from tests.watching import at, preset

pytestmark = pytest.mark.usefixtures("recognised_once")

BY_NAME = {family.name: family for family in FAMILIES}


def contrasts(images: Tensor) -> Tensor:
    """Quiet and loud images, the upper half of each the quieter."""
    images = images * torch.linspace(0.3, 3, len(images)).view(-1, 1, 1, 1)
    images[:, :, : images.shape[2] // 2] *= 0.3
    return images


def assert_all_agree(dense: Recognised, policy: Policy, inputs: moding.Inputs, images: Tensor) -> None:
    """With its own scores, and with sets by force in batches of one, three and eight.

    In the batch of eight an image keeps nothing that it need not, which no selector does; the rest of what
    reads patches alone is undefined then, so static is left out.
    """
    padded = moding.unfinished(dense, policy)
    assert padded.plan.sites
    own, learns = contrasts(images[:4]), any(step.selector.needs_calibration for step in policy.steps)
    if learns:
        moding.separate(padded, inputs(own))
    programs = moding.in_all_modes(padded)
    if not policy.ragged:
        programs["static"] = moding.plain(dense, policy, "static")
    if policy.scorer.kind != "random":  # which is drawn anew for every row
        found = moding.assert_modes_agree(programs, inputs, own)
        assert not learns or any(len(set(left.sum(dim=1).tolist())) > 1 for left in found.left)
    if not policy.ragged:
        del programs["static"]
    for batch in (1, 3):
        kept = moding.kept_sets(padded, batch, seed=batch, least=1)
        moding.assert_modes_agree(programs, inputs, images[:batch], kept)
    programs.pop("static", None)
    least = (
        1 if policy.restored in ("copy", "share", "none") else 0
    )  # no token can stand for others, or be read
    moding.assert_modes_agree(programs, inputs, images, moding.kept_sets(padded, 8, least=least))


# --- families ---------------------------------------------------------------------------------


@functools.cache
def captured(name: str) -> Program:
    family = BY_NAME[name]
    args, kwargs = family.call(family.images(2))
    return recognise(sources.Source(name, family.model(), args, kwargs, "given"))


def inputs_of(family: Family) -> moding.Inputs:
    interface = captured(family.name).interface

    def inputs(images: Tensor) -> Any:
        args, kwargs = family.call(images)
        return interface.flatten(args, kwargs)

    return inputs


GRID = {
    "timm_vit": ("svit", "ats", "cropr"),
    "timm_deit_distilled": ("evit",),
    "timm_siglip": ("svit", "tome", "bavit"),  # a learned query reads all tokens
    "timm_eva02": ("svit", "bavit"),  # rotary, and a mean
    "timm_dinov3": ("norm", "cropr"),
    "timm_beit": ("svit", "tome"),  # a bias between tokens
    "hf_vit_eager": ("svit", "ats"),  # attention spelled out
    "hf_dinov3": ("ats",),
    "hf_siglip": ("norm",),
    "hf_yolos": ("svit", "norm"),
}


@pytest.mark.parametrize(("name", "policy"), [(name, each) for name in GRID for each in GRID[name]])
def test_families(name: str, policy: str) -> None:
    family, dense = BY_NAME[name], captured(name)
    changes: dict[str, Any] = {"sites": at(2)} if policy != "bavit" else {}
    if (name, policy) in (("timm_vit", "svit"), ("hf_yolos", "norm")):
        changes["sites"] = at(1, 2)
    if policy in ("cropr", "tome"):
        changes["selector"] = {"remove": 0.3}
    chosen = preset(policy, **changes)
    if chosen.restored == "none" and dense.anatomy.wants_all:
        chosen = chosen.override(restore="stale")
    assert_all_agree(dense, chosen, inputs_of(family), family.images(8))


# --- presets ----------------------------------------------------------------------------------


@functools.cache
def small(read: str = "class row") -> tuple[Program, moding.Inputs]:
    reads: dict[str, Callable[[Tensor], Any]] = {"class row": tiny.class_row, "patches": lambda x: x[:, 1:]}
    torch.manual_seed(0)
    dense = tiny.recognised(ViT(depth=3, read=reads[read]))
    return dense, lambda images: [images]


@pytest.mark.parametrize("name", [name for name in presets() if name != "none"])
def test_presets(name: str) -> None:
    dense, inputs = small("patches" if name == "dtop" else "class row")
    changes: dict[str, Any] = {} if name in ("algm", "bavit") else {"sites": at(1)}
    if name in ("cropr", "cropr-drop"):
        changes["selector"] = {"remove": 0.3}  # they take one patch in 25 away, of lengths in steps of eight
    if name in ("bavit", "cover", "dynamic"):
        changes["selector"] = {"least": 1}  # not 16 of 25
    if name == "dtop":
        changes["selector"] = {"at": 0.5, "spare": 1}  # scenes have more classes
    assert_all_agree(dense, preset(name, **changes), inputs, pixels(8))


# --- what the grid has not --------------------------------------------------------------------


def two_sites(**changes: Any) -> Policy:
    return tiny.policy(
        **{"selector": "threshold", "fate": "preserve", "reactivate": True, "blocks": [1, 2]} | changes
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "a bias between tokens": (lambda: ViT(lambda: Block(Biased), depth=3), {}),
    "the largest of all, nothing protected": (
        lambda: ViT(depth=3, prefix=0, read=lambda x: x.amax(dim=1)),
        {"fate": "drop", "reactivate": False, "restore": "none"},
    ),
    "a mean of those that are left": (
        lambda: ViT(depth=3, prefix=2, read=lambda x: x.mean(dim=1)),
        {"fate": "drop", "reactivate": False, "restore": "none", "where": "after_attention"},
    ),
    "fused by a threshold": (
        lambda: ViT(depth=3, suffix=2, read=lambda x: x[:, -2:]),
        {"fate": "fuse", "reactivate": False, "weights": "uniform", "scorer": "norm"},
    ),
    "copies": (
        lambda: ViT(depth=3, read=lambda x: x),
        {"fate": "drop", "reactivate": False, "restore": "copy"},
    ),
    "updates that are shared": (
        lambda: ViT(depth=3, read=lambda x: x),
        {"fate": "drop", "reactivate": False, "restore": "share"},
    ),
    "updates that are shared, tokens anew": (lambda: ViT(depth=3, read=lambda x: x), {"restore": "share"}),
    "merged if not new, updates that are shared": (
        lambda: ViT(depth=3, read=lambda x: x),
        {
            "fate": "merge", "reactivate": False, "restore": "share", "scorer": "novelty",
            "attention": "proportional",
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_models_and_policies_that_are_not_in_the_zoo(name: str) -> None:
    build, changes = MODELS[name]
    assert_all_agree(tiny.recognised(build()), two_sites(**changes), lambda images: [images], pixels(8))


@pytest.mark.parametrize("mode", ["packed", "masked", "static"])
def test_a_mode_does_not_matter_before_the_last_pass(mode: str) -> None:
    dense, _ = small()
    padded, other = (moding.unfinished(dense, two_sites(), each) for each in ("padded", mode))
    assert str(padded.graph) == str(other.graph)


def test_a_comparison_that_can_fail() -> None:
    # one row of one image differs in one state behind the site: seen
    dense, inputs = small()
    padded = moding.plain(dense, two_sites())
    programs = {"padded": padded, "packed": moding.lowered(padded, "packed")}
    images, kept = pixels(3), moding.kept_sets(padded, 3)
    moding.assert_modes_agree(programs, inputs, images, kept)
    spread = next(node for node in programs["packed"].graph.nodes if graph.op(node) == "put")
    with programs["packed"].graph.inserting_after(spread):
        wrong = programs["packed"].graph.call_function(torch.roll, (spread, 1, 0))
    spread.replace_all_uses_with(wrong, delete_user_cb=lambda user: user is not wrong)
    programs["packed"].module.recompile()
    with pytest.raises(AssertionError, match="packed"):
        moding.assert_modes_agree(programs, inputs, images, kept)


def test_images_that_are_one_stream_together() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    config = transformers.PixtralVisionConfig(**sizes, num_hidden_layers=3, image_size=32, patch_size=8)
    model, images = transformers.PixtralVisionModel(config).eval(), torch.randn(2, 3, 32, 32)
    with pytest.warns(UserWarning, match="the batch is fixed at 2"):
        padded, masked = (
            prunec.transform(
                model, prunec.Policy.load("norm", keep=0.5, blocks=(1,)), example=images, mode=mode
            )
            for mode in ("padded", "masked")
        )
    assert [(site.tokens, site.leaves) for site in masked.program.plan.sites] == [(32, 16)]
    with torch.no_grad():
        found, expected = (fast(images).last_hidden_state for fast in (masked, padded))
        dense = model(images).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(found, dense, rtol=0, atol=1e-4)


def test_a_class_token_that_joins_behind_blocks_of_talking_heads() -> None:
    small = {"img_size": 64, "depth": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 5}
    model = timm.create_model("cait_xxs24_224", **small).eval()
    for mode in ("padded", "packed", "masked"):
        fast = prunec.transform(model, prunec.Policy.load("norm", blocks=(0,)), mode=mode)
        assert any(node.target is ops.valid_mask_among for node in fast.program.graph.nodes)
        assert fast(torch.randn(3, 3, 64, 64)).shape == (3, 5)


class Strided(Block):
    """Looks at every other token: which of those are padding, no position tells."""

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        query, key, value = self.attn.qkv(normed).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key[:, :, ::2], value[:, :, ::2])
        x = x + self.attn.proj(seen.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


def test_keys_that_are_some_of_the_tokens_are_not_guessed_to_be_padding() -> None:
    model = ViT(Strided, depth=3).eval()
    with pytest.raises(PolicyError, match=r"which of its keys are padding[\s\S]*test_modes\.py"):
        prunec.transform(model, prunec.Policy.load("norm", blocks=(1,)), mode="padded", example=pixels())
