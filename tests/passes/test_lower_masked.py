"""All tokens computed, those that are not kept hidden and blended out; scorers get gradients through it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from prunec import ops
from prunec.ir import graph
from prunec.ir.program import Program
from tests import moding, tiny
from tests.passes.padding import Biased
from tests.tiny import Attention, Block, ViT, counts, pixels, recognised
from tests.watching import preset

THRESHOLD = {"selector": "threshold", "fate": "preserve", "reactivate": True}


def both(model: nn.Module, **choices: Any) -> tuple[Program, Program]:
    """Padded and masked."""
    program = moding.plain(recognised(model), tiny.policy(**{**THRESHOLD, **choices}))
    return program, moding.lowered(program, "masked")


class Lengths(fx.Interpreter):
    """How many rows each linear layer has."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        result = super().call_function(target, args, kwargs)
        if "linear" in str(target):
            self.found.append(result.shape[1])
        return result


def test_nothing_is_gathered_and_every_row_is_computed() -> None:
    program, masked = both(ViT(depth=2, read=lambda x: x))
    assert {"pack", "gather", "scatter", "key_mask"} <= set(tiny.dialect_of(program))
    assert counts(masked, "mask") == {"masked": 1, "blended": 1, "trained": 0}
    assert [op for op in tiny.dialect_of(masked) if op != "token_norm"] == [
        "threshold_mask", "all_rows", "attend_kept", "blend",
    ]  # fmt: skip
    lengths = Lengths(masked.module)
    lengths.found = []  # type: ignore[attr-defined]
    with torch.no_grad():
        lengths.run(pixels(3))
    assert lengths.found == [26] * 9  # type: ignore[attr-defined]
    images, kept = pixels(4), moding.kept_sets(program, 4)
    moding.assert_modes_agree({"padded": program, "masked": masked}, lambda x: [x], images, kept)


def test_a_table_is_read_as_it_is() -> None:
    from_tables = recognised(tiny.ViT(lambda: Block(Biased), depth=2, read=lambda x: x))
    program = moding.plain(from_tables, tiny.policy(**THRESHOLD))
    masked = moding.lowered(program, "masked")
    assert "take" in tiny.dialect_of(program)
    assert "take" not in tiny.dialect_of(masked)


def test_attention_that_is_spelled_out() -> None:
    # in the last block nothing but the class token's row of the map is made, between mask and softmax
    program, masked = both(ViT(lambda: Block(lambda: Attention(form="spelled")), depth=3), blocks=[1, 2])
    assert counts(masked, "mask")["masked"] == 2
    assert "softmax_kept" in tiny.dialect_of(masked)
    assert "mask_keys" not in tiny.dialect_of(masked)
    assert tiny.targets_of(masked).count("softmax") == 1  # of the block before
    images, kept = pixels(4), moding.kept_sets(program, 4)
    moding.assert_modes_agree({"padded": program, "masked": masked}, lambda x: [x], images, kept)


def test_where_pairs_are_merged_their_places_count_so_rows_are_put_in_order() -> None:
    policy = preset("tome", sites={"blocks": (0, 1), "between": None}, selector={"remove": 0.2})
    dense = recognised(ViT(depth=3, read=lambda x: x))
    masked = moding.lowered(moding.plain(dense, policy), "masked")
    assert counts(masked, "mask") == {"all rows": 2}
    selections = [node for node in masked.graph.nodes if node.target in ops.SELECTIONS]
    assert [graph.op(node) for node in selections] == ["pack_all", "pack_all"]
    assert [node.args[-1] for node in selections] == [True, True]  # those at odd places come last


# --- training ---------------------------------------------------------------------------------


def passed_through(kept: Tensor, margin: Tensor) -> Tensor:
    """1 or 0, with the gradient of a sigmoid."""
    soft = margin.sigmoid()
    return kept.to(soft) + soft - soft.detach()


