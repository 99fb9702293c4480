"""Methods that put tokens into one another: ToMe, DiffRate, ALGM, POMT, against plain loops.

Where the head reads all tokens, or their mean, merged ones must come back; the references do that by hand.
"""

from __future__ import annotations

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from prunec import ops
from prunec.policy.language import Merge
from prunec.policy.policy import Policy
from tests import methods
from tests.families import HF, difference, randomise
from tests.watching import (
    GRID,
    TOLERANCE,
    check,
    counts,
    images,
    preset,
    segmenter,
    transformed,
    vit,
    watch,
)

MODELS = {
    "class token": lambda: vit(3),
    "mean": lambda: vit(3, global_pool="avg"),
    "registers": lambda: vit(3, reg_tokens=3),  # the first patch stands at an even place
    "all tokens": lambda: segmenter(3),
}
TOME = preset("tome", selector={"remove": 0.2})
DIFFRATE = preset("diffrate", selector={"remove": 0.2})
ALGM = preset("algm", selector={"at": 0.2})


@pytest.mark.parametrize("name", MODELS)
def test_tome(name: str) -> None:
    model = MODELS[name]()
    fast = transformed(model, TOME)
    # 0.2 * 28 is 5.6; behind the last attention nobody reads patches, if the head reads a class token
    assert counts(fast) == [(0, 22), (1, 16), (2, 10)][: 2 if name in ("class token", "registers") else 3]
    chosen = check(fast, lambda image: methods.tome(model, image, sites=counts(fast)), merged=True)
    assert all(any(len(group) > 2 for group in sites[-1]) for sites in chosen)


def test_tome_merges_no_more_than_the_patches_at_even_places() -> None:
    model = MODELS["mean"]()
    fast = transformed(model, preset("tome", selector={"remove": 0.6}))
    # 28 patches, 14 of them even; the next 14 have 7 even; the next 7 stand at 1 to 7, three even
    assert counts(fast) == [(0, 14), (1, 7), (2, 4)]
    check(fast, lambda image: methods.tome(model, image, sites=counts(fast)), merged=True)


def test_diffrate() -> None:
    model = vit(3, reg_tokens=1)
    fast = transformed(model, DIFFRATE)
    assert counts(fast) == [(0, 22), (1, 16)]
    planned = [(block, count, 3) for block, count in counts(fast)]  # of six that leave, half are forgotten
    chosen = check(fast, lambda image: methods.diffrate(model, image, sites=planned), merged=True)
    assert [sum(map(len, groups)) for groups in chosen[0]] == [27, 24]


@pytest.mark.parametrize("name", MODELS)
def test_algm(name: str) -> None:
    model = MODELS[name]()
    fast = transformed(model, ALGM)

    def reference(image: Tensor) -> tuple[Tensor, methods.model.Groups]:
        return methods.algm(model, image, grid=GRID, local=(0, 0.2), adaptive=1)

    chosen = check(fast, reference, merged=True)
    windows = [sum(len(group) == 4 for group in local) for local, _ in chosen]
    assert any(0 < merged < 6 for merged in windows)  # 4 x 7 patches have six whole windows
    assert len({len(local) for local, _ in chosen}) > 1
    assert all(len(both) < len(local) for local, both in chosen)


@pytest.mark.parametrize("rule", [{"mean": "plain"}, {"sizes": "by_similarity"}], ids=str)
def test_padding_is_merged_into_nothing(rule: dict[str, str]) -> None:
    model, x = vit(4, global_pool="avg"), images()
    (second,) = ALGM.then
    second = second.model_copy(update={"merge": Merge(**rule)})
    policy = preset(
        "algm", selector={"at": 0.2}, merge=rule, then=[second.model_dump()], attention="proportional"
    )
    fast = transformed(model, policy)
    with torch.no_grad():
        alone = torch.cat([fast(image[None]) for image in x])
        assert difference(fast(x), alone) < TOLERANCE
        assert difference(fast(x), transformed(model, ALGM)(x)) > 1e-3


@pytest.mark.parametrize("name", ["class token", "mean", "registers"])
def test_pomt(name: str) -> None:
    model = MODELS[name]()
    fast = transformed(model, preset("pomt", sites={"depths": (0.34,)}, selector={"keep_per_site": 0.5}))
    assert counts(fast) == [(1, 14)]

    def reference(image: Tensor) -> tuple[Tensor, methods.model.Rows]:
        output, (stay,) = methods.pomt(model, image, sites=counts(fast))
        others = sorted({*range(max(stay) + 1), *range(28 + len(stay) - 14)} - set(stay))
        return output, [[*([row] for row in stay), others]]

    check(fast, reference, merged=True)


# --- attention that is spelled out ------------------------------------------------------------


@functools.cache
def hugging_face(attention: str) -> nn.Module:
    """A ViT whose keys, where attention is eager, stand transposed for their product."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(**{**HF, "num_hidden_layers": 3}, attn_implementation=attention)
    return randomise(transformers.ViTForImageClassification(config).eval(), seed=1)


@pytest.mark.parametrize("policy", [TOME, DIFFRATE, ALGM], ids=lambda policy: policy.name)
def test_eager_attention_merges_as_fused_attention_does(policy: Policy) -> None:
    eager, fused = hugging_face("eager"), hugging_face("sdpa")
    fused.load_state_dict(copy.deepcopy(eager.state_dict()))
    x = F.interpolate(images(), size=(80, 80))
    programs = [transformed(model, policy, (80, 80)) for model in (eager, fused)]
    with torch.no_grad():
        found, expected = (fast(pixel_values=x) for fast in programs)
    assert difference(found, expected) < TOLERANCE
    one, other = (watch(fast, x) for fast in programs)
    assert [one.groups(image) for image in range(3)] == [other.groups(image) for image in range(3)]
    assert len(one.groups(0)[-1]) < 26
    biased = [target for target, _ in one.values if target is ops.bias_keys]
    assert len(biased) == (2 if policy.attention == "proportional" else 0)  # behind the first two of 3 sites
