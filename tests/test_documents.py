"""Documents: what is read, what is refused, and within which time and memory."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunec import documents
from prunec.documents import DEPTH, LARGE, SMALL, Bounds, Unreadable
from prunec.errors import brief, first_few, shown
from tests.hostile import documents as hostile


def refused(text: str | bytes, kind: str, bounds: Bounds = SMALL) -> str:
    with pytest.raises(Unreadable) as caught:
        documents.parse(text if isinstance(text, bytes) else text.encode(), kind, bounds)
    assert caught.value.remedy
    assert len(str(caught.value)) < 600
    return str(caught.value)


# What is read -----------------------------------------------------------------------------------------------


def test_the_three_kinds_say_the_same(tmp_path: Path) -> None:
    expected = {"a": [1, 2.5, "é", True], "b": {"c": {}}}
    texts = {
        "yaml": "a: [1, 2.5, é, true]\nb: {c: {}}\n",
        "yml": "a: [1, 2.5, é, true]\r\nb: {c: {}}\r\n",
        "json": '\ufeff{"a": [1, 2.5, "\\u00e9", true], "b": {"c": {}}}',
        "toml": 'a = [1, 2.5, "é", true]\n[b.c]\n',
    }
    for kind, text in texts.items():
        (tmp_path / kind).write_text(text, encoding="utf-8")
        assert documents.load(tmp_path / kind, kind) == expected


def test_keys_may_be_whole_numbers_in_yaml() -> None:
    assert documents.parse(b"{3: 9}", "yaml") == {3: 9}


@pytest.mark.parametrize("kind", ["yaml", "json"])
def test_depth_is_bounded_and_just_so(kind: str) -> None:
    for levels in (1, DEPTH):
        assert documents.parse(b"[" * levels + b"]" * levels, kind) is not None
    for levels in (DEPTH + 2, 1_000, 100_000):
        told = refused(b"[" * levels + b"]" * levels, kind, LARGE)
        assert told == f"is nested more than {DEPTH} levels deep"


@pytest.mark.parametrize(
    ("kind", "text"), [("yaml", "[1, 2, 3]"), ("json", "[1, 2, 3]"), ("toml", "a=[1,2,3]")]
)
def test_the_number_of_values_is_bounded(kind: str, text: str) -> None:
    assert documents.parse(text.encode(), kind, Bounds(100, 4))
    assert refused(text, kind, Bounds(100, 2)) == "holds more than 2 values"


def test_the_size_is_bounded_and_just_so(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b'"' + b"a" * 98 + b'"')
    assert documents.load(tmp_path / "a", "json", Bounds(100, 9)) == "a" * 98
    with pytest.raises(Unreadable, match=r"it is larger than 9\.44138e-05 MB"):
        documents.load(tmp_path / "a", "json", Bounds(99, 9))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there are no files without a size here")
def test_a_file_that_does_not_say_its_size_is_bounded_too() -> None:
    assert Path("/proc/self/status").stat().st_size == 0
    with pytest.raises(Unreadable, match="it is larger than"):
        documents.load(Path("/proc/self/status"), "yaml", Bounds(10, 10))


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    kinds = {
        "a pipe": hostile.pipe, "a folder": hostile.folder, "a device": hostile.device,
        "a socket": hostile.a_socket,
    }  # fmt: skip
    for name, make in kinds.items():
        make(tmp_path / name)
        with pytest.raises(Unreadable) as caught:
            documents.load(tmp_path / name, "yaml")
        assert str(caught.value) == f"cannot be read: it is {name}, not a file"
    hostile.nowhere(tmp_path / "link")
    for path, why in (
        (tmp_path / "link", "symbolic links"), (tmp_path / "none", "No such file"), (Path("a\0b"), "null"),
        (tmp_path / ("a" * 300), "name too long"),
    ):  # fmt: skip
        with pytest.raises(Unreadable, match=rf"^cannot be read: .*{why}"):
            documents.load(path, "yaml")


def test_a_refused_file_is_closed(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("12345")
    descriptor = os.open(tmp_path / "a", os.O_RDONLY)
    os.close(descriptor)
    with pytest.raises(Unreadable):
        documents.open_file(tmp_path / "a", 2)
    assert os.open(tmp_path / "a", os.O_RDONLY) == descriptor  # the lowest free number is free again
    os.close(descriptor)


# What is not ------------------------------------------------------------------------------------------------

MISTAKES = [
    ("yaml", hostile.LAUGHS, "the alias *a0 is not read here, write its value out"),
    ("yaml", hostile.MERGES, "the alias *a0 is not read here, write its value out"),
    ("yaml", "&a [*a]", "the alias *a is not read here"),
    ("yaml", "? [a]\n: b\n", 'a key must be text, not a list or a mapping in "the file", line 1, column 3'),
    ("yaml", "{{}: 1}", "a key must be text"),
    ("yaml", "a:\n  b: 1\n  b: 2\n", "the key 'b' is given twice"),
    ("yaml", "a: {on: 1}", "holds the key True, which is no text @ a"),
    ("yaml", "a: {1.5: 1}", "holds the key 1.5, which is no text @ a"),
    ("yaml", "a: [x, {~: 1}]", "holds the key None, which is no text @ a.1"),
    ("yaml", "a: .nan", "holds the number nan @ a"),
    ("yaml", "a: [0, -.inf]", "holds the number -inf @ a.1"),
    ("yaml", "a: 2020-01-01", "holds a date @ a"),
    ("yaml", "!!set {a}", "holds a set @ the top"),
    ("yaml", "!!binary aGVsbG8=", "holds a bytes @ the top"),
    ("yaml", "!!omap [a: 1]", "holds a tuple @ 0"),
    ("yaml", 'a: "\\ud800"', "holds text that is not Unicode, '\\ud800' @ a"),
    ("yaml", '"\\udfff": 1', "holds text that is not Unicode, '\\udfff' @ the top"),
    ("yaml", "a: " + "1" * 65, "a number of more than 64 digits"),
    ("yaml", "a: 1" + ":59" * 100_000, "a number of more than 64 digits"),
    ("yaml", "!!int ''", "a value does not go with its tag"),
    ("yaml", "!!bool perhaps", "a value does not go with its tag"),
    ("yaml", "!!timestamp now", "a value does not go with its tag"),
    ("yaml", "!!python/name:os.system", "could not determine a constructor for the tag"),
    ("yaml", "a\x00b", "special characters are not allowed"),
    ("yaml", b"\xff\xfe\xfd", "'utf-8' codec can't decode"),
    ("yaml", "a: 1\n---\nb: 2", "expected a single document"),
    ("json", '{"a": NaN}', "is not valid JSON: NaN is no number"),
    ("json", "[-Infinity]", "is not valid JSON: -Infinity is no number"),
    ("json", '{"a": [1e999]}', "holds the number inf @ a.0"),
    ("json", '{"a": ' + "9" * 65 + "}", "holds a whole number of more than 64 digits @ a"),
    ("json", "9" * 5000, "is not valid JSON: Exceeds the limit"),
    ("json", '{"a": {"b": 1, "b": 2}}', "the key 'b' is given twice"),
    ("json", '["\\ud800"]', "holds text that is not Unicode, '\\ud800' @ 0"),
    ("json", "", "is not valid JSON: Expecting value: line 1 column 1"),
    ("json", "[1, 2", "is not valid JSON: Expecting ',' delimiter: line 1 column"),
    ("toml", "a = inf", "holds the number inf @ a"),
    ("toml", "a = 2020-01-01", "holds a date @ a"),
    ("toml", "a = 0x" + "f" * 1000, "holds a whole number of more than 64 digits @ a"),
    ("toml", "a = 1\na = 2", "is not valid TOML: Cannot overwrite a value"),
    ("toml", ".".join("a" * 200) + " = 1", "has a line with more than 100 dots"),
    ("toml", ".".join("a" * 50) + " = 1", f"is nested more than {DEPTH} levels deep"),
    ("toml", "a = " + "[" * 10_000 + "]" * 10_000, f"is nested more than {DEPTH} levels deep"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "words"), MISTAKES)
def test_a_mistake_is_reported_with_its_place(kind: str, text: str | bytes, words: str) -> None:
    if kind == "toml":
        pytest.importorskip("tomllib", reason="TOML is read by Python 3.11 and newer")
    assert words in refused(text, kind)


#: As large as may be, and as slow as they come.
SLOW = {
    "yaml": [
        "[" + "a, " * 19_998 + "a]", "a: " + "b " * 500_000, "#" * 10**6, "k: 1\n" * 200_000, "- " * 500_000,
        "a: '" + "''" * 500_000, "? " * 500_000, "%TAG ! a\n" * 100_000,
    ],
    "json": [
        "[" + "{}," * 999_998 + "{}]", "[" + '{"a":0},' * 400_000 + "0]", '"' + "\\u0061" * 2_000_000 + '"',
    ],
    "toml": [(".".join("a" * 100) + " = 1\n") * 5_000, "[a]\n" * 200_000, "a = '" + "b" * 10**6 + "'"],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "number"), [(kind, n) for kind in SLOW for n in range(len(SLOW[kind]))])
def test_the_worst_documents_take_seconds(kind: str, number: int) -> None:
    if kind == "toml":
        pytest.importorskip("tomllib", reason="TOML is read by Python 3.11 and newer")
    text = SLOW[kind][number].encode()
    assert len(text) <= (LARGE if kind == "json" else SMALL).size
    start = time.perf_counter()
    try:
        documents.parse(text, kind, LARGE if kind == "json" else SMALL)
    except Unreadable as error:
        assert len(str(error)) < 600  # noqa: PT017
    assert time.perf_counter() - start < 30


@given(st.binary(max_size=60), st.sampled_from(documents.KINDS[:3]))
def test_any_bytes_are_read_or_refused(content: bytes, kind: str) -> None:
    try:
        documents.parse(content, kind)
    except Unreadable as error:
        assert error.remedy  # noqa: PT017


@given(st.text("a1.:-[]{}&*!?|>'\"#,%@`<= \n\t~", max_size=40))
def test_any_yaml_is_read_or_refused(text: str) -> None:
    try:
        documents.parse(text.encode(), "yaml")
    except Unreadable as error:
        assert error.remedy  # noqa: PT017


# Words for messages -----------------------------------------------------------------------------------------


def test_what_is_shown_of_a_value_is_short_and_printable() -> None:
    assert shown({"a": [1, "b"]}) == "{'a': [1, 'b']}"
    cycle: list[object] = []
    cycle.append(cycle)
    for value in (
        "a" * 10**6,
        list(range(10**5)),
        {n: n for n in range(10**5)},
        10**5000,
        cycle,
        "\ud800\x1b[2J",
    ):
        assert len(shown(value)) <= 400
        assert shown(value).isprintable()


def test_what_is_long_is_cut() -> None:
    assert (brief("abc", 3), brief("abcd", 3), brief("abcdefg", 6)) == ("abc", "...", "abc...")
    assert brief("a\nb") == "a\\nb"
    assert first_few(["a", "b"], most=2) == "a, b"
    assert first_few(["a", "b", "c"], "; ", most=1) == "a and 2 more"
