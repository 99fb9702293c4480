"""Images that keep different numbers of tokens, and tokens that come back: compared with plain loops.

The loops run one image at a time with boolean indexing. A batch must give each image what it gets alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunec import ops
from prunec.errors import PolicyError, VerificationError
from prunec.ir.program import Program, Recognised
from prunec.passes import BACK, run_passes
from prunec.verify.certificate import _padding, certify
from tests.tiny import Attention, Block, ViT, pixels, planned, recognised, run
from tests.windows import windowed

Score = Callable[[int, Tensor], Tensor]  # site, rows [n, C] -> scores [n]


@cache
def dense_of(model: nn.Module, side: int = 5) -> Recognised:
    """The recognised model; programs are immutable, so all policies for one model share it."""
    return recognised(model, pixels(side=side))


def program_of(model: nn.Module, *, side: int = 5, **choices: Any) -> Program:
    """The model with ragged sites; every threshold is set so that about half of the rows pass."""
    defaults = {"selector": "threshold", "fate": "preserve", "reactivate": True, "blocks": [1, 2, 3]}
    made = run_passes(BACK, planned(dense_of(model, side), **{**defaults, **choices}))
    torch.manual_seed(3)
    for name, parameter in made.module.named_parameters():
        if name.startswith("prunec."):
            nn.init.normal_(parameter, std=0.5)
    for number, site in enumerate(made.plan.sites if made.plan else ()):
        if site.ragged:
            limit = 4.2 + 0.2 * number if made.plan.rules.scorer.kind == "norm" else 0.0
            made.module.get_buffer(f"prunec.site_{number}.threshold").fill_(limit)
    return made


def score_of(program: Program) -> Score:
    """The scorer of each site, written anew."""

    def norm(site: int, x: Tensor) -> Tensor:
        return (x**2).sum(dim=-1) ** 0.5 - program.module.get_buffer(f"prunec.site_{site}.threshold")

    def mlp(site: int, x: Tensor) -> Tensor:
        own = dict(program.module.get_submodule(f"prunec.site_{site}.gate").named_parameters())
        x = F.layer_norm(x, x.shape[-1:], own["norm.weight"], own["norm.bias"])
        logits = F.gelu(x @ own["up.weight"].T + own["up.bias"]) @ own["down.weight"].T + own["down.bias"]
        return logits.log_softmax(dim=-1) @ torch.tensor([1.0, -1.0])  # keep against drop

    return {"norm": norm, "mlp": mlp}[program.plan.rules.scorer.kind]


def loops(
    model: ViT,
    image: Tensor,
    score: Score,
    sites: tuple[int, ...],
    *,
    reactivate: bool,
    prefix: int,
    suffix: int,
) -> tuple[Tensor, list[int]]:
    """One image: which rows go through each block, and what the head makes of all of them."""
    x = model.embed(image[None])[0]  # [T, C]
    protected = torch.zeros(len(x), dtype=torch.bool)
    protected[:prefix] = True
    protected[len(x) - suffix :] = True
    kept, counts = torch.ones(len(x), dtype=torch.bool), []
    for index, block in enumerate(model.blocks):
        if index in sites:
            scores = score(sites.index(index), x).masked_fill(protected, float("-inf"))
            if not reactivate:
                scores = scores.masked_fill(~kept, float("-inf"))
            kept = scores > 0
            kept[scores.argmax()] = True  # never none
            kept |= protected
            counts.append(int(kept.sum()))
        x = x.clone()
        x[kept] = block(x[kept][None])[0]
    return model.head(model.read(model.norm(x[None])))[0], counts


class Biased(Attention):
    """A learned bias for each pair of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(1, 2, 26, 26))
        self.rows: Tensor | None = None  # which tokens these are, for the loops

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        query, key, value = self.qkv(x).reshape(b, t, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.bias if self.rows is None else self.bias[:, :, self.rows][..., self.rows]
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.proj(out.transpose(1, 2).reshape(b, t, c))


MODELS: dict[str, tuple[Callable[[], ViT], int, int]] = {
    "class token": (lambda: ViT(depth=4), 1, 0),
    "mean": (lambda: ViT(depth=4, prefix=0, read=lambda x: x.mean(dim=1)), 0, 0),
    "registers": (lambda: ViT(depth=4, prefix=5, read=lambda x: x[:, 5:].mean(dim=1)), 5, 0),
    "detection tokens": (lambda: ViT(depth=4, suffix=4, read=lambda x: x[:, -4:]), 1, 4),
    "all tokens": (lambda: ViT(depth=4, read=lambda x: x), 1, 0),
    "spelled out": (lambda: ViT(lambda: Block(lambda: Attention(form="spelled")), depth=4), 1, 0),
}


@cache
def model_of(name: str) -> ViT:
    torch.manual_seed(0)
    return MODELS[name][0]().eval()


@pytest.mark.parametrize("scorer", ["norm", "mlp"])
@pytest.mark.parametrize("reactivate", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_each_image_of_a_batch_gets_what_plain_loops_give_it(
    name: str, reactivate: bool, scorer: str
) -> None:
    _, prefix, suffix = MODELS[name]
    model = model_of(name)
    program = program_of(model, scorer=scorer, reactivate=reactivate)
    images = pixels(6) * torch.linspace(0.2, 3, 6).view(6, 1, 1, 1)  # some quiet, some loud
    with torch.no_grad():
        expected = [
            loops(
                model,
                image,
                score_of(program),
                (1, 2, 3),
                reactivate=reactivate,
                prefix=prefix,
                suffix=suffix,
            )
            for image in images
        ]
    assert len({tuple(counts) for _, counts in expected}) > 1, "the images keep different numbers of tokens"
    torch.testing.assert_close(
        run(program, images)[0], torch.stack([out for out, _ in expected]), rtol=0, atol=1e-5
    )
    certificate = certify(dense_of(model), program)
    assert certificate.padding is not None
    assert max(certificate.identity, certificate.permutation, certificate.padding) < 1e-5


def test_a_bias_between_tokens_moves_with_them_and_padding_is_hidden_on_top_of_it() -> None:
    torch.manual_seed(0)
    model = ViT(lambda: Block(Biased), depth=2).eval()
    program = program_of(model, blocks=[1])
    images = pixels(4) * torch.linspace(0.3, 2, 4).view(4, 1, 1, 1)
    with torch.no_grad():
        expected = []
        for image in images:
            x = model.blocks[0](model.embed(image[None]))[0]
            kept = score_of(program)(0, x) > 0
            kept[0] = True
            model.blocks[1].attn.rows = kept.nonzero()[:, 0]
            x[kept] = model.blocks[1](x[kept][None])[0]
            expected.append(model.head(model.norm(x)[0]))
    model.blocks[1].attn.rows = None
    torch.testing.assert_close(run(program, images)[0], torch.stack(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("threshold", [1e9, -1e9])
def test_empty_and_full_sets(threshold: float) -> None:
    torch.manual_seed(0)
    model = ViT(depth=4, read=lambda x: x.mean(dim=1)).eval()
    program = program_of(model)
    for number in range(3):
        program.module.get_buffer(f"prunec.site_{number}.threshold").fill_(threshold)
    found, dense = run(program, pixels(3))[0], None
    assert bool(found.isfinite().all())
    if threshold < 0:
        torch.manual_seed(5)
        x = pixels(3)
        with torch.no_grad():
            dense = model(x)
        torch.testing.assert_close(run(program, x)[0], dense, rtol=0, atol=1e-5)


def test_a_token_that_was_skipped_keeps_its_value_and_can_return() -> None:
    torch.manual_seed(0)
    model = ViT(depth=3, read=lambda x: x).eval()
    program = program_of(model, blocks=[1, 2])
    first, second = (program.module.get_buffer(f"prunec.site_{number}.threshold") for number in (0, 1))
    first.fill_(1e9)  # only the best goes through block 1
    second.fill_(-1e9)  # all go through block 2
    x = pixels(1)
    with torch.no_grad():
        state = model.blocks[0](model.embed(x))[0]
        kept = torch.zeros(26, dtype=torch.bool)
        kept[[0, int(state[1:].norm(dim=-1).argmax()) + 1]] = True
        state[kept] = model.blocks[1](state[kept][None])[0]
        expected = model.head(model.norm(model.blocks[2](state[None])))
    torch.testing.assert_close(run(program, x)[0], expected, rtol=0, atol=1e-5)


def test_windows_see_every_token_and_their_mlps_only_those_kept() -> None:
    model = windowed()
    program = program_of(model, side=6, blocks=[0, 1, 2, 3])
    images = pixels(4, side=6) * torch.linspace(0.5, 2, 4).view(4, 1, 1, 1)
    together = run(program, images)[0]
    torch.testing.assert_close(
        together, torch.cat([run(program, image[None])[0] for image in images]), rtol=0, atol=1e-5
    )
    certify(recognised(model, pixels(side=6)), program)


def test_what_lets_tokens_meet_gets_all_of_them() -> None:
    class Mixing(ViT):
        def forward(self, pixels: Tensor) -> Tensor:
            x = self.embed(pixels)
            for block in self.blocks:
                x = block(x)
                x = x + x.cumsum(dim=1) / 10  # has a type on any number of rows
            return self.head(self.norm(x)[:, 0])

    torch.manual_seed(0)
    model = Mixing(depth=3).eval()
    dense = recognised(model)
    program = program_of(model, blocks=[1])
    sums = [node for node in program.graph.nodes if "cumsum" in str(node.target)]
    assert [node.meta["val"].shape[1] for node in sums] == [26] * 3
    certify(dense, program)


def test_the_certificate_sees_padding_that_is_not_hidden() -> None:
    torch.manual_seed(0)
    model = ViT(depth=2).eval()
    program = program_of(model, blocks=[1])
    assert _padding(program, program, program.interface.example, 2) < 1e-6  # type: ignore[operator]
    for node in list(program.graph.nodes):
        if node.target is ops.key_mask:
            node.replace_all_uses_with(None)  # type: ignore[arg-type]  # FX takes a constant here
            program.graph.erase_node(node)
    program.module.recompile()
    with pytest.raises(VerificationError, match="see each other's padding"):
        certify(recognised(model), program)


class Folded(Attention):
    """Images and heads on one axis; attention spelled out or fused."""

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        query, key, value = self.qkv(x).reshape(b, t, 3, 2, c // 2).permute(2, 0, 3, 1, 4).flatten(1, 2)
        if self.form == "fused":
            out = F.scaled_dot_product_attention(query, key, value)
        else:
            out = torch.bmm(torch.bmm(query, key.mT).softmax(dim=-1), value)
        return self.proj(out.view(b, 2, t, -1).transpose(1, 2).reshape(b, t, c))


def test_padding_is_hidden_where_images_and_heads_are_on_one_axis() -> None:
    torch.manual_seed(0)
    model = ViT(lambda: Block(lambda: Folded(form="spelled")), depth=2).eval()
    program = program_of(model, blocks=[1])
    (hidden,) = (node for node in program.graph.nodes if node.target is ops.fill)
    assert hidden.args[2:] == (float("-inf"), 2, 0, 2)  # the keys of both heads of each image
    certificate = certify(recognised(model), program)
    assert certificate.padding is not None
    hidden.replace_all_uses_with(hidden.args[0])  # type: ignore[arg-type]
    program.module.recompile()
    with pytest.raises(VerificationError, match="see each other's padding"):
        certify(recognised(model), program)


def test_fused_attention_with_images_and_heads_on_one_axis_is_refused() -> None:
    with pytest.raises(PolicyError, match="attention with images on its first axis"):
        program_of(ViT(lambda: Block(Folded), depth=2), blocks=[1])


def test_it_compiles_as_one_graph_without_recompiling_for_other_counts() -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    program = program_of(ViT(depth=4).eval())
    compiled = torch.compile(program.module, fullgraph=True, backend="aot_eager", dynamic=None)
    with torch._dynamo.config.patch(capture_scalar_outputs=True, error_on_recompile=True), torch.no_grad():
        for factor in (1.0, 0.3, 3.0):
            images = pixels(4) * factor
            torch.testing.assert_close(compiled(images)[0], run(program, images)[0], rtol=0, atol=1e-5)


def test_a_stream_that_fixes_its_batch_is_certified_without_the_padding() -> None:
    program = program_of(ViT(depth=2).eval(), blocks=[1])
    fixed = program.replace(
        interface=program.interface.__class__(**{**vars(program.interface), "batch": None})
    )
    assert _padding(fixed, fixed, fixed.interface.example, 2) is None