def policy_softmax(x: Tensor, attention: Attention, mask: Tensor) -> Tensor:
    """exp(a) * m / sum(exp(a) * m), spelled out; x: [B, T, C], mask: [B, T]."""
    b, t, c = x.shape
    query, key, value = attention.qkv(x).reshape(b, t, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
    shares = ((query @ key.mT) * (c // 2) ** -0.5).exp() * mask[:, None, None, :]
    return attention.proj((shares / shares.sum(-1, keepdim=True) @ value).transpose(1, 2).reshape(b, t, c))


def by_hand(model: ViT, program: Program, images: Tensor, *, drops: bool) -> Tensor:
    """Sites before blocks 1 and 2; class token protected.

    y = m * f(x) + (1 - m) * x where tokens are preserved; of those that are dropped nobody reads y.
    """
    x, before = model.embed(images), torch.ones(len(images), 26, dtype=images.dtype)
    for number, block in enumerate(model.blocks):
        if number:
            site = program.module.get_submodule(f"prunec.site_{number - 1}")
            patches = x[:, 1:]
            valid = before[:, 1:].detach() > 0
            score = predictor(site.gate, patches, valid) if drops else mlp(site.gate, patches)
            chosen = (score > site.threshold) & (valid if drops else torch.ones_like(valid))
            mask = F.pad(passed_through(chosen, score - site.threshold), (1, 0), value=1.0)
            before = mask * before if drops else mask
        m = before[..., None]
        y = x + policy_softmax(block.norm1(x), block.attn, before)
        y = y + block.mlp(block.norm2(y))
        x = y if drops else m * y + (1 - m) * x
    return model.head(model.read(model.norm(x)))


def linear(layer: Any, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight, layer.bias)


def norm(gate: Any, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], gate.norm.weight, gate.norm.bias)


def mlp(gate: Any, x: Tensor) -> Tensor:
    logits = linear(gate.down, F.gelu(linear(gate.up, norm(gate, x))))
    return logits[..., 0] - logits[..., 1]


def predictor(gate: Any, x: Tensor, valid: Tensor) -> Tensor:
    local, others = F.gelu(linear(gate.embed, norm(gate, x))).chunk(2, dim=-1)
    mean = (others * valid[..., None]).sum(1, keepdim=True) / valid.sum(1)[:, None, None]
    x = torch.cat([local, mean.expand_as(others)], dim=-1)
    logits = linear(gate.last, F.gelu(linear(gate.second, F.gelu(linear(gate.first, x)))))
    return logits[..., 0] - logits[..., 1]


@pytest.mark.parametrize("form", ["fused", "spelled"])
@pytest.mark.parametrize("drops", [False, True], ids=["svit", "dynamicvit"])
def test_gradients_of_scorers_and_weights_are_those_written_by_hand(drops: bool, form: str) -> None:
    model = ViT(lambda: Block(lambda: Attention(form=form)), depth=3).double()
    changes: dict[str, Any] = {"blocks": [1, 2], "scorer": "predictor" if drops else "mlp"}
    if drops:
        changes |= {"fate": "drop", "reactivate": False, "restore": "none"}
    dense, images = recognised(model, pixels().double()), pixels(4).double()
    program = moding.plain(dense, tiny.policy(**{**THRESHOLD, **changes}), "masked")
    moding.separate(program, [images])
    masked = moding.lowered(program, "masked")
    assert counts(masked, "mask")["trained"] == 2
    parameters = dict(masked.module.named_parameters())
    gates = [name for name in parameters if ".gate." in name]
    assert len(gates) == (20 if drops else 12)

    (out,) = masked.module(images)
    found = torch.autograd.grad(out.square().sum(), list(parameters.values()))
    reference = by_hand(model, masked, images, drops=drops)
    torch.testing.assert_close(out, reference, rtol=1e-10, atol=1e-12)
    expected = torch.autograd.grad(reference.square().sum(), list(parameters.values()))
    for name, one, other in zip(parameters, found, expected, strict=True):
        worst = float((one - other).abs().max() / other.abs().max().clamp_min(1e-6))
        assert worst < 1e-8, f"{name}: {worst:.1e}"
    found_of = dict(zip(parameters, found, strict=True))
    assert all(found_of[name].abs().max() > 0 for name in gates if not name.endswith("up.bias"))


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("form", ["fused", "spelled"])
def test_nothing_kept_has_no_gradient_that_is_not_a_number(form: str, prefix: int) -> None:
    model = ViT(
        lambda: Block(lambda: Attention(form=form)), depth=2, prefix=prefix, read=lambda x: x.mean(dim=1)
    )
    program = moding.plain(recognised(model), tiny.policy(**THRESHOLD, scorer="mlp"))
    masked = moding.lowered(program, "masked")
    kept = torch.zeros(1, 3, 25 + prefix, dtype=torch.bool)
    (out,) = moding.Tracking(masked, kept).run(pixels(3))
    gradients = torch.autograd.grad(out.square().sum(), list(masked.module.parameters()), allow_unused=True)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients if gradient is not None)
