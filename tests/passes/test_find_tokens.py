from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunec.errors import RecognitionError
from prunec.structure import Anatomy
from prunec.verify.certificate import certify
from tests.tiny import Attention, Block, ViT, class_row, counts, pixels, pruned, recognised, run


def anatomy(model: nn.Module, *inputs: Any) -> Anatomy:
    found = recognised(model, *inputs).anatomy
    assert found is not None
    return found


def grid(x: Tensor) -> Tensor:
    return x[:, 1:].mT.reshape(x.shape[0], 16, 5, 5).amax(dim=(2, 3))


def few(x: Tensor) -> Tensor:
    return F.layer_norm(x[:, :5], (16,))


# learned rows at both ends, what the head reads; then: protected in front, at the end, class row, head
READERS: dict[
    str, tuple[int, int, Callable[[Tensor], Tensor], tuple[int, int, int | None, tuple[str, ...]]]
] = {
    "class token": (1, 0, class_row, (1, 0, 0, ("class token",))),
    "two class tokens": (2, 0, lambda x: x[:, 0] + x[:, 1], (2, 0, 0, ("class token", "token 1"))),
    "the second of two": (2, 0, lambda x: x[:, 1], (2, 0, 1, ("token 1",))),
    "class token before registers": (5, 0, class_row, (5, 0, 0, ("class token",))),
    "class token at the end": (0, 1, lambda x: x[:, -1], (0, 1, None, ("token 25",))),
    "queries at the end": (1, 4, lambda x: x[:, -4:], (1, 4, None, ("tokens 26..29",))),
    "mean of everything": (1, 0, lambda x: x.mean(dim=1), (1, 0, None, ("mean",))),
    "mean of the patches": (1, 0, lambda x: x[:, 1:].mean(dim=1), (1, 0, None, ("mean",))),
    "mean without registers": (5, 0, lambda x: x[:, 5:].mean(dim=1), (5, 0, None, ("mean",))),
    "mean of nothing but patches": (0, 0, lambda x: x.mean(dim=1), (0, 0, None, ("mean",))),
    "largest": (1, 0, lambda x: x[:, 1:].amax(dim=1), (1, 0, None, ("max",))),
    "class token and mean": (
        1,
        0,
        lambda x: torch.stack([x[:, 0], x[:, 1:].mean(dim=1)]),
        (1, 0, 0, ("class token", "mean")),
    ),
    "all tokens": (1, 0, lambda x: x, (1, 0, None, ("tokens",))),
    "the grid": (1, 0, grid, (1, 0, None, ("grid",))),
    "a patch row": (1, 0, lambda x: x[:, 3], (4, 0, 3, ("token 3",))),
    "the last patch row": (1, 0, lambda x: x[:, -1], (1, 1, None, ("token 25",))),
    "the first patch row": (0, 0, class_row, (1, 0, 0, ("class token",))),
    "the patch in the middle": (0, 0, lambda x: x[:, 12], (0, 0, None, ("grid",))),
    "largest and where": (1, 0, lambda x: x.max(dim=1).values, (1, 0, None, ("max",))),
    "median": (1, 0, lambda x: x.median(dim=1).values, (1, 0, None, ("median",))),
    "largest three": (1, 0, lambda x: x.topk(3, dim=1).values.mean(dim=1), (1, 0, None, ("topk",))),
    "standard deviation": (1, 0, lambda x: x.std(dim=1), (1, 0, None, ("std",))),
    "class token that is split off": (1, 0, lambda x: x.split([1, 25], 1)[0], (1, 0, 0, ("class token",))),
    "class token of five normed rows": (5, 0, lambda x: few(x)[:, 0], (5, 0, 0, ("class token",))),
    "class token and registers of five normed rows": (
        5,
        0,
        lambda x: few(x)[:, 0] + few(x)[:, 1:].mean(dim=1),
        (5, 0, 0, ("class token", "tokens 1..4")),
    ),
    "five rows that look at each other": (
        5,
        0,
        lambda x: few(x).softmax(dim=1)[:, 0],
        (5, 0, None, ("tokens 0..4",)),
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_what_the_head_reads_and_what_is_protected(name: str) -> None:
    prefix, suffix, read, expected = READERS[name]
    found = anatomy(ViT(depth=1, prefix=prefix, suffix=suffix, read=read))
    assert (found.prefix, found.suffix, found.class_token, found.head) == expected
    assert found.tokens == prefix + 25 + suffix
    assert found.unmatched == ()


def test_every_second_patch_is_a_read_of_the_grid_and_protects_nothing() -> None:
    program = recognised(ViT(read=lambda x: x[:, 1::2].mean(dim=1)))
    assert (program.anatomy.prefix, program.anatomy.suffix) == (1, 0)
    half = pruned(program)
    assert counts(half, "repair tokens")["region_ends"] == 1
    assert certify(program, half).permutation < 1e-5


class Pool(nn.Module):
    """Attention pooling with a learned query."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.both = nn.Parameter(torch.randn(1, 1, 1, 16)), nn.Linear(16, 32)

    def forward(self, x: Tensor) -> Tensor:
        key, value = self.both(x).unsqueeze(1).chunk(2, dim=-1)
        return F.scaled_dot_product_attention(self.query.expand(x.shape[0], -1, -1, -1), key, value)[:, 0, 0]


def test_attention_pooling_reads_every_token() -> None:
    found = anatomy(ViT(prefix=0, read=Pool()))
    assert (found.prefix, found.head, found.class_token) == (0, ("attention pooling",), None)
    assert found.depth == 2


class Taps(ViT):
    """An intermediate feature beside the logits."""

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        first = self.blocks[0](self.embed(pixels))
        return self.head(self.norm(self.blocks[1](first))[:, 0]), self.norm(first)


def test_a_state_that_leaves_in_the_middle_is_a_tap() -> None:
    found = anatomy(Taps())
    assert found.taps == (found.blocks[1].branches[0].state,)
    assert anatomy(ViT()).taps == ()


class PostNorm(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attn(x))
        return self.norm2(x + self.mlp(x))


def test_a_norm_between_states_is_no_tap() -> None:
    assert anatomy(ViT(PostNorm)).taps == ()


# --- which rows come from pixels --------------------------------------------------------------


class Mixed(ViT):
    """What is put where in the first state."""

    def __init__(self, make: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(depth=1, read=lambda x: x.mean(dim=1), prefix=0)
        self.make, self.row = make, nn.Parameter(torch.randn(1, 1, 16))

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.make(self.embed(pixels), self.row.expand(pixels.shape[0], -1, -1))
        return self.head(self.read(self.norm(self.blocks(x))))


ROWS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], tuple[int, int]]] = {
    "learned row in front": (lambda x, row: torch.cat([row, x], dim=1), (1, 0)),
    "learned rows at both ends": (lambda x, row: torch.cat([row, row, x, row], dim=1), (2, 1)),
    "row made of pixels in front": (
        lambda x, row: torch.cat([x.mean(dim=1, keepdim=True), x], dim=1),
        (0, 0),
    ),
    "learned row in the middle": (lambda x, row: torch.cat([x[:, :9], row, x[:, 9:]], dim=1), (0, 0)),
    "zeros in front": (lambda x, row: torch.cat([torch.zeros_like(row), x], dim=1), (1, 0)),
}


@pytest.mark.parametrize("name", ROWS)
def test_protected_are_the_rows_at_the_ends_that_do_not_come_from_pixels(name: str) -> None:
    make, expected = ROWS[name]
    found = anatomy(Mixed(make))
    assert (found.prefix, found.suffix) == expected
    told = ["rows 9 of the stream come from no pixel, stand between patches and are pruned as these are: put "
            "them in front of all patches, or behind them"]  # fmt: skip
    assert [*found.notes] == (told if name == "learned row in the middle" else [])


def test_a_stream_that_does_not_depend_on_the_image_is_refused() -> None:
    with pytest.raises(RecognitionError, match=r"does not depend on the image|no residual stream"):
        anatomy(Mixed(lambda x, row: row.expand(-1, 26, -1) + 0 * x.mean()))


# --- the layout of the stream -----------------------------------------------------------------


class TokensFirst(Attention):
    def forward(self, x: Tensor) -> Tensor:
        t, b, c = x.shape
        query, key, value = self.qkv(x).reshape(t, b, 3, 2, c // 2).permute(2, 1, 3, 0, 4).unbind(0)
        out = F.scaled_dot_product_attention(query, key, value)
        return self.proj(out.permute(2, 0, 1, 3).reshape(t, b, c))


class TokensFirstViT(ViT):
    """[T, B, C] states, and the positions added again before each block."""

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.embed(pixels).transpose(0, 1).contiguous()
        for block in self.blocks:
            x = block(x + self.embed.position.transpose(0, 1))
        return self.head(self.norm(x)[0])


def test_tokens_may_come_first() -> None:
    program = recognised(TokensFirstViT(lambda: Block(TokensFirst), depth=3))
    assert program.anatomy.token_dim == 0
    assert (program.anatomy.tokens, program.anatomy.prefix, program.anatomy.class_token) == (26, 1, 0)
    half = pruned(program)
    assert counts(half, "repair tokens")["gathered"] == 1
    assert certify(program, half).permutation < 1e-5
    x = pixels(3)  # each image keeps other rows, and gets other rows of the table
    together, alone = run(half, x)[0], torch.cat([run(half, image[None])[0] for image in x])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_a_stream_of_feature_maps_is_refused() -> None:
    class Maps(ViT):
        def forward(self, pixels: Tensor) -> Tensor:
            x = self.embed(pixels).mT.unflatten(2, (5, 5))  # [B, C, H, W]
            x = x + self.attention(x)
            x = x + self.attention(x)
            return self.head(x.mean(dim=(2, 3)))

        def attention(self, x: Tensor) -> Tensor:
            return self.blocks[0].attn(x.flatten(2).mT).mT.unflatten(2, (5, 5))

    with pytest.raises(RecognitionError, match=r"feature maps") as caught:
        anatomy(Maps(prefix=0))
    assert caught.value.remedy is not None
    assert "[B, H, W, C]" in caught.value.remedy
    assert caught.value.where is not None
    assert caught.value.where.startswith("node unflatten")
