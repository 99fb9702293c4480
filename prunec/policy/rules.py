"""What goes together in a policy: the axes of `language.py` as steps, and steps as a complete policy.

Whatever does not go together is refused here with the reason, before any model is seen.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from prunec.errors import shown
from prunec.policy.language import LATE, Merge, Model, Scorer, Selector, Sites, Training, listed


class Misfit(ValueError):  # noqa: N818  it becomes a line of a PolicyError
    """Two axes that do not go together; `place` is the one to change, as a path inside the step."""

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(reason)
        self.place = place


class Step(Model):
    """One selection at one or more sites."""

    sites: Sites
    scorer: Scorer
    selector: Selector
    fate: Literal["drop", "fuse", "merge", "preserve", "exit"]
    # Validated even where they are left out: what they are by default may not go with the rest.
    reactivate: bool = Field(default=False, validate_default=True, description="true or false")
    weights: Literal["score", "uniform"] | None = Field(default=None, validate_default=True)
    merge: Merge | None = None

    @field_validator("fate")
    @classmethod
    def _goes_with(cls, fate: str, info: ValidationInfo) -> str:
        scorer, selector = info.data.get("scorer"), info.data.get("selector")
        if scorer is None or selector is None:
            return fate
        for wrong, place, reason in _misfits(fate, scorer, selector):
            if wrong:
                raise Misfit(place, reason)
        return fate

    @field_validator("reactivate")
    @classmethod
    def _reactivate_needs_all(cls, reactivate: bool, info: ValidationInfo) -> bool:
        fate, scorer, selector = (info.data.get(name) for name in ("fate", "scorer", "selector"))
        if selector is not None and selector.stages > 1 and not reactivate:
            raise Misfit(
                "selector.stages",
                "stages needs reactivate: without it every site prunes what is left; "
                f"got stages {selector.stages}",
            )
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
        fate, scorer = info.data.get("fate"), info.data.get("scorer")
        if weights is not None and fate not in (None, "fuse"):
            raise ValueError(f"weights belong to fate fuse, {fate} sums nothing up; got {weights!r}")
        if fate == "fuse" and weights != "uniform" and scorer is not None and scorer.kind != "cls_attention":
            # The fused token is the sum of the dropped ones, each times its own score, not normalised.
            # Attention probabilities are non-negative and sum to at most 1, so it stays on the scale of one
            # token. A norm grows with the tokens it weighs, and a random score says nothing about them.
            raise Misfit(
                "fate",
                "fate fuse needs scorer.kind cls_attention or weights uniform: the fused token sums the "
                "dropped tokens weighted by their scores, which must be shares of attention; "
                f"{scorer.kind} scores are not",
            )
        return weights

    @field_validator("merge")
    @classmethod
    def _merge_of_merge(cls, merge: Merge | None, info: ValidationInfo) -> Merge | None:
        fate = info.data.get("fate")
        if merge is not None and fate not in (None, "merge"):
            raise ValueError(f"merge belongs to fate merge, not to {fate}")
        scorer = info.data.get("scorer")
        selector = info.data.get("selector")
        if merge is not None and merge.forget and scorer is not None and scorer.kind == "similarity":
            raise Misfit(
                "merge.forget",
                f"forget needs scores that rank all tokens, similarity ranks pairs; got {merge.forget}",
            )
        if merge is not None and merge.forget and selector is not None and selector.ragged:
            raise Misfit(
                "merge.forget",
                f"forget needs selector.kind top_k, which knows how many leave; got {merge.forget}",
            )
        return merge

    @property
    def merging(self) -> Merge:
        """How tokens are merged, also where the policy does not say."""
        return self.merge or Merge()


def _misfits(fate: str, scorer: Scorer, selector: Selector) -> list[tuple[bool, str, str]]:
    """What does not go together, where to change it, and why."""
    pairs, grader = scorer.kind == "similarity", scorer.kind == "grader"
    windows = scorer.pairs == "windows"
    return [
        (
            pairs and fate != "merge",
            "fate",
            f"scorer similarity needs fate merge, got {fate}: it finds pairs, which nothing else merges",
        ),
        (
            grader and fate != "exit",
            "fate",
            f"scorer grader needs fate exit, got {fate}: it says what tokens are, which is lost",
        ),
        (
            fate == "exit" and not grader,
            "scorer.kind",
            f"fate exit needs scorer.kind grader, got {scorer.kind}: it gives no class scores",
        ),
        (
            fate == "exit" and selector.kind != "threshold",
            "selector.kind",
            f"fate exit needs selector.kind threshold, got {selector.kind}: it knows no confidence",
        ),
        (
            fate == "merge" and selector.ragged and scorer.kind not in ("similarity", "novelty"),
            "selector.kind",
            "fate merge needs selector.kind top_k, or scorer similarity or novelty, which say how similar "
            f"tokens are; got {selector.kind} of {scorer.kind}",
        ),
        (
            windows and selector.kind != "threshold",
            "selector.kind",
            f"pairs windows needs selector.kind threshold, got {selector.kind}: a window is merged whole",
        ),
        (
            selector.kind == "adaptive" and not pairs,
            "selector.kind",
            f"selector.kind adaptive needs scorer similarity, {scorer.kind} scores have no such spread",
        ),
        (
            selector.kind == "sampling" and scorer.kind not in ("cls_attention", "received_attention"),
            "selector.kind",
            "selector.kind sampling needs scorer cls_attention or received_attention, whose shares add up; "
            f"{scorer.kind} scores do not",
        ),
        (
            selector.at is not None and (scorer.kind == "novelty" or not (pairs or scorer.learned)),
            "selector.at",
            "at needs a scorer with a scale from 0 to 1 (similarity, or learned), "
            f"{scorer.kind} has none; got {selector.at}",
        ),
        (
            selector.spare > 0 and not grader,
            "selector.spare",
            f"spare needs scorer grader, {scorer.kind} knows no classes; got {selector.spare}",
        ),
    ]


def rates(rules: Rules) -> str:
    """What survives all sites, or else the rate of each step, equal ones named once."""
    if rules.keep is not None:
        return f"keep {rules.keep:g}"
    return ", ".join(dict.fromkeys(rate(step) for step in rules.steps))


def rate(step: Step) -> str:
    """`keep 0.7 per site`, or whatever says how many stay."""
    selector = step.selector
    if isinstance(selector.keep_per_site, tuple):
        return f"keep {', '.join(f'{share:g}' for share in selector.keep_per_site)} per site"
    if selector.keep_per_site is not None:
        return f"keep {selector.keep_per_site:g} per site"
    given = {"remove": selector.remove, "at": selector.at}
    return next((f"{name} {value:g}" for name, value in given.items() if value is not None), selector.kind)


Restore = Literal["none", "stale", "copy", "share", "rejoin", "canvas"]

#: What each fate may be restored by; the first is what happens where the policy does not say.
RESTORED: dict[str, tuple[Restore, ...]] = {
    "drop": ("none", "stale", "copy", "share", "rejoin"),
    "fuse": ("none", "stale", "copy", "share"),
    "preserve": ("stale", "copy", "share", "rejoin"),
    "merge": ("copy", "share"),
    "exit": ("canvas",),
}


_LINE = r"^[^\n]*\S[^\n]*$"


def _word(value: object) -> str:
    """A value as a policy file has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


