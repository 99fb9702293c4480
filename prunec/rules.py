"""What goes together in a policy: the axes of `language.py` as steps, and steps as a complete policy.

Whatever does not go together is refused here with the reason, before any model is seen.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from prunec.language import LATE, Merge, Model, Scorer, Selector, Sites, Training


class Step(Model):
    """One selection at one or more sites."""

    sites: Sites
    scorer: Scorer
    selector: Selector
    fate: Literal["drop", "fuse", "merge", "preserve", "exit"]
    reactivate: bool = Field(default=False, description="true or false")
    weights: Literal["score", "uniform"] | None = None
    merge: Merge | None = None

    @field_validator("fate")
    @classmethod
    def _goes_with(cls, fate: str, info: ValidationInfo) -> str:
        scorer, selector = info.data.get("scorer"), info.data.get("selector")
        if scorer is None or selector is None:
            return fate
        for wrong, reason in _misfits(fate, scorer, selector):
            if wrong:
                raise ValueError(reason)
        return fate

    @field_validator("reactivate")
    @classmethod
    def _reactivate_needs_all(cls, reactivate: bool, info: ValidationInfo) -> bool:
        fate, scorer = info.data.get("fate"), info.data.get("scorer")
        if reactivate and fate not in (None, "preserve"):
            raise ValueError(f"reactivate needs fate preserve: what {fate} takes away cannot come back")
        if reactivate and scorer is not None and scorer.kind in LATE:
            raise ValueError(
                f"reactivate needs a scorer of all tokens: {scorer.kind} scores only those that went through "
                "the block before"
            )
        return reactivate

    @field_validator("weights")
    @classmethod
    def _weights_of_fuse(cls, weights: str | None, info: ValidationInfo) -> str | None:
        fate = info.data.get("fate")
        if weights is not None and fate not in (None, "fuse"):
            raise ValueError(f"weights belong to fate fuse, {fate} sums nothing up")
        return weights

    @field_validator("merge")
    @classmethod
    def _merge_of_merge(cls, merge: Merge | None, info: ValidationInfo) -> Merge | None:
        fate = info.data.get("fate")
        if merge is not None and fate not in (None, "merge"):
            raise ValueError(f"merge belongs to fate merge, not to {fate}")
        return merge

    @model_validator(mode="after")
    def _together(self) -> Step:
        if self.selector.stages > 1 and not self.reactivate:
            raise ValueError("selector.stages needs reactivate: without it every site prunes what is left")
        if self.fate == "fuse" and self.weights != "uniform" and self.scorer.kind != "cls_attention":
            # The fused token is the sum of the dropped ones, each times its own score, not normalised.
            # Attention probabilities are non-negative and sum to at most 1, so it stays on the scale of one
            # token. A norm grows with the tokens it weighs, and a random score says nothing about them.
            raise ValueError(
                "fate fuse needs scorer.kind cls_attention or weights uniform: the fused token sums the "
                "dropped tokens weighted by their scores, which must be shares of attention; "
                f"{self.scorer.kind} scores are not"
            )
        if self.merge is not None and self.merge.forget and self.scorer.kind == "similarity":
            raise ValueError("merge.forget needs scores that rank all tokens, similarity ranks pairs")
        return self

    @property
    def merging(self) -> Merge:
        """How tokens are merged, also where the policy does not say."""
        return self.merge or Merge()


def _misfits(fate: str, scorer: Scorer, selector: Selector) -> list[tuple[bool, str]]:
    """What does not go together with a fate, and why."""
    pairs, grader = scorer.kind == "similarity", scorer.kind == "grader"
    windows = scorer.pairs == "windows"
    return [
        (
            fate == "fuse" and selector.ragged,
            "fate fuse needs selector.kind top_k: one token stands for a fixed number of others",
        ),
        (pairs and fate != "merge", f"scorer similarity finds pairs, which {fate} does not merge: use merge"),
        (grader and fate != "exit", f"scorer grader says what tokens are, so they exit; {fate} forgets it"),
        (
            fate == "exit" and not grader,
            f"fate exit needs scorer grader: {scorer.kind} gives no class scores",
        ),
        (
            fate == "exit" and selector.kind != "threshold",
            f"fate exit needs selector.kind threshold: {selector.kind} knows no confidence",
        ),
        (
            fate == "merge" and selector.ragged and not pairs,
            "fate merge needs selector.kind top_k, or scorer similarity: others rank no pairs",
        ),
        (
            windows and selector.kind != "threshold",
            f"pairs windows need selector.kind threshold: a window is merged whole, {selector.kind} cuts it",
        ),
        (
            selector.kind == "adaptive" and not pairs,
            f"selector.kind adaptive needs scorer similarity, {scorer.kind} scores have no such spread",
        ),
        (
            selector.kind == "sampling" and scorer.kind not in ("cls_attention", "received_attention"),
            f"selector.kind sampling needs shares of attention to cumulate, {scorer.kind} scores are none",
        ),
        (
            selector.at is not None and not (pairs or scorer.learned),
            f"at needs a scorer with a scale from 0 to 1 (similarity, or learned), {scorer.kind} has none",
        ),
        (selector.spare > 0 and not grader, f"spare needs scorer grader, {scorer.kind} knows no classes"),
    ]


def rate(step: Step) -> str:
    """`keep 0.7`, or whatever says how many stay."""
    selector = step.selector
    if isinstance(selector.keep, tuple):
        return f"keep {', '.join(f'{share:g}' for share in selector.keep)}"
    given = {"keep": selector.keep, "remove": selector.remove, "at": selector.at}
    return next((f"{name} {value:g}" for name, value in given.items() if value is not None), selector.kind)


Restore = Literal["none", "stale", "nearest", "rejoin", "unmerge", "canvas"]

#: What each fate may be restored by; the first is what happens where the policy does not say.
RESTORED: dict[str, tuple[Restore, ...]] = {
    "drop": ("none", "stale", "nearest", "rejoin"),
    "fuse": ("none", "stale", "nearest"),
    "preserve": ("stale", "nearest", "rejoin"),
    "merge": ("unmerge",),
    "exit": ("canvas",),
}


class Title(Model):
    """What a policy is called."""

    version: Literal[1]
    name: str = Field(
        pattern=r"^[a-z][a-z0-9_-]*$",
        description="lower-case letters, digits, - and _, starting with a letter",
    )
    summary: str = Field(pattern=r"^[^\n]*\S[^\n]*$", description="one line of text")
    paper: str | None = Field(default=None, description="text that names the paper")


class Rules(Step, Title):
    """A complete policy as data: its first step, what holds for all steps, and further steps."""

    attention: Literal["plain", "proportional"] = "plain"
    restore: Restore | None = None
    then: Annotated[
        tuple[Step, ...], Field(strict=False, description="a list of further steps, each a mapping")
    ] = ()
    training: Training | None = None

    @field_validator("attention")
    @classmethod
    def _proportional_needs_sizes(cls, attention: str, info: ValidationInfo) -> str:
        if attention == "proportional" and info.data.get("fate") not in (None, "merge"):
            raise ValueError(f"attention proportional needs fate merge: with {info.data['fate']} no sizes")
        return attention

    @field_validator("restore")
    @classmethod
    def _restores(cls, restore: Restore | None, info: ValidationInfo) -> Restore | None:
        fate = info.data.get("fate")
        if restore is not None and fate is not None and restore not in RESTORED[fate]:
            allowed = ", ".join(RESTORED[fate])
            raise ValueError(f"fate {fate} is restored by {allowed}, not by {restore}")
        if restore == "rejoin" and info.data.get("reactivate"):
            raise ValueError("restore rejoin is for tokens that are gone for good; with reactivate none is")
        return restore

    @field_validator("then")
    @classmethod
    def _alike(cls, then: tuple[Step, ...], info: ValidationInfo) -> tuple[Step, ...]:
        for step in then:
            for name in ("fate", "reactivate"):
                first = info.data.get(name)
                if first is not None and getattr(step, name) != first:
                    raise ValueError(f"all steps share one {name}: the first has {first}")
        return then

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps, the first one too."""
        return (self, *self.then)

    @property
    def restored(self) -> Restore:
        """How tokens come back for a head that reads all of them."""
        return self.restore or RESTORED[self.fate][0]

    @property
    def calibrated(self) -> bool:
        """Whether it has numbers that images must give it: a learned scorer, a threshold to be set."""
        return any(
            step.scorer.learned or (step.selector.kind == "threshold" and step.selector.at is None)
            for step in self.steps
        )

    @property
    def ragged(self) -> bool:
        """Whether images keep different numbers of tokens."""
        return any(step.selector.ragged for step in self.steps)

    @property
    def needs(self) -> frozenset[str]:
        """What the model, or the one who uses the policy, must have for it to make sense."""
        kinds = {step.scorer.kind for step in self.steps}
        needs = {
            "class token": "cls_attention" in kinds,
            "attention map": "received_attention" in kinds,
            "calibration": self.calibrated,
            "class scores of tokens": "grader" in kinds,
            "a known grid": any(step.scorer.pairs == "windows" for step in self.steps),
            "training for the paper's accuracy": self.training is not None and self.training.required,
        }
        return frozenset(need for need, given in needs.items() if given)

    @property
    def fits(self) -> tuple[str, ...]:
        """The tasks whose heads get what they read."""
        if self.restored == "canvas":
            return ("segmentation",)
        tasks = ("classification", "detection tokens")  # heads that read protected rows, or a mean
        return tasks if self.restored == "none" else ("classification", "detection", "segmentation")
