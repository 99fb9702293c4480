"""Several streams in one model: the image's is pruned, learned queries never, and what is left is told."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunec
from prunec.compiler import compile_source
from prunec.errors import RecognitionError
from prunec.frontend.sources import from_module
from prunec.ir.program import ProgramModule
from prunec.structure import Anatomy
from tests.families import difference
from tests.tiny import Attention, Block, ViT, pixels, policy, recognised

QUERIES = 40


def anatomy(model: nn.Module, *inputs: Tensor) -> Anatomy:
    torch.manual_seed(0)
    found = recognised(model, *inputs).anatomy
    assert found is not None
    return found


# --- learned queries ----------------------------------------------------------------------------


class Cross(Attention):
    """Queries look at the image."""

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:  # type: ignore[override]
        query = self.qkv(x)[..., :16]
        key, value = self.qkv(memory)[..., 16:].chunk(2, dim=-1)
        parts = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in (query, key, value))
        if self.form == "fused":
            out = F.scaled_dot_product_attention(*parts)
        else:
            query, key, value = parts
            out = (query @ key.mT / 8**0.5).softmax(dim=-1) @ value
        return self.proj(out.transpose(1, 2).flatten(2))


class Decoding(Block):
    """Queries look at each other, then at the image."""

    def __init__(self, form: str) -> None:
        super().__init__(lambda: Attention(form=form))
        self.norm3, self.cross = nn.LayerNorm(16), Cross(form=form)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:  # type: ignore[override]
        x = x + self.attn(self.norm1(x))
        x = x + self.cross(self.norm3(x), memory)
        return x + self.mlp(self.norm2(x))


class Detector(ViT):
    """An encoder of 25 patches, and a decoder of more queries: most of the work is the decoder's."""

    def __init__(self, depth: int = 2, form: str = "fused", *, picked: bool = False) -> None:
        super().__init__(depth=depth, prefix=0)
        self.queries, self.picked = nn.Parameter(torch.randn(1, QUERIES, 16)), picked
        self.decoder = nn.ModuleList(Decoding(form) for _ in range(3))

    def decode(self, memory: Tensor, places: Tensor) -> Tensor:
        x = self.queries.expand(memory.shape[0], -1, -1)
        if self.picked:  # a query starts from a place of the image that looks promising
            best = places.amax(dim=-1).repeat(1, 2).topk(QUERIES, dim=1).indices
            x = x + places.repeat(1, 2, 1).gather(1, best[..., None].expand(-1, -1, 16))
        for layer in self.decoder:
            x = layer(x, memory)
        return self.head(x)

    def forward(self, pixels: Tensor) -> Tensor:
        places = self.embed(pixels)
        return self.decode(self.norm(self.blocks(places)), places)

    def by_hand(self, image: Tensor, keep: int) -> Tensor:
        places = self.embed(image[None])
        x = self.blocks[0](places)
        rows = x.norm(dim=-1).topk(keep, dim=1).indices[0].sort().values
        return self.decode(self.norm(self.blocks[1](x[:, rows])), places)


@pytest.mark.parametrize("form", ["fused", "spelled"])
def test_of_a_detector_the_encoder_is_the_stream(form: str) -> None:
    found = anatomy(Detector(form=form))
    assert (found.tokens, found.depth, found.path) == (25, 2, "blocks.0 to blocks.1")
    assert found.head == ("attention pooling",)
    for miss in found.unmatched:
        assert miss.reason.startswith("this attention is in a stream of learned queries, [")
        assert miss.reason.endswith(", 40, 16], which is left alone")
    assert {miss.place.split(",")[0].split(" in ")[1].split(".")[0] for miss in found.unmatched} == {
        "decoder"
    }


def test_its_image_tokens_are_pruned_as_by_hand() -> None:
    torch.manual_seed(0)
    model = Detector().eval()
    result = compile_source(from_module(model, pixels()), policy(keep=0.5))
    assert [(site.tokens, site.leaves) for site in result.pruned.plan.sites] == [(25, 13)]
    x = pixels(3)
    with torch.no_grad():
        expected = torch.cat([model.by_hand(image, 13) for image in x])
        assert difference(ProgramModule(result.pruned)(x), expected) <= 1e-5
        assert difference(model(x), expected) > 1e-3