class Title(Model):
    """What a policy is called."""

    version: Literal[1]
    name: str = Field(
        pattern=r"^[a-z][a-z0-9_-]{0,63}$",  # it becomes part of a folder's name
        description="at most 64 lower-case letters, digits, - and _, starting with a letter",
    )
    summary: str = Field(pattern=_LINE, description="one line of text")
    paper: str | None = Field(default=None, pattern=_LINE, description="one line that names the paper")

    @field_validator("version", mode="before")
    @classmethod
    def _a_number(cls, version: object) -> object:
        if type(version) is not int:  # True and 1.0 equal 1
            raise ValueError(f"version must be the number 1, got {shown(version)}")
        return version


class Rules(Step, Title):
    """A complete policy as data: its first step, what holds for all steps, and further steps.

    `keep` is the share of the patch tokens that survives all sites of a model, rounded up. Where it is given,
    the rates of the steps only say how much each site takes beside the others.
    """

    attention: Literal["plain", "proportional"] = "plain"
    restore: Restore | None = None
    then: Annotated[
        tuple[Step, ...], Field(strict=False, description="a list of further steps, each a mapping")
    ] = ()
    keep: float | None = Field(default=None, gt=0, le=1, description="in (0, 1]")
    training: Training | None = None

    @field_validator("attention")
    @classmethod
    def _proportional_needs_sizes(cls, attention: str, info: ValidationInfo) -> str:
        if attention == "proportional" and info.data.get("fate") not in (None, "merge"):
            raise ValueError(
                f"attention proportional needs fate merge: {info.data['fate']} leaves each token for itself"
            )
        return attention

    @field_validator("restore")
    @classmethod
    def _restores(cls, restore: Restore | None, info: ValidationInfo) -> Restore | None:
        fate = info.data.get("fate")
        if restore is not None and fate is not None and restore not in RESTORED[fate]:
            raise ValueError(f"restore of fate {fate} must be {listed(RESTORED[fate])}, got {restore!r}")
        if restore == "rejoin" and info.data.get("reactivate"):
            raise ValueError("restore rejoin is for tokens that are gone for good; with reactivate none is")
        return restore

    @field_validator("then")
    @classmethod
    def _alike(cls, then: tuple[Step, ...], info: ValidationInfo) -> tuple[Step, ...]:
        for number, step in enumerate(then):
            for name in ("fate", "reactivate"):
                first, other = info.data.get(name), getattr(step, name)
                if first is not None and other != first:
                    raise Misfit(
                        f"then[{number}].{name}",
                        f"{name} must be {_word(first)} in all steps, as in the first; got {_word(other)}",
                    )
        return then

    @field_validator("keep")
    @classmethod
    def _keep_needs_rates(cls, keep: float | None, info: ValidationInfo) -> float | None:
        selectors = [info.data.get("selector"), *(step.selector for step in info.data.get("then", ()))]
        for number, selector in enumerate(selectors):
            if keep is not None and selector is not None and selector.keep_per_site is selector.remove:
                raise Misfit(
                    f"then[{number - 1}].selector" if number else "selector",
                    "keep needs keep_per_site or remove at every step, which it divides among the sites; "
                    f"got {'at' if selector.at is not None else selector.kind}",
                )
        return keep

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps, the first one too."""
        return (self, *self.then)

    @property
    def restored(self) -> Restore:
        """How tokens come back for a head that reads all of them."""
        return self.restore or RESTORED[self.fate][0]

    @property
    def represents(self) -> bool:
        """Whether tokens that do not go on come back by means of those that do."""
        return self.restored in ("copy", "share")

    @property
    def calibrated(self) -> bool:
        """Whether images may have to give it numbers: to a learned scorer, or for a threshold to be set.

        A scorer of another package may have no parameters; the compiler looks once it is made.
        """
        return any(step.scorer.learned or step.selector.needs_calibration for step in self.steps)

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
            "a known grid": any(
                step.scorer.pairs == "windows" or step.scorer.embedding == "own" for step in self.steps
            ),
            "training for the paper's accuracy": self.training is not None and self.training.required,
        }
        return frozenset(need for need, given in needs.items() if given)

    @property
    def fits(self) -> tuple[str, ...]:
        """The tasks whose heads get what they read."""
        if self.restored == "canvas":
            return ("segmentation",)
        prunes = any(step.sites.blocks != () for step in self.steps)
        if prunes and self.restored == "none":
            return ("classification", "detection tokens")  # heads that read protected rows, or a mean
        return ("classification", "detection", "segmentation")
