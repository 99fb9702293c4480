"""The JSON Schema of a policy file says what the language says, as far as a schema can."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest

from prunec.errors import PolicyError
from prunec.policy import policy
from prunec.policy.policy import Policy
from tests.policies import GONE, step, written

SCHEMA = policy.schema()
TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "boolean": (bool,), "null": (type(None),),
    "integer": (int,), "number": (int, float),
}  # fmt: skip
LIMITS = {
    "minimum": lambda value, limit: value >= limit, "exclusiveMinimum": lambda value, limit: value > limit,
    "maximum": lambda value, limit: value <= limit, "exclusiveMaximum": lambda value, limit: value < limit,
    "minItems": lambda value, limit: len(value) >= limit,
    "maxItems": lambda value, limit: len(value) <= limit,
}  # fmt: skip


def allows(schema: dict[str, Any], value: Any) -> bool:
    """What JSON Schema means, for the words that ours is made of; an unknown word is an error."""
    kind = schema.get("type")
    if kind and not (isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))):
        return False
    return all(_holds(schema, word, value) for word in schema)


def _holds(schema: dict[str, Any], word: str, value: Any) -> bool:
    rule = schema[word]
    if word in ("type", "$defs", "$schema", "title", "description", "default", "examples", "pattern"):
        return True
    if word == "$ref":
        return allows(SCHEMA["$defs"][rule.removeprefix("#/$defs/")], value)
    if word == "anyOf":
        return any(allows(each, value) for each in rule)
    if word in ("enum", "const"):
        return value in (rule if word == "enum" else [rule])
    if word == "required":
        return set(rule) <= set(value)
    if word == "properties":
        return all(allows(rule[name], value[name]) for name in rule.keys() & value.keys())
    if word == "additionalProperties":
        return rule is not False or set(value) <= set(schema["properties"])
    if word == "items":
        return all(allows(rule, item) for item in value)
    if word == "prefixItems":
        return all(map(allows, rule, value))
    return LIMITS[word](value, rule)


def within(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        yield schema
    for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from within(part)


def test_it_is_a_schema() -> None:
    references = [part["$ref"] for part in within(SCHEMA) if "$ref" in part]
    assert {each.removeprefix("#/$defs/") for each in references} == set(SCHEMA["$defs"])
    mappings = [part for part in within(SCHEMA) if "properties" in part and "type" in part]
    assert len(mappings) == 1 + len(SCHEMA["$defs"]) == 8
    assert all(part["additionalProperties"] is False for part in mappings)
    assert all("description" in part for part in mappings)
    if importlib.util.find_spec("jsonschema"):
        importlib.import_module("jsonschema").Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("name", policy.presets())
def test_it_allows_every_preset(name: str) -> None:
    preset = Policy.load(name)
    assert allows(SCHEMA, preset.model_dump(mode="json"))
    assert allows(SCHEMA, preset.model_dump(mode="json", exclude_none=True, exclude_defaults=True))


@pytest.mark.parametrize(
    "changes",
    [
        {"selector__keep": 1.5}, {"selector__keep": []}, {"selector__keep": [0.5, 0]}, {"selector__kept": 1},
        {"selector__kind": "topk"}, {"selector__least": 0}, {"fate": GONE}, {"fate": "burn"}, {"sites": []},
        {"sites__depths": []}, {"sites__depths": [1]}, {"sites__between": [0.5]}, {"scorer__hidden": 5},
        {"then": [step(fate="burn")]}, {"training": {"losses": [{"kind": "tsk"}]}}, {"version": 2},
    ],
)  # fmt: skip
def test_it_refuses_what_the_language_refuses(changes: dict[str, Any]) -> None:
    assert not allows(SCHEMA, written(**changes))
    with pytest.raises(PolicyError):
        Policy.load(written(**changes))


def test_it_allows_what_the_language_allows() -> None:
    mine = written(selector__keep_per_site=[0.5, 0.4], then=[step()], restore="stale")
    assert allows(SCHEMA, mine)
    assert Policy.load(mine).then
