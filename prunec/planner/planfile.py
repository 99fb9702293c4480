"""A plan as a YAML file: what `prunec plan` writes, a person edits, and `prunec apply` runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError

from prunec import documents
from prunec.errors import PlanError
from prunec.frontend.sources import Source, runs_code
from prunec.planner.lines import Line
from prunec.planner.result import PlanResult
from prunec.policy.language import MOST, Model, Word, mistakes
from prunec.policy.policy import Policy

HEAD = """\
# A plan for prunec: edit `schedule`, then run `{command}`.
# schedule: block: how many tokens go on behind its site, protected ones counted in.
"""
OWN = """\
# A plan for prunec: edit `keep`, then run `{command}`.
# keep: the share of the patches that survives all sites of the policy; where these are it says itself.
"""


class PlanFile(Model):
    """What is to be done to which model, where; `about` says what was predicted and measured."""

    version: Literal[1] = 1
    source: Word
    arch: Word = ""
    submodule: Word = ""  # the part of the model that is pruned
    example: Word = ""  # the shapes of the inputs, where the model by itself would have others
    weights: Word = "pretrained"
    policy: Annotated[dict[str, Any], Field(description="a policy, as a policy file has it")]
    target: Word
    mode: Word
    batch: int = Field(ge=1, le=MOST)
    #: null: the policy as it is, at its own sites
    schedule: dict[Annotated[int, Field(ge=0, le=MOST)], Annotated[int, Field(ge=1, le=MOST)]] | None
    about: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def of(
        cls,
        planned: PlanResult,
        source: Source,
        *,
        target: str,
        batch: int,
    ) -> PlanFile:
        """The file of a plan."""
        chosen = planned.decision.chosen
        figures = {
            "predicted_share": chosen.predicted, "measured_share": chosen.share,
            "predicted_loss": chosen.expected, "measured_loss": chosen.loss,
        }  # fmt: skip
        known = {name: round(value, 6) for name, value in figures.items() if not math.isnan(value)}
        at = planned.at
        own, place = isinstance(at, Line), at.table.place
        policy = planned.policy if own else at.policy
        return cls(
            source=source.spec,
            arch=source.arch,
            submodule=source.submodule,
            example=source.example,
            weights=source.weights,
            policy=policy.model_dump(mode="json", exclude_none=True, exclude_defaults=True),
            target=target,
            mode=planned.lowering.mode,
            batch=batch,
            schedule=None if own else dict(sorted(chosen.schedule.items())),
            about={
                "goal": str(planned.goal),
                "device": place.get("device", "unknown"),
                "torch": place.get("torch", "unknown"),
                **known,
                **({"why_no_site": planned.decision.reason} if planned.decision.reason else {}),
                **({"policies": [*planned.standing()]} if planned.entrants else {}),
                **({"notes": list(planned.decision.notes)} if planned.decision.notes else {}),
            },
        )

    @classmethod
    def read(cls, path: str | Path) -> PlanFile:
        """The plan in a file.

        Raises:
            PlanError: it cannot be read, or is no plan.
        """
        try:
            plan = cls.model_validate(documents.load(Path(path), "yaml"))
        except documents.Unreadable as error:
            raise _wrong(path, f"it {error}", error.remedy) from error
        except ValidationError as error:
            raise _wrong(path, mistakes(error)) from error
        Policy.load(plan.policy, where=f"{path}, policy")  # its mistakes are reported as a policy's
        return plan

    def text(self, name: str = "plan.yaml") -> str:
        """The file, as it is written."""
        data = self.model_dump(mode="json", exclude_defaults=True)
        ordered = {"version": 1, **data, "schedule": self.schedule}  # an empty one is said too
        consent = " --trust-source" if any(map(runs_code, filter(None, (self.source, self.arch)))) else ""
        return (OWN if self.schedule is None else HEAD).format(
            command=f"prunec apply {name}{consent}"
        ) + yaml.safe_dump(ordered, sort_keys=False, allow_unicode=True, width=110)


def _wrong(path: str | Path, why: str, remedy: str = "correct the file") -> PlanError:
    return PlanError(
        f"{path} is no plan: {why}",
        where=str(path),
        remedy=f"{remedy}; `prunec plan SOURCE --policy NAME --latency 0.6` writes one",
    )