def test_queries_that_start_from_places_of_the_image_are_queries() -> None:
    assert anatomy(Detector(picked=True)).tokens == 25


def test_a_kernel_as_wide_as_there_are_queries_is_no_row_of_them() -> None:
    model = Detector(picked=True)
    model.embed.patches = nn.Conv2d(3, 16, QUERIES, stride=4, padding=18)
    assert anatomy(model).tokens == 25


def test_a_model_with_nothing_but_queries_is_refused_with_its_module() -> None:
    with pytest.raises(RecognitionError, match="learned queries") as caught:
        anatomy(Detector(depth=0))
    assert caught.value.where is not None
    assert "in decoder.0" in caught.value.where
    assert caught.value.remedy == (
        "prunec prunes tokens of the image: name the part that makes them (submodule=), if it has attention"
    )


class Picking(ViT):
    """Goes on with some of its patches from the start, by their numbers, as masked autoencoders do."""

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.embed(pixels)
        best = x.norm(dim=-1).topk(15, dim=1).indices
        x = self.blocks(x.gather(1, best[..., None].expand(-1, -1, 16)))
        return self.head(self.norm(x).mean(dim=1))


def test_tokens_that_the_model_picks_from_the_image_are_tokens() -> None:
    found = anatomy(Picking(prefix=0))
    assert (found.tokens, found.depth) == (15, 2)


# --- two images ---------------------------------------------------------------------------------


class Features(ViT):
    def forward(self, pixels: Tensor) -> Tensor:
        return self.norm(self.blocks(self.embed(pixels)))[:, 0]


class Pair(nn.Module):
    """Two images, one tower or two."""

    def __init__(self, *, shared: bool) -> None:
        super().__init__()
        self.tower, self.other, self.head = Features(), None if shared else Features(), nn.Linear(16, 7)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(self.tower(x) - (self.other or self.tower)(y))


class Looped(Pair):
    """The same without a module around both calls."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        tower = self.tower
        x, y = (tower.norm(tower.blocks(tower.embed(image)))[:, 0] for image in (x, y))
        return self.head(x - y)


class Beside(Pair):
    """The second image is only averaged."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(self.tower(x) + y.mean())


def test_a_tower_for_two_images_says_that_one_call_is_pruned_and_how_to_prune_both() -> None:
    torch.manual_seed(0)
    model, x, y = Pair(shared=True).eval(), pixels(), pixels()
    (note,) = anatomy(model, x, y).notes
    assert note.startswith(
        "the blocks of this stream are called 2 times, and only the first call is pruned, the others "
        "stay dense: transform(..., submodule='tower') prunes all calls (node "
        "scaled_dot_product_attention_2 "
    )
    with pytest.warns(UserWarning, match="the blocks of this stream are called 2 times"):
        prunec.transform(model, policy(), example=(x, y))
    both = prunec.transform(model, policy(), example=(x, y), submodule="tower")
    one = prunec.transform(model.tower, policy(), example=x)
    with torch.no_grad():
        assert difference(both(x, y), model.head(one(x) - one(y))) <= 1e-5
        assert difference(both(x, y), model(x, y)) > 1e-3


def test_without_a_module_around_both_calls_one_batch_is_the_way() -> None:
    (note,) = anatomy(Looped(shared=True), pixels(), pixels()).notes
    assert "the others stay dense: give all images as one batch (node " in note


def test_a_tower_of_its_own_for_the_second_image_is_reported() -> None:
    (note,) = anatomy(Pair(shared=False), pixels(), pixels()).notes
    assert note.startswith("the image y has attention of its own, which stays dense (node ")
    assert note.endswith("only that of x is pruned")


def test_a_second_image_without_attention_is_nothing_to_tell() -> None:
    assert anatomy(Beside(shared=True), pixels(), pixels()).notes == ()
