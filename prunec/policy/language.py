"""The words of the policy language: one model for each axis of the space that a policy is a point in.

    sites     where     before_block | after_attention, at blocks (or none), depths, or between two depths
    scorer    kind      what gives each token its score: heuristics, learned scorers, similarity, your own
    selector  kind      top_k: as many of every image | threshold, adaptive, sampling: as many as it needs
    fate                drop | fuse | merge | preserve | exit: what becomes of tokens that do not stay
    restore             none | stale | copy | share | rejoin | canvas: how they come back for the head
    attention           plain | proportional: a merged token counts as many as it stands for

An axis knows nothing of the others; `Step` and `Rules` refuse what does not go together, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import entry_points
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from prunec.errors import brief, did_you_mean, first_few, shown

#: Blocks, or tokens of a stream, that a model may have: for numbers that count some of them.
MOST = 2**16

# A field's description completes the sentence "NAME must be ..." in errors, and documents the JSON schema.
Block = Annotated[int, Field(ge=0, le=MOST)]
Depth = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Rates = Annotated[list[Rate], Field(min_length=1)]
#: A name or a path on one line, as plans and manifests hold them.
Word = Annotated[str, Field(max_length=4096, pattern=r"^[^\x00-\x1f\x7f]*$")]

#: Where other packages announce scorers of their own.
ENTRY_POINTS = "prunec.scorers"

#: The scorers that ship with prunec.
SCORERS = (
    "cls_attention", "received_attention", "norm", "random", "change", "similarity", "novelty",
    "mlp", "predictor", "query", "pre_net", "grader",
)  # fmt: skip
#: Those of them that are learned, and so trained or calibrated.
LEARNED = ("mlp", "predictor", "query", "pre_net", "grader")
#: Those that score only what went through the attention (or the block) before.
LATE = ("cls_attention", "received_attention", "change")

#: Options of scorers, and the scorers that each belongs to.
_OPTIONS = {
    "hidden": ("mlp", "novelty"), "importance": ("novelty",), "values": ("cls_attention",),
    "queries": ("query",), "depth": ("pre_net",),
    "embedding": ("pre_net",), "of": ("similarity", "novelty"), "pairs": ("similarity",),
}  # fmt: skip


def listed(names: Iterable[str]) -> str:
    """`a, b or c`."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def announced() -> tuple[str, ...]:
    """Names of the scorers that installed packages announce."""
    return tuple(sorted({point.name for point in entry_points(group=ENTRY_POINTS)}))


def mistakes(error: ValidationError) -> str:
    """The first few mistakes in a file that pydantic found, each with its place."""
    found = [
        f"{'.'.join(brief(str(part), 60) for part in problem['loc']) or 'the file'}: {brief(problem['msg'])}"
        for problem in error.errors(include_url=False, include_input=False)
    ]
    return first_few(found, "; ")


