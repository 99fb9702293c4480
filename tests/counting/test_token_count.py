"""The number of tokens as a number: a pruned model computes with the number of those that are left.

Each snippet stands in a small model. What the pruned model gives must equal the model's own code run on the
kept tokens alone, image by image, in plain PyTorch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunec
from prunec.compiler import compile_source, recognise
from prunec.frontend import sources
from prunec.policy.policy import Policy
from tests import moding
from tests.families import difference, randomise
from tests.references import EVIT, NORM, Layer, Pruning, Stream, attend, heads, walk
from tests.tiny import Attention, Block, ViT

TOLERANCE = 1e-5
Read = Callable[[Tensor], Tensor]


# --- in the head: what is read of the stream x [B, N, C] -----------------------------------------


def variance(x: Tensor) -> Tensor:
    mean = x.sum(dim=1, keepdim=True) / x.shape[1]
    return ((x - mean) ** 2).sum(dim=1) / (x.shape[1] - 1)


def entropy(x: Tensor) -> Tensor:
    p = x.softmax(dim=1)
    return -(p * p.log()).sum(dim=1) / math.log(x.shape[1])


def pairs(x: Tensor) -> Tensor:
    n = x.shape[1]
    return (x.sum(dim=1) ** 2 - (x**2).sum(dim=1)) / (n * (n - 1))


HEADS: dict[str, Read] = {
    "sum / n": lambda x: x.sum(1) / x.shape[1],
    "sum of the patches / (n - 1)": lambda x: x[:, 1:].sum(1) / (x.shape[1] - 1),
    "sum of the patches / their number": lambda x: x[:, 1:].sum(1) / x[:, 1:].size(1),
    "sum * (1 / n)": lambda x: x.sum(1) * (1 / x.shape[1]),
    "sum / float(n)": lambda x: x.sum(1) / float(x.size(1)),
    "mean * n": lambda x: x.mean(1) * x.shape[1],
    "sum / torch.tensor(n)": lambda x: x.sum(1) / torch.tensor(x.shape[1]),
    "sum / a root of torch.tensor(n)": lambda x: x.sum(1) / torch.tensor(float(x.shape[1])).sqrt(),
    "sum / x.new_tensor(n)": lambda x: x.sum(1) / x.new_tensor(x.shape[1]),
    "sum / full((), n)": lambda x: x.sum(1) / torch.full((), x.shape[1]),
    "sum / full_like(.., n)": lambda x: x.sum(1) / torch.full_like(x[:, 0], x.shape[1]),
    "ones(n) / n @ x": lambda x: (torch.ones(x.shape[1]) / x.shape[1]) @ x,
    "full((1, n), 1 / n) @ x": lambda x: (torch.full((1, x.shape[1]), 1 / x.shape[1]) @ x)[:, 0],
    "x.new_full((n,), 1 / n) @ x": lambda x: x.new_full((x.shape[1],), 1 / x.shape[1]) @ x,
    "ones_like(x) / n * x": lambda x: (torch.ones_like(x) / x.shape[1] * x).sum(1),
    "sum / (sum of arange(n))": lambda x: x.sum(1) / torch.arange(x.shape[1]).sum(),
    "logsumexp - log(n)": lambda x: x.logsumexp(1) - math.log(x.shape[1]),
    "variance by hand": variance,
    "norm / sqrt(n)": lambda x: x.norm(dim=1) / math.sqrt(x.shape[1]),
    "root of the mean square": lambda x: x.square().sum(1).div(x.shape[1]).sqrt(),
    "entropy / log(n)": entropy,
    "x.T @ x / n": lambda x: (x.mT @ x / x.shape[1])[:, :, 3],
    "einsum / n": lambda x: torch.einsum("btc,btc->bc", x, x) / x.shape[1],
    "add(.., alpha=1 / n)": lambda x: torch.add(x[:, 0], x.sum(1), alpha=1 / x.shape[1]),
    "sum over tokens and channels / (n c)": lambda x: x[:, 0] + x.sum((1, 2)).div(x.shape[1] * 16)[:, None],
    "all pairs / n (n - 1)": pairs,
    "sum / n ** 0.75": lambda x: x.sum(1) / x.shape[1] ** 0.75,
    "sum * log2(n) / n": lambda x: x.sum(1) * (math.log2(x.shape[1]) / x.shape[1]),
}


# --- in the attention: how scores [B, h, N, N] and rows become an output ---------------------------


class Attending(Attention):
    """Attention whose scores, weights and output meet the number of tokens in ways of their own."""

    def __init__(self, **ways: Callable[..., Any]) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(2, 1, 1))
        self.ways = ways

    def forward(self, x: Tensor) -> Tensor:
        (b, n, c), ways = x.shape, self.ways
        query, key, value = self.qkv(x).reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        if "fused" in ways:
            out = F.scaled_dot_product_attention(query, key, value, scale=ways["fused"](n, c // 2))
        else:
            scores = query @ key.mT
            scores = ways["scores"](scores, n, self.factor) if "scores" in ways else scores * 0.35
            weights = scores.softmax(-1)
            weights = ways["weights"](weights, n) if "weights" in ways else weights
            out = weights @ value
            out = out + ways["values"](value, n) if "values" in ways else out
        y = self.proj(out.transpose(1, 2).reshape(b, n, c))
        return ways["output"](y, n) if "output" in ways else y


ATTENTIONS: dict[str, dict[str, Callable[..., Any]]] = {
    "scores * n ** -0.5": {"scores": lambda s, n, _: s * n**-0.5},
    "scores / sqrt(n)": {"scores": lambda s, n, _: s / math.sqrt(n)},
    "scores * log(n)": {"scores": lambda s, n, _: s * math.log(n) * 8**-0.5},
    "scores * (log(n) / sqrt(d))": {"scores": lambda s, n, _: s * (math.log(n) / 8**0.5)},
    "scores * (a parameter * log(n))": {"scores": lambda s, n, factor: s * (factor * math.log(n))},
    "scores * torch.tensor(n).log()": {"scores": lambda s, n, _: s * torch.tensor(float(n)).log()},
    "scale=log(n) / sqrt(d)": {"fused": lambda n, d: math.log(n) * d**-0.5},
    "scale=n ** -0.5": {"fused": lambda n, _: n**-0.5},
    "scale=log_26(n) / sqrt(d)": {"fused": lambda n, d: math.log(n, 26) * d**-0.5},
    "softmax - 1 / n": {"weights": lambda w, n: w - 1 / n},
    "weights over 1 / n": {"weights": lambda w, n: torch.where(w > 1 / n, w, 0.0)},
    "weights under 1 / n filled": {"weights": lambda w, n: w.masked_fill(w < 1 / n, 0.0)},
    "weights clamped at 2 / n": {"weights": lambda w, n: w.clamp(max=2 / n)},
    "+ sum of the values / n": {"values": lambda v, n: v.sum(-2, keepdim=True) / n},
    "y / sqrt(n)": {"output": lambda y, n: y / n**0.5},
    "ranks / n": {"output": lambda y, n: y * (y.argsort(1).argsort(1) / n)},
    "y - sum / n": {"output": lambda y, n: y - y.sum(1, keepdim=True) / n},
}


# --- by position: a table of n rows, or of n x n, says where tokens were ----------------------------


def distance(n: int) -> Tensor:
    rows = torch.arange(n)
    return -(rows[:, None] - rows[None]).abs() * 0.3


POSITIONS: dict[str, Callable[[int], Tensor]] = {
    "distance": distance,
    "distance / n": lambda n: distance(n) / n,
    "a window of neighbours": lambda n: torch.zeros(n, n).masked_fill(distance(n) < -2, -30.0),
    "only what stands before": lambda n: torch.full((n, n), -30.0).triu(1),
    "itself": lambda n: torch.eye(n),
    "sinusoids": lambda n: (torch.arange(n) / 3).sin(),
    "sinusoids of the share of the way": lambda n: (torch.arange(n) * (2 * math.pi / n)).sin(),
    "linspace(0, 1, n)": lambda n: torch.linspace(0, 1, n),
    "arange(n) / n": lambda n: torch.arange(n) / n,
    "from -1 to 1": lambda n: 2 * torch.arange(n) / (n - 1) - 1,
    "from the end": lambda n: (n - 1 - torch.arange(n)) * 0.1,
    "a bell": lambda n: torch.hann_window(n),
}


class Placed(Attention):
    """Attention to which positions are added: to its tokens, or to its scores."""

    def __init__(self, table: Callable[[int], Tensor]) -> None:
        super().__init__()
        self.table = table
        self.rows: Tensor | None = None  # those that are left, when it is run by hand

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        table = self.table(n if self.rows is None else TOKENS)
        if self.rows is not None:
            table = table[self.rows] if table.dim() == 1 else table[self.rows][:, self.rows]
        x = x + table[:, None] if table.dim() == 1 else x
        query, key, value = self.qkv(x).reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        scores = query @ key.mT * 0.35
        scores = scores + table if table.dim() == 2 else scores
        return self.proj((scores.softmax(-1) @ value).transpose(1, 2).reshape(b, n, c))


# --- the models, and their code on the kept tokens -------------------------------------------------

TOKENS = 26


class Counting(ViT):
    """One model for many ways: each block behind block 0, or each reading of the stream, gives an output."""

    def __init__(
        self, reads: list[Read] | None = None, attentions: Sequence[Callable[[], nn.Module]] = (Attention,)
    ) -> None:
        super().__init__(depth=1)
        self.blocks.extend(Block(attention=attention) for attention in attentions)
        self.reads = reads
        self.learned = nn.ModuleList(read for read in reads or () if isinstance(read, nn.Module))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.behind(self.blocks[0](self.embed(pixels)))

    def behind(self, x: Tensor) -> Tensor:
        """What block 1 and all that follows make of the stream, or of the rows that are left of it."""
        found = []
        for block in self.blocks[1:]:
            x = block(x)
            found.append(x[:, 0])
        if self.reads is not None:
            found = [read(self.norm(x)) for read in self.reads]
        return self.head(torch.stack(found, dim=1))  # [B, ways, 7]

    def by_hand(self, image: Tensor, kept: Tensor) -> Tensor:
        """One image: block 0 on all tokens, and the same code again on the kept ones."""
        rows = kept.nonzero()[:, 0]
        for part in self.modules():
            if isinstance(part, Placed):
                part.rows = rows
        found = self.behind(self.blocks[0](self.embed(image[None]))[:, rows])
        for part in self.modules():
            if isinstance(part, Placed):
                part.rows = None
        return found


def ready(model: Counting) -> Counting:
    return randomise(model.eval(), seed=2)


def heads_model(*names: str) -> Counting:
    return ready(Counting([HEADS[name] for name in names or HEADS]))


def attentions_model(*names: str) -> Counting:
    ways = [ATTENTIONS[name] for name in names or ATTENTIONS]
    return ready(Counting(attentions=[lambda ways=ways: Attending(**ways) for ways in ways]))


def images(batch: int = 3) -> Tensor:
    return torch.randn(batch, 3, 20, 20, generator=torch.Generator().manual_seed(7))


def pruned(model: nn.Module, **options: Any) -> nn.Module:
    return prunec.transform(
        model, prunec.Policy.load("norm", keep=0.5, blocks=(1,)), example=images(2), **options
    )


def kept_half(model: ViT, image: Tensor, suffix: int) -> Tensor:
    """Protected rows, and of the patches the half with the largest norm: [N]."""
    x = model.blocks[0](model.embed(image[None]))[0]
    norm = x.norm(dim=-1)
    norm[:1] = norm[len(x) - suffix :] = math.inf
    patches = len(x) - 1 - suffix
    kept = torch.zeros(len(x), dtype=torch.bool)
    kept[norm.topk(1 + suffix + math.ceil(patches / 2)).indices] = True
    return kept


@functools.cache
def static(make: Callable[[], Counting]) -> tuple[Tensor, Tensor, Tensor]:
    """What the pruned model gives, what its code gives by hand, and what the dense model gives."""
    model = make()
    module = pruned(model)
    suffix = module.program.anatomy.suffix
    with torch.no_grad():
        by_hand = [model.by_hand(image, kept_half(model, image, suffix)) for image in images()]
        return module(images()), torch.cat(by_hand), model(images())


def check(make: Callable[[], Counting], place: int) -> None:
    found, expected, dense = (outputs[:, place] for outputs in static(make))
    assert difference(found, expected) <= TOLERANCE
    assert difference(expected, dense) > 1e-3


@pytest.mark.parametrize("name", HEADS)
def test_a_head_counts_the_tokens_that_are_left(name: str) -> None:
    check(heads_model, list(HEADS).index(name))


def test_the_last_of_a_cumulative_sum_is_divided_by_the_tokens_that_are_left() -> None:
    # It reads the last row, which is protected for that.
    check(lambda: ready(Counting([lambda x: x.cumsum(1)[:, -1] / x.shape[1]])), 0)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_an_attention_counts_the_tokens_that_are_left(name: str) -> None:
    check(attentions_model, list(ATTENTIONS).index(name))


def placed_model() -> Counting:
    return ready(Counting(attentions=[lambda table=table: Placed(table) for table in POSITIONS.values()]))


@pytest.mark.parametrize("name", POSITIONS)
def test_positions_stay_what_they_were(name: str) -> None:
    check(placed_model, list(POSITIONS).index(name))


# --- several sites, a token that stands for the dropped ones, scores of a scaled attention -------------


def scaled_layer(block: Block) -> Layer:
    def attention(x: Tensor, _rows: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = (heads(part, 2) for part in block.attn.qkv(block.norm1(x)).chunk(3, dim=-1))
        y, weights = attend(q * math.log(len(x)), k, v)
        return block.attn.proj(y), weights

    return Layer(attention, lambda x: block.mlp(block.norm2(x)))


@pytest.mark.parametrize("form", ["scale=log(n) / sqrt(d)", "scores * log(n)"])
@pytest.mark.parametrize(("policy", "pruning"), [("evit", EVIT), ("norm", NORM)])
def test_each_block_counts_what_its_site_left(form: str, policy: str, pruning: Pruning) -> None:
    # evit scores by the attention, of which the scale follows too, and fuses the others into one token.
    ways = ATTENTIONS[form]
    model = randomise(ViT(lambda: Block(attention=lambda: Attending(**ways)), depth=4).eval(), seed=2)
    module = prunec.transform(
        model, prunec.Policy.load(policy, keep_per_site=0.5, blocks=(1, 2)), example=images(2)
    )
    layers = [scaled_layer(block) for block in model.blocks]
    with torch.no_grad():
        streams = [walk(Stream(model.embed(image[None])[0], prefix=1), layers, pruning) for image in images()]
        expected = model.head(model.norm(torch.stack([stream.x[0] for stream in streams])))
        assert difference(module(images()), expected) <= TOLERANCE
        assert difference(expected, model(images())) > 1e-3


def test_a_pruned_model_compiles_whole() -> None:
    names = ["sum / n", "sum / torch.tensor(n)", "ones(n) / n @ x", "logsumexp - log(n)", "norm / sqrt(n)"]
    module = pruned(heads_model(*names))
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert difference(compiled(images()), module(images())) <= TOLERANCE


# --- images that keep different numbers of tokens --------------------------------------------------

#: What needs one number for all images, and what the refusal names beside the line.
ONE_FOR_ALL = {
    "ones(n) / n @ x": "node div",
    "full((1, n), 1 / n) @ x": "node full",
    "x.new_full((n,), 1 / n) @ x": "node new_full",
    "sum / full_like(.., n)": "node full_like",
    "add(.., alpha=1 / n)": "node add_5",
    "scale=log(n) / sqrt(d)": "scale=ways",
    "scale=n ** -0.5": "scale=ways",
    "scale=log_26(n) / sqrt(d)": "scale=ways",
}


@functools.cache
def ragged(make: Callable[[], Counting]) -> tuple[dict[str, Tensor], Tensor]:
    """The outputs in every mode where each image keeps a share of its own, and by hand."""
    model, batch = make(), images(5)
    dense = recognise(sources.from_module(model, images(2)))
    padded = moding.unfinished(dense, Policy.load("norm").override(blocks=(1,)))
    kept = moding.kept_sets(padded, len(batch), least=1)
    programs = moding.in_all_modes(padded)
    with torch.no_grad():
        expected = torch.cat([model.by_hand(image, rows) for image, rows in zip(batch, kept[0], strict=True)])
        return {mode: moding.run(one, (batch,), kept).result[0] for mode, one in programs.items()}, expected


def ragged_heads() -> Counting:
    return heads_model(*(name for name in HEADS if name not in ONE_FOR_ALL))


def ragged_attentions() -> Counting:
    """All but ranks among tokens: where some rows are padding, those get the whole stream, and its count."""
    others = {*ONE_FOR_ALL, "ranks / n"}
    return attentions_model(*(name for name in ATTENTIONS if name not in others))


@pytest.mark.parametrize("mode", ["padded", "packed", "masked"])
@pytest.mark.parametrize("make", [ragged_heads, ragged_attentions])
def test_each_image_counts_its_own_tokens(make: Callable[[], Counting], mode: str) -> None:
    outputs, expected = ragged(make)
    worst = [difference(outputs[mode][:, way], expected[:, way]) for way in range(expected.shape[1])]
    assert max(worst) <= TOLERANCE, worst


@pytest.mark.parametrize("name", ONE_FOR_ALL)
def test_one_number_for_all_images_is_refused_where_they_differ(name: str) -> None:
    model = heads_model(name) if name in HEADS else attentions_model(name)
    with pytest.raises(prunec.PolicyError, match="each image needs its own") as refused:
        pruned(model, mode="padded")
    assert ONE_FOR_ALL[name] in str(refused.value.where)
    assert "test_token_count.py" in str(refused.value.where)
    assert "mode static" in str(refused.value.remedy)


# --- what follows the count in no form that is known ------------------------------------------------


class Weighed(nn.Module):
    """A learned weight for each token."""

    def __init__(self, parted: bool) -> None:
        super().__init__()
        self.weight, self.parted = nn.Parameter(torch.ones(TOKENS)), parted

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight / x.shape[1] if self.parted else self.weight
        return (x * weight[:, None]).sum(1) / (1 if self.parted else x.shape[1])


UNKNOWN: dict[str, tuple[Read, str]] = {
    "x.topk(n // 2)": (lambda x: x.topk(x.shape[1] // 2, dim=1).values.sum(1), "number 13 follows"),
    "sum / (n % 7)": (lambda x: x.sum(1) / (x.shape[1] % 7 + 3), "number 8 follows"),
    "two numbers of one tensor": (lambda x: x.sum(1) / torch.tensor([1.0, x.shape[1]] * 8), "follows"),
    "a weight for each token / n": (Weighed(parted=True), "whether that is a position or a count"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_number_that_follows_in_no_known_form_is_refused_with_its_line(name: str) -> None:
    read, what = UNKNOWN[name]
    with pytest.raises(prunec.RecognitionError, match=what) as refused:
        pruned(ready(Counting([read])))
    assert "test_token_count.py" in str(refused.value.where)
    assert refused.value.remedy


def test_a_learned_weight_for_each_token_moves_with_it_and_its_sum_is_divided_by_their_number() -> None:
    class Kept(Counting):
        def by_hand(self, image: Tensor, kept: Tensor) -> Tensor:
            rows = kept.nonzero()[:, 0]
            x = self.norm(self.blocks[1](self.blocks[0](self.embed(image[None]))[:, rows]))
            weight = self.reads[0].weight[rows]
            return self.head((x * weight[:, None]).sum(1) / len(rows))[:, None]

    check(lambda: ready(Kept([Weighed(parted=False)])), 0)


# --- what only equals the count ----------------------------------------------------------------------

NEAR_MISSES: dict[str, Read] = {
    "26": lambda x: x.sum(1) / 26,
    "1 / 26": lambda x: x.sum(1) * (1 / 26),
    "log(26)": lambda x: x.sum(1) / math.log(26),
    "torch.tensor(26)": lambda x: x.sum(1) / torch.tensor(26.0),
    "ones(26) / 26, no token's": lambda x: x.sum(1) / (torch.ones(26) / 26).sum() / 26,
    "26 beside the count": lambda x: x.sum(1) / 26 + x.sum(1) / x.shape[1],
    "the patches of the image at 4 pixels each way": lambda x: x.sum(1) / 25,
}


def near_misses() -> Counting:
    return ready(Counting(list(NEAR_MISSES.values())))


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_a_number_that_only_equals_the_count_stays(name: str) -> None:
    check(near_misses, list(NEAR_MISSES).index(name))


# --- counts that are read before there is a stream, and models that cannot be run again ----------------


class Early(Counting):
    """Three numbers of tokens, read off the image, the grid of its patches, and the tokens at first."""

    def __init__(self, image: int | None = None, tokens: int | None = None) -> None:
        super().__init__()
        self.image, self.tokens = image, tokens  # what it insists on
        self.counted = (True, True, True)

    def forward(self, pixels: Tensor) -> Tensor:
        assert self.image in (None, pixels.shape[2])
        grid = self.embed.patches(pixels)
        front = self.embed.front.expand(pixels.shape[0], -1, -1)
        x = torch.cat([front, grid.flatten(2).transpose(1, 2)], dim=1) + self.embed.position
        assert self.tokens in (None, x.shape[1])
        height, width = pixels.shape[2:]
        numbers = (height // 4) * (width // 4) + 1, grid.shape[2] * grid.shape[3] + 1, x.shape[1]
        return self.divided(self.blocks[0](x), numbers)

    def divided(self, x: Tensor, numbers: tuple[int, ...]) -> Tensor:
        total = self.norm(self.blocks[1](x)).sum(1)
        means = [total / number for number, counted in zip(numbers, self.counted, strict=True) if counted]
        return self.head(torch.stack(means, dim=1))

    def by_hand(self, image: Tensor, kept: Tensor) -> Tensor:
        x = self.blocks[0](self.embed(image[None]))[:, kept]
        return self.divided(x, (int(kept.sum()),) * 3)


@pytest.mark.parametrize("place", range(3), ids=["image", "grid", "tokens"])
def test_a_count_that_is_read_before_the_blocks_follows_too(place: int) -> None:
    check(early, place)


def early() -> Counting:
    return ready(Early())


def early_of_one_size() -> Counting:
    model = Early(image=20)
    model.counted = (False, True, True)
    return ready(model)


@pytest.mark.parametrize("place", range(2), ids=["grid", "tokens"])
def test_a_model_of_one_image_size_is_cut_at_its_patches(place: int) -> None:
    check(early_of_one_size, place)


def test_a_number_of_the_image_is_refused_where_the_model_takes_no_other_size() -> None:
    with pytest.raises(prunec.RecognitionError, match="takes no other size") as refused:
        pruned(ready(Early(image=20)))
    assert "return self.divided(" in str(refused.value.where)


def test_a_model_that_runs_at_one_count_only_is_refused_for_a_number_that_equals_it() -> None:
    with pytest.raises(
        prunec.RecognitionError, match="cannot be run at another one: AssertionError"
    ) as refused:
        pruned(ready(Early(tokens=TOKENS)))
    assert "return self.divided(" in str(refused.value.where)


def test_a_model_that_runs_at_one_count_only_is_pruned_where_no_number_equals_it() -> None:
    class Insists(Counting):
        def behind(self, x: Tensor) -> Tensor:
            return super().behind(x) * 0.7

        def forward(self, pixels: Tensor) -> Tensor:
            x = self.embed(pixels)
            assert x.shape[1] == TOKENS
            return self.behind(self.blocks[0](x))

    check(lambda: ready(Insists()), 0)


def exported(model: nn.Module) -> sources.Source:
    shapes = ({0: torch.export.Dim.AUTO},)
    program = torch.export.export(model, (images(2),), dynamic_shapes=shapes)
    return sources.Source("mine", model, (images(2),), {}, "given", exported=program)


def test_a_program_without_code_is_refused_for_a_number_that_equals_the_count() -> None:
    source = exported(heads_model("sum * (1 / n)"))
    with pytest.raises(prunec.RecognitionError, match=r"0\.0384615 may follow .* there is only its graph"):
        compile_source(source, Policy.load("norm").override(blocks=(1,)))


def test_a_program_without_code_is_pruned_where_no_number_equals_the_count() -> None:
    source = exported(ready(Counting([lambda x: x.mean(1) * 0.7])))
    result = compile_source(source, Policy.load("norm").override(blocks=(1,)))
    assert result.certificate.identity <= TOLERANCE
