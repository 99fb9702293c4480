"""Files from outside (policies, plans, tables, sweeps, manifests) as plain data within bounds.

    open_file   a regular file of a bounded size; a pipe or a device under its name would block or never end
    parse       YAML, JSON or TOML in UTF-8: no key twice, no alias, so many values, so many levels
    what is in  null, true, false, whole and finite numbers, text, lists, mappings by text or whole number

Whoever calls this need not fear what comes out: it is small, a tree, and can be printed and computed with.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import re
import stat
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import yaml

from prunec.errors import brief, shown


@dataclass(frozen=True)
class Bounds:
    """How large a document may be."""

    size: int  # bytes
    values: int  # numbers, texts, lists and mappings together


#: What a person writes: policies, plans, manifests.
SMALL = Bounds(2**20, 20_000)
#: What a measurement writes: latency tables, sweeps.
LARGE = Bounds(2**24, 1_000_000)
#: Levels of lists and mappings inside each other.
DEPTH = 32
#: Digits of a whole number.
DIGITS = 64
_DOTS = 100  # in a line of TOML: time and memory grow with the square of the parts of a dotted key

_CORRECT = "correct the file at that place"


class Unreadable(Exception):  # noqa: N818  each reader turns it into an error of its own
    """Why a file cannot be read; completes a sentence such as "the policy file ..."."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.remedy = remedy


def load(path: Path, kind: str, bounds: Bounds = SMALL) -> object:
    """What a document of a kind (`yaml`, `json` or `toml`) holds.

    Raises:
        Unreadable: it is no regular file, too large, not valid, or holds what no document here may hold.
    """
    with open_file(path, bounds.size) as file:
        content = file.read(bounds.size + 1)
    if len(content) > bounds.size:  # it grew, or lies in a file system that does not say sizes
        raise _too_large(bounds.size)
    return parse(content, kind, bounds)


def open_file(path: Path, most: int) -> BinaryIO:
    """A regular file of at most `most` bytes, opened for reading.

    Raises:
        Unreadable: it cannot be opened, is a folder, pipe, socket or device, or is larger.
    """
    wait_for_nobody = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        _check_kind(path.stat())  # before it is opened: opening a device may already do something
        descriptor = os.open(path, os.O_RDONLY | wait_for_nobody)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise Unreadable(f"cannot be read: {reason}", "check the path") from error
    try:
        found = os.fstat(descriptor)
        _check_kind(found)
        if found.st_size > most:
            raise _too_large(most)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _check_kind(found: os.stat_result) -> None:
    kinds = {
        stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    }  # fmt: skip
    if not stat.S_ISREG(found.st_mode):
        kind = kinds.get(stat.S_IFMT(found.st_mode), "something else")
        raise Unreadable(f"cannot be read: it is {kind}, not a file", "give the path of a file")


def _too_large(most: int) -> Unreadable:
    return Unreadable(
        f"cannot be read: it is larger than {most / 2**20:g} MB", "check that this is the right file"
    )


# Parsing ----------------------------------------------------------------------------------------------------


def parse(content: bytes, kind: str, bounds: Bounds = SMALL) -> object:
    """What the text of a document holds; `load` without the file."""
    parser = _PARSERS[kind]
    try:
        value = parser(content.decode("utf-8-sig"), bounds.values)
    except RecursionError as error:
        raise _too_deep() from error
    except (ValueError, yaml.YAMLError) as error:
        reason = f"is not valid {kind.upper()}: {brief(' '.join(str(error).split()), 400)}"
        raise Unreadable(reason, _CORRECT) from error
    _check(value, ())
    return value


def _parse_yaml(text: str, values: int) -> object:
    loader = _Loader(text, values)
    try:
        return loader.get_single_data()
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:  # of PyYAML: `!!bool perhaps`
        raise ValueError("a value does not go with its tag, such as !!int or !!bool") from error
    finally:
        loader.dispose()


def _parse_json(text: str, values: int) -> object:
    _check_number(text, ",[{", values)
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)


def _parse_toml(text: str, values: int) -> object:
    reader = _toml()
    _check_number(text, ",=[", values)
    if any(line.count(".") > _DOTS for line in text.splitlines()):
        raise Unreadable(f"has a line with more than {_DOTS} dots", "use tables in place of dotted keys")
    return reader.loads(text)


