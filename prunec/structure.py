"""What recognition yields: the token stream, its blocks and its protected tokens, or the reason why not.

Everything here is plain data that names graph nodes by name, so it survives every rewrite, prints, and
compares. `passes/recognise.py` fills it.

    stream [B, T, C] = prefix (P protected) + grid (N patches) + suffix (Q protected)
    block            = attention branch + MLP branch, each read from a state and added back to it
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BranchKind = Literal["attention", "mlp", "parallel", "other"]
NormPlace = Literal["pre", "post", "none"]


@dataclass(frozen=True)
class NoMatch:
    """Why something was not recognised. Falsy, so that `match or reason` reads well."""

    reason: str
    node: str
    place: str

    def __bool__(self) -> bool:
        return False

    def __str__(self) -> str:
        return f"{self.reason} ({self.place})"


@dataclass(frozen=True)
class Core:
    """One attention core: queries against keys, softmax, values."""

    form: Literal["fused", "spelled"]
    node: str  # the scaled_dot_product_attention call, or the softmax
    query: str  # [B, h, Tq, d]
    key: str  # [B, h, Tk, d], or its transpose where it is spelled out
    value: str
    mask: str | None = None  # additive bias or boolean mask, fused form only
    scale: float | None = None  # None: one over the square root of d


@dataclass(frozen=True)
class Branch:
    """One residual branch: `add = state + f(state)`."""

    kind: BranchKind
    state: str  # the stream value it reads
    add: str  # the stream value it makes
    norm: NormPlace
    layer_scale: bool
    cores: tuple[Core, ...] = ()
    activation: str | None = None  # "gelu", "silu gated", ...


@dataclass(frozen=True)
class Block:
    """The branches between one attention and the next."""

    index: int
    path: str  # module path of the attention, such as blocks.3
    branches: tuple[Branch, ...]

    @property
    def attention(self) -> Branch | None:
        """The first branch that holds an attention core."""
        return next((branch for branch in self.branches if branch.cores), None)

    @property
    def mlp(self) -> Branch | None:
        """The first MLP branch."""
        return next((branch for branch in self.branches if branch.kind in ("mlp", "parallel")), None)

    @property
    def sequential(self) -> bool:
        """Whether the MLP reads what the attention wrote (and not the same state beside it)."""
        return self.attention is not None and self.mlp is not None and self.attention.state != self.mlp.state


@dataclass(frozen=True)
class Anatomy:
    """One model's token stream, as far as prunec understands it."""

    blocks: tuple[Block, ...]
    tokens: int  # T
    prefix: int  # P protected tokens at the front
    suffix: int  # Q protected tokens at the end
    token_dim: int  # which dimension of a state counts tokens
    class_token: int | None  # the protected row that the head reads, if it reads exactly one
    head: tuple[
        str, ...
    ]  # how the stream is read at its end: "class token", "mean", "attention", "tokens", ...
    taps: tuple[str, ...]  # stream values that also leave in the middle
    states: tuple[str, ...]  # every value of the residual stream, in order
    pixels: str  # the image input
    unmatched: tuple[NoMatch, ...] = ()
    learned: int = 0  # how many of the rows in front come from no pixel, such as a class token
    notes: tuple[str, ...] = ()  # what its user should know

    @property
    def scoring_token(self) -> int | None:
        """The row whose attention can score: the class token, or a dense model's first learned row."""
        if self.class_token is None and self.wants_all and self.learned:
            return 0
        return self.class_token

    @property
    def path(self) -> str:
        """From which block to which, by their paths in the model."""
        first, last = self.blocks[0].path, self.blocks[-1].path
        return first if first == last else f"{first} to {last}"

    @property
    def grid(self) -> int:
        """N, the number of patch tokens."""
        return self.tokens - self.prefix - self.suffix

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def wants_all(self) -> bool:
        """Whether something wants every token in its place, as detectors and segmenters do."""
        return bool({"tokens", "grid"}.intersection(self.head) or self.taps)

    @property
    def reads_patches(self) -> bool:
        """Whether patches are read behind the last block, and not protected tokens alone."""
        named = [word for word in self.head if word.startswith(("class token", "token ", "tokens "))]
        known = self.head and len(named) == len(self.head) and not self.unmatched
        return self.wants_all or not known

    @property
    def cores(self) -> tuple[str, ...]:
        """The attention cores whose softmax runs over the stream's tokens, by node."""
        elsewhere = {miss.node for miss in self.unmatched}
        found = [core.node for block in self.blocks for branch in block.branches for core in branch.cores]
        return tuple(name for name in found if name not in elsewhere)

    @property
    def dense(self) -> int:
        """Number of blocks whose attention is not over the tokens (but in windows, over channels)."""
        elsewhere = {miss.node for miss in self.unmatched}
        return sum(
            block.attention is not None and block.attention.cores[0].node in elsewhere
            for block in self.blocks
        )

    def __str__(self) -> str:
        return self.summary()

    def summary(self) -> str:
        """One line: blocks, tokens, head."""
        protected = _counted(self.prefix, "in front") + _counted(self.suffix, "at the end")
        tokens = f"{self.grid} patch tokens + {' and '.join(protected) or 'no'} protected"
        found = f"{self.depth}/{self.depth + len(self.unmatched) - self.dense} blocks"
        found += f" (attention not over tokens in {self.dense})" if self.dense else ""
        return f"{found}, {tokens}, head reads {' and '.join(self.head) or 'nothing'}"


def _counted(number: int, where: str) -> list[str]:
    return [f"{number} {where}"] if number else []