class Model(BaseModel):
    """Frozen, nothing unknown, and strict: or `keep: yes` would quietly mean 1.0 and `keep: "0.5"` pass."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Sites(Model):
    """Where tokens are scored and selected: a place inside the block, and which blocks.

    `between: [0.25, 1.0]` means every block from a quarter of the depth to the end.
    """

    where: Literal["before_block", "after_attention"]
    blocks: Annotated[
        tuple[Block, ...] | None,
        Field(strict=False, description="a list of block numbers, counted from 0"),
    ] = None
    depths: Annotated[
        tuple[Depth, ...] | None,
        Field(strict=False, min_length=1, description="a list of fractions of the depth, each in [0, 1)"),
    ] = None
    between: Annotated[
        tuple[Share, Share] | None,
        Field(strict=False, description="two fractions of the depth, such as [0.25, 1.0]"),
    ] = None

    @model_validator(mode="after")
    def _one_of_them(self) -> Sites:
        ways = {"blocks": self.blocks, "depths": self.depths, "between": self.between}
        given = [name for name, value in ways.items() if value is not None]
        if len(given) != 1:
            raise ValueError(f"give one of blocks, depths and between, got {' and '.join(given) or 'none'}")
        return self

    @field_validator("between")
    @classmethod
    def _in_order(cls, between: tuple[float, float] | None) -> tuple[float, float] | None:
        if between is not None and not between[0] < between[1]:
            raise ValueError(f"between must rise from the first fraction to the second, got {list(between)}")
        return between


class Scorer(Model):
    """What gives each token its score; the higher, the better its chance to stay.

    cls_attention       attention of the class token; with `values`, times the norm of the token's value
    received_attention  what all patches pay to it, and its share of the values
    norm, random        the token's length; a random number, the control for every other scorer
    change              how much the MLP of the block before changed it
    similarity          how unlike its nearest partner it is, by `of`: keys or tokens, in `pairs`: alternating
                        (every other patch looks for a partner among the others) or windows of 2 x 2
    novelty             how unlike all that come before it in an order, by `of`: of many alike one stays. With
                        `importance`, times what an mlp takes a token to matter, to that power
    mlp                 learned, each token by itself: norm, linear, GELU, linear; `hidden`: its width, as a
                        share of the channels
    predictor           learned, each token beside the mean of all that are there
    query               learned: the sum over `queries` of query . token
    pre_net             learned: a small ViT of `depth` blocks in front of the model, which separates
                        objects from background, on patches of the model (`embedding: shared`) or its `own`
    grader              learned: class scores of a token; the less sure they are, the better for it to stay

    Any other kind is a scorer that an installed package announces; `options` are given to it.
    """

    kind: str = Field(description=listed(SCORERS), json_schema_extra={"examples": list(SCORERS)})
    hidden: float | None = Field(default=None, gt=0, le=4, description="in (0, 4]")
    importance: float | None = Field(default=None, gt=0, le=4, description="in (0, 4]")
    values: bool = Field(default=False, description="true or false")
    queries: int | None = Field(default=None, ge=1, le=4096, description="a whole number from 1 to 4096")
    depth: int | None = Field(default=None, ge=1, le=64, description="a whole number from 1 to 64")
    embedding: Literal["shared", "own"] | None = None
    of: Literal["keys", "tokens"] | None = None
    pairs: Literal["alternating", "windows"] | None = None
    options: dict[str, Any] | None = Field(default=None, description="a mapping of options to their values")

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        names = (*SCORERS, *announced())
        if kind not in names:
            raise ValueError(f"kind must be {listed(names)}, got {shown(kind)}{did_you_mean(kind, names)}")
        return kind

    @field_validator("hidden", "importance", "values", "queries", "depth", "embedding", "of", "pairs")
    @classmethod
    def _belongs(cls, value: Any, info: ValidationInfo) -> Any:
        kind, owners = info.data.get("kind"), _OPTIONS[str(info.field_name)]
        if value and kind is not None and kind not in owners:
            raise ValueError(
                f"{info.field_name} belongs to the scorer {listed(owners)}, {kind} has no such option; "
                f"got {shown(value)}"
            )
        return value

    @model_validator(mode="after")
    def _hidden_of_something(self) -> Scorer:
        if self.kind == "novelty" and self.hidden is not None and self.importance is None:
            raise ValueError(
                f"hidden is the width of what importance is taken by, and there is none; got {self.hidden:g}"
            )
        return self

    @field_validator("options")
    @classmethod
    def _of_others(cls, options: dict[str, Any] | None, info: ValidationInfo) -> dict[str, Any] | None:
        kind = info.data.get("kind")
        if options is not None and kind in SCORERS:
            raise ValueError(
                f"options belong to scorers of other packages, {kind} is one of prunec's; "
                f"got {shown(options)}"
            )
        return options

    @property
    def learned(self) -> bool:
        """Whether it has parameters of its own (a scorer of another package is taken to have some)."""
        return self.kind in LEARNED or self.kind not in SCORERS or self.importance is not None


def _rate(value: Any) -> float | tuple[float, ...] | None:
    """One share for all sites, or one for each."""
    if value is None:
        return None
    several = isinstance(value, list | tuple)
    rates = value if several else [value]
    numbers = all(isinstance(rate, int | float) and not isinstance(rate, bool) for rate in rates)
    if not (rates and numbers and all(0 < rate <= 1 for rate in rates)):
        raise ValueError(
            f"keep_per_site must be in (0, 1]{' or a list of such rates' * several}, got {shown(value)}"
        )
    return tuple(map(float, rates)) if several else float(value)


class Selector(Model):
    """How scores become a kept set.

    top_k      the best of every image, the same number of each
    threshold  what scores above a threshold: one that is calibrated so that `keep_per_site` is
               met on average, or `at`
    adaptive   what is less alike than the mean over the image by its spread, divided by the block's number
    sampling   those that a regular grid over the cumulated scores hits, at most `keep_per_site`

    `keep_per_site` is the share of the patch tokens entering a site that survives it, rounded up (a list
    gives one for each site); `remove` is the share of all the model's patch tokens that each site takes
    away. `at` is a similarity from which pairs are merged, a confidence from which tokens exit, or the
    probability to stay above which they stay. The length of the stream after a site, protected tokens
    counted in, is rounded up to a multiple of `multiple_of`, though never above the length before it. Where
    every site chooses among all tokens again (reactivate), the share that stays in the second third of
    `stages: 3` is its square, in the last third its cube. `least` patches stay in any case;
    of each class, `spare` of those that a grader is sure of stay as context. With `budget: batch`, top_k
    chooses among all images of a batch: as many tokens stay as with `budget: image`, but more of an image
    that needs them. What an image keeps then depends on the others in its batch.
    """

    kind: Literal["top_k", "threshold", "adaptive", "sampling"]
    keep_per_site: Annotated[
        float | tuple[float, ...] | None,
        BeforeValidator(_rate, json_schema_input_type=Rate | Rates | None),
        Field(description="in (0, 1]"),
    ] = None
    remove: float | None = Field(default=None, ge=0, lt=1, description="in [0, 1)")
    at: float | None = Field(default=None, gt=0, le=1, description="in (0, 1]")
    multiple_of: int = Field(default=1, ge=1, le=MOST, description=f"a whole number from 1 to {MOST}")
    least: int = Field(default=1, ge=1, le=MOST, description=f"a whole number from 1 to {MOST}")
    spare: int = Field(default=0, ge=0, le=MOST, description=f"a whole number from 0 to {MOST}")
    stages: int = Field(default=1, ge=1, le=MOST, description=f"a whole number from 1 to {MOST}")
    budget: Literal["image", "batch"] = "image"

    @model_validator(mode="after")
    def _one_rate(self) -> Selector:
        allowed = {
            "top_k": ("keep_per_site", "remove"), "threshold": ("keep_per_site", "at"), "adaptive": (),
            "sampling": ("keep_per_site",),
        }[self.kind]  # fmt: skip
        given = [name for name in ("keep_per_site", "remove", "at") if getattr(self, name) is not None]
        if len(given) != min(1, len(allowed)) or not set(given) <= set(allowed):
            raise ValueError(
                f"{self.kind} needs {' or '.join(allowed) or 'no rate'}, got {' and '.join(given) or 'none'}"
            )
        if self.budget == "batch" and self.kind != "top_k":
            raise ValueError(f"budget batch needs kind top_k, {self.kind} spends no budget")
        if self.stages > 1 and not isinstance(self.keep_per_site, float):
            raise ValueError(
                f"stages needs one keep_per_site for all sites, to take powers of; got stages {self.stages}"
            )
        return self

    @property
    def ragged(self) -> bool:
        """Whether images keep different numbers of tokens."""
        return self.kind != "top_k" or self.budget == "batch"

    @property
    def needs_calibration(self) -> bool:
        """Whether its threshold is left to calibration."""
        return self.kind == "threshold" and self.at is None


class Merge(Model):
    """How tokens that leave are merged into others.

    With a similarity scorer they go into their partner, else into the most similar token that stays.
    `mean` weighs tokens by their sizes, or plainly. A size is the number of tokens that one stands for;
    with `sizes: by_similarity` each counts as much as it is like the one that it is merged into. `forget` is
    the share of those that leave, the lowest scores, which are dropped instead.
    """

    mean: Literal["by_size", "plain"] = "by_size"
    sizes: Literal["counted", "by_similarity"] = "counted"
    forget: float = Field(default=0.0, ge=0, lt=1, description="in [0, 1)")


class Loss(Model):
    """One term of the training objective."""

    kind: Literal["task", "ratio", "flops", "heads", "logits", "tokens"]
    weight: float = Field(default=1.0, gt=0, description="a number above 0")
    over: Literal["batch", "image"] | None = None

    @field_validator("over")
    @classmethod
    def _of_ratio(cls, over: str | None, info: ValidationInfo) -> str | None:
        kind = info.data.get("kind")
        if over is not None and kind not in (None, "ratio"):
            raise ValueError(f"over belongs to the loss ratio, {kind} has no such option; got {shown(over)}")
        return over


class Training(Model):
    """How the policy's learned parts, and the model, are trained: what a recipe starts from.

    relaxation  how the choice lets gradients through: gumbel or sigmoid (straight through), counts (expected
                ones), or none (they flow through what stays)
    losses      the task's own; ratio (to keep as many as asked for, over the batch or each image); flops;
                heads (each learned scorer's own task); logits and tokens (of the dense model)
    freeze      what is not trained: nothing, the model, or the gates
    """

    relaxation: Literal["none", "gumbel", "sigmoid", "counts"] = "none"
    temperature: float = Field(default=1.0, gt=0, description="a number above 0")
    detached: bool = Field(default=False, description="true or false")
    losses: Annotated[tuple[Loss, ...], Field(strict=False, description="a list of losses")] = ()
    epochs: int = Field(default=1, ge=1, description="a whole number, 1 or more")
    rate: float = Field(default=1e-5, gt=0, description="a number above 0")
    gate_rate: float | None = Field(default=None, gt=0, description="a number above 0")
    warm_up: float = Field(default=0.0, ge=0, le=1, description="in [0, 1]")
    freeze: Literal["nothing", "model", "gates"] = "nothing"
    required: bool = Field(default=False, description="true or false")