def _toml() -> ModuleType:
    # tomllib came with Python 3.11; its forerunner has the same face.
    for name in ("tomllib", "tomli"):
        with contextlib.suppress(ModuleNotFoundError):
            return importlib.import_module(name)
    raise Unreadable(
        "cannot be read: this Python cannot read TOML",
        "pip install tomli, use Python 3.11 or newer, or write the file as YAML",
    )


#: The kinds of documents, by the ends of their files' names.
_PARSERS: dict[str, Callable[[str, int], object]] = {
    "yaml": _parse_yaml,
    "yml": _parse_yaml,
    "json": _parse_json,
    "toml": _parse_toml,
}
KINDS = tuple(_PARSERS)


def _check_number(text: str, marks: str, values: int) -> None:
    """Before parsing: there are no more values than these marks, or one more."""
    if sum(map(text.count, marks)) > values:
        raise _too_many(values)


def _unique(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """A mapping of pairs, refused when a key comes twice: one of the two values would be lost unseen."""
    data: dict[Any, Any] = {}
    for key, value in pairs:
        if key in data:
            raise ValueError(f"the key {shown(key)} is given twice")
        data[key] = value
    return data


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


class _Loader(yaml.SafeLoader):
    """Plain YAML of a bounded number of values, and none of its means to make much out of little."""

    def __init__(self, text: str, values: int) -> None:
        super().__init__(text)
        self.name = "the file"  # in errors
        self.values, self.left, self.depth = values, values, 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            problem = f"the alias *{event.anchor} is not read here, write its value out"
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        self.left, self.depth = self.left - 1, self.depth + 1
        if self.left < 0:
            raise _too_many(self.values)
        if self.depth > DEPTH + 1:
            raise _too_deep()
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                problem = "a key must be text, not a list or a mapping"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
        _unique((self.construct_object(key, deep=True), None) for key, _ in node.value)
        return super().construct_mapping(node, deep=deep)

    def construct_scalar(self, node: Any) -> Any:
        number = node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
        if number and len(node.value) > DIGITS:  # 1:59:59:... counts in sixties, in quadratic time
            problem = f"a number of more than {DIGITS} digits"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_scalar(node)


#: YAML 1.1 takes 1e-5, unlike 1.0e-5, for text.
EXPONENT: tuple[str, re.Pattern[str], list[str]] = (
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(*EXPONENT)


# What a document may hold -----------------------------------------------------------------------------------


def _check(value: object, place: tuple[object, ...]) -> None:
    """Unreadable where a value is of another type, endless, or no text that can be printed."""
    if len(place) > DEPTH:
        raise _too_deep()
    if isinstance(value, dict):
        for key, item in value.items():
            _check_key(key, place)
            _check(item, (*place, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check(item, (*place, index))
    elif isinstance(value, str):
        _check_text(value, place)
    elif isinstance(value, float) and not math.isfinite(value):
        raise _wrong(f"the number {value}", place, "give a finite number")
    elif isinstance(value, int) and abs(value) >= 10**DIGITS:
        raise _wrong(f"a whole number of more than {DIGITS} digits", place, "give a smaller number")
    elif not isinstance(value, bool | int | float | None):
        raise _wrong(f"a {type(value).__name__}", place, "give a number or text: text stands in quotes")


def _check_key(key: object, place: tuple[object, ...]) -> None:
    if isinstance(key, str):
        _check_text(key, place)
    elif isinstance(key, bool) or not isinstance(key, int) or abs(key) >= 10**DIGITS:
        raise _wrong(f"the key {shown(key)}, which is no text", place, "put that key in quotes")


def _check_text(text: str, place: tuple[object, ...]) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, written as \ud800
        raise _wrong(f"text that is not Unicode, {shown(text)}", place, _CORRECT) from error


def _wrong(what: str, place: tuple[object, ...], remedy: str) -> Unreadable:
    where = ".".join(brief(str(part), 60) for part in place) or "the top"
    return Unreadable(f"holds {what} @ {where}", remedy)


def _too_many(values: int) -> Unreadable:
    return Unreadable(f"holds more than {values} values", "check that this is the right file")


def _too_deep() -> Unreadable:
    return Unreadable(f"is nested more than {DEPTH} levels deep", "check that this is the right file")
