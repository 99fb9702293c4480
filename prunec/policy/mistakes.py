"""Mistakes in a policy file, each with its path inside the file, what stands there and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from prunec.errors import brief, did_you_mean, shown
from prunec.policy.language import listed
from prunec.policy.rules import Misfit, Rules

#: How many mistakes of one policy are reported.
TOLD = 8


def described(error: ValidationError) -> list[str]:
    """The mistakes, the first few of them where there are many."""
    problems = _innermost(error)
    mistakes = [_describe(problem) for problem in problems[:TOLD]]
    if len(problems) > TOLD:
        mistakes.append(f"and {len(problems) - TOLD} more mistakes")
    return mistakes


def _innermost(error: ValidationError) -> list[dict[str, Any]]:
    """The mistakes, without those of a list that only say that something in it is wrong."""
    problems: list[dict[str, Any]] = [dict(problem) for problem in error.errors(include_url=False)]
    outer = {loc[:end] for loc in (problem["loc"] for problem in problems) for end in range(len(loc))}
    return [problem for problem in problems if problem["loc"] not in outer]


def _describe(problem: dict[str, Any]) -> str:
    """One mistake, as `keep must be in (0, 1], got 1.5 @ keep`."""
    kind, value, loc = problem["type"], problem["input"], problem["loc"]
    if kind == "invalid_key":  # not a string, such as 1 or yes
        loc = (*loc[:-1], shown(value))
    if kind == "value_error":
        reason = problem["ctx"]["error"]
        loc = (*loc[:-1], reason.place) if isinstance(reason, Misfit) else loc
        return f"{reason} @ {_path(loc)}"
    if kind == "missing" and isinstance(loc[-1], int):  # the list is too short
        kind, loc = "too_short", loc[:-1]
    if loc[-1] == "[key]":  # a key of a mapping that may have any, as long as it is text
        loc = loc[:-2]
    path = _path(loc)
    *parents, name = (part for part in loc if isinstance(part, str))  # an element goes by its list's name
    fields = _fields(parents)
    if name not in fields:
        allowed = f"allowed: {', '.join(fields)}{did_you_mean(name, fields)}"
        return f"unknown key {shown(name)}, {allowed} @ {path}"
    if kind == "missing":
        return f"{name} is missing, it must be {_allowed(fields[name])} @ {path}"
    hint = did_you_mean(value, _choices(fields[name])) if isinstance(value, str) else ""
    model = _model_in(fields[name].annotation) if isinstance(loc[-1], int) else None
    if model is not None:
        return f"{name}[{loc[-1]}] must be {_mapping(model)}, got {shown(value)} @ {path}"
    return f"{name} must be {_allowed(fields[name])}, got {shown(value)}{hint} @ {path}"


def _path(loc: tuple[str | int, ...]) -> str:
    parts = (f"[{part}]" if isinstance(part, int) else f".{brief(part, 60)}" for part in loc)
    return "".join(parts).removeprefix(".")


def _fields(parents: Iterable[str]) -> dict[str, FieldInfo]:
    """The fields of the model that stands at the end of `parents`."""
    model: type[BaseModel] = Rules
    for name in parents:
        model = _model_in(model.model_fields[name].annotation) or model
    return model.model_fields


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model in an annotation such as `Merge | None` or `tuple[Step, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := _model_in(part))), None)


def _allowed(field: FieldInfo) -> str:
    """What may stand in a field: its own words, or its keys, or its choices."""
    if field.description:
        return field.description
    model = _model_in(field.annotation)
    return _mapping(model) if model else listed(_choices(field))


def _mapping(model: type[BaseModel]) -> str:
    return f"a mapping with the keys {', '.join(model.model_fields)}"


def _choices(field: FieldInfo) -> tuple[str, ...]:
    """The words of a `Literal`, also of one that may be left out."""
    literals = [field.annotation, *get_args(field.annotation)]
    return tuple(str(word) for part in literals if get_origin(part) is Literal for word in get_args(part))
