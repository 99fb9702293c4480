"""Hostile files for everything that prunec reads: each as a command line that must end with a plain error.

Every entry makes its file in a folder and gives the arguments of the command line. Whatever it is, prunec
ends with exit code 1 or 2 and a message that names the file, in seconds, with less than 1 GB of memory, and
never with "this is a fault of prunec".
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

from tests.hostile import Hostile

POLICY = """\
version: 1
name: mine
summary: What it does.
sites: {where: before_block, depths: [0.25, 0.5]}
scorer: {kind: norm}
selector: {kind: top_k, keep_per_site: 0.5}
fate: drop
"""
PLAN = f"""\
version: 1
source: shapes
target: eager
mode: static
batch: 4
schedule: {{3: 13}}
policy:
{"".join(f"  {line}" + chr(10) for line in POLICY.splitlines())}"""


HOSTILE: list[Hostile] = []


def add(name: str, make: Callable[[Path], list[str]], what: str) -> None:
    HOSTILE.append(Hostile(name, what, make, "to do: "))


# What is done with a file -----------------------------------------------------------------------------------


def printed(file: Path) -> list[str]:
    return ["policies", str(file)]


def followed(file: Path) -> list[str]:
    return ["optimize", "shapes", "--policy", str(file), "--target", "eager", "--dry-run"]


def applied(file: Path) -> list[str]:
    return ["apply", str(file), "-o", str(file.parent / "out")]


def planned_by(file: Path) -> list[str]:
    return [
        "plan", "shapes", "--policy", "norm", "--latency", "0.7", "--target", "eager", "--predict",
        "--latency-table", str(file),
    ]  # fmt: skip


def swept(file: Path) -> list[str]:
    return ["sweep", "shapes", "--policy", "norm", "--target", "eager", "--points", "1", "-o", str(file)]


def measured_on(folder: Path) -> list[str]:
    return [
        "optimize", "shapes", "--policy", "norm", "--target", "eager", "--images", str(folder),
        "-o", str(folder.parent / "out"),
    ]  # fmt: skip


def as_text(name: str, text: str | bytes, use: Callable[[Path], list[str]]) -> Callable[[Path], list[str]]:
    """A file of that name and content."""

    def make(folder: Path) -> list[str]:
        content = text if isinstance(text, bytes) else text.encode()
        (folder / name).write_bytes(content)
        return use(folder / name)

    return make


def documents(name: str, text: str | bytes, what: str) -> None:
    """The same YAML under the name of a policy and of a plan."""
    add(f"policy: {name}", as_text("mine.yaml", text, printed), what)
    add(f"plan: {name}", as_text("plan.yaml", text, applied), what)


def tables(name: str, text: str | bytes, what: str) -> None:
    """The same JSON under the name of a policy, a latency table and a sweep."""
    add(f"json policy: {name}", as_text("mine.json", text, printed), what)
    add(f"table: {name}", as_text("table.json", text, planned_by), what)
    add(f"sweep: {name}", as_text("sweep.json", text, swept), what)


# YAML -------------------------------------------------------------------------------------------------------

LAUGHS = "a0: &a0 [lol, lol]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)

documents("aliases of aliases", LAUGHS, "ten lines that stand for three thousand million values")
documents("merges of merges", MERGES, "the same by merge keys")
documents("a list inside itself", "&a [*a]", "a cycle of aliases")
documents("nested lists", "[" * 100_000, "more levels than Python's stack has")
documents("nested mappings", "{a: " * 50_000, "the same with mappings")
documents("a list as key", "? [a]\n: b\n", "a key that cannot be hashed")
documents("a mapping as key", "{{}: 1}", "a key that cannot be hashed")
documents("a key given twice", "name: a\nname: b\n", "one of the two values would be lost")
documents("an enormous whole number", POLICY.replace("0.5}", "1" * 5000 + "}"), "Python refuses to print it")
documents("an enormous hexadecimal number", f"version: 0x{'f' * 100_000}", "the same, and it can be read")
documents("a number in sixties", "version: 1" + ":59" * 200_000, "YAML 1.1 multiplies for minutes")
documents("not a number", "version: .nan", "a number that equals nothing")
documents("infinity", "version: .inf", "a number without end")
documents("a word with the tag of a number", 'version: !!int ""', "PyYAML raises IndexError")
documents("a word with the tag of a truth value", "version: !!bool perhaps", "PyYAML raises KeyError")
documents("a moment", "name: !!timestamp now", "PyYAML raises AttributeError")
documents("a call", "name: !!python/object/apply:os.system [id]", "a tag that runs a program elsewhere")
documents("bytes that are no text", b"name: \xff\xfe", "no UTF-8")
documents("a NUL", b"name: a\x00b", "a character that no text has")
documents("half a surrogate pair", 'name: "\\ud800"', "text that cannot be printed")
documents("nothing", "", "an empty file")
documents("comments only", "# nothing\n" * 10, "a document without a value")
documents("two documents", "a: 1\n---\nb: 2\n", "two where there should be one")
documents("300,000 unknown keys", "".join(f"k{n}: 1\n" for n in range(300_000)), "a message of megabytes")
documents("20,000 unknown keys", "".join(f"k{n}: 1\n" for n in range(20_000)), "the same, below the size")
documents("a long name", "name: " + "a" * 900_000, "a message of a megabyte")
documents("an unknown tag", f"name: !{'x' * 100_000} a", "an error that repeats it")

# JSON -------------------------------------------------------------------------------------------------------

tables("nested lists", "[" * 100_000, "more levels than Python's stack has")
tables("nested mappings", '{"a":' * 100_000, "the same with mappings")
tables("an enormous whole number", '{"format": ' + "1" * 5000 + "}", "Python refuses to read it")
tables("a large whole number", '{"format": ' + "1" * 400 + "}", "it overflows as a float")
tables("not a number", '{"format": NaN}', "no JSON")
tables("more than any float", '{"format": 1e999}', "infinity by another name")
tables("a key given twice", '{"format": 1, "format": 1}', "one of the two values would be lost")
tables("half a surrogate pair", '{"format": "\\ud800"}', "text that cannot be printed")
tables("a list", "[1, 2]", "no mapping")
tables("null", "null", "no mapping")
tables("nothing", "", "an empty file")
tables("bytes that are no text", b"\xff\xfe{", "no UTF-8")
tables("millions of lists", "[" + "[]," * 3_000_000 + "[]]", "small in the file, large in memory")
tables("20 MB", '{"format": "' + "a" * 20_000_000 + '"}', "larger than anything that prunec writes")
tables("a list where a number stands", '{"format": [[[]]]}', "a value of another type")

# TOML -------------------------------------------------------------------------------------------------------


def toml(name: str, text: str, what: str) -> None:
    add(f"toml: {name}", as_text("mine.toml", text, printed), what)


toml("dotted keys", ".".join("a" * 200_000) + " = 1", "quadratic time, and as many levels")
toml("nested lists", "a = " + "[" * 100_000, "more levels than Python's stack has")
toml("an enormous whole number", "version = " + "1" * 5000, "Python refuses to read it")
toml("infinity", "version = inf", "a number without end")
toml("a moment", "version = 2020-01-01T00:00:00Z", "a value that no policy has")
toml("a key given twice", "version = 1\nversion = 1\n", "one of the two values would be lost")

# Values that are of the right type, and out of every range -------------------------------------------------


def policy(name: str, old: str, new: str, what: str) -> None:
    text = POLICY.replace(old, new)
    assert text != POLICY
    add(f"policy: {name}", as_text("mine.yaml", text, followed), what)


policy("a thousand million queries", "kind: norm", "kind: query, queries: 1000000000", "parameters of 768 GB")
policy("a million blocks", "kind: norm", "kind: pre_net, depth: 1000000", "a network that is never built")
policy("a large block", "depths: [0.25, 0.5]", f"blocks: [{10**60}]", "no such block")
policy(
    "a large multiple",
    "keep_per_site: 0.5",
    f"keep_per_site: 0.5, multiple_of: {10**60}",
    "more than 64 bits",
)
policy("a name of 300 letters", "name: mine", f"name: {'a' * 300}", "a folder would be called by it")


def plan(name: str, old: str, new: str, what: str) -> None:
    text = PLAN.replace(old, new)
    assert text != PLAN
    add(f"plan: {name}", as_text("plan.yaml", text, applied), what)


plan("a large batch", "batch: 4", f"batch: {10**12}", "more images than there is memory")
plan("a large block", "3: 13", f"{10**60}: 13", "no such block")
plan("a long source", "source: shapes", f"source: {'a' * 100_000}", "a folder would be called by it")
plan("a target of text and control characters", "target: eager", 'target: "\\e[2Jx"', "clears a terminal")

# What is no file --------------------------------------------------------------------------------------------


def pipe(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def nowhere(path: Path) -> None:
    path.symlink_to(path)


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        here = Path.cwd()
        os.chdir(path.parent)  # the name of a socket may not be long
        try:
            end.bind(path.name)
        finally:
            os.chdir(here)


def things(kind: Callable[[Path], None], what: str) -> None:
    """Something that is no file under each name of a file."""
    uses = {"mine.yaml": printed, "plan.yaml": applied, "table.json": planned_by, "sweep.json": swept}
    for name, use in uses.items():

        def make(place: Path, name: str = name, use: Callable[[Path], list[str]] = use) -> list[str]:
            kind(place / name)
            return use(place / name)

        add(f"{kind.__name__} as {name}", make, what)


for each, what in (
    (pipe, "reading it waits for a writer"),
    (folder, "a folder under the name of a file"),
    (device, "a device that never ends"),
    (nowhere, "a link to itself"),
    (a_socket, "nothing to read"),
):
    things(each, what)

# ImageSet ---------------------------------------------------------------------------------------------------


def png(width: int, height: int) -> bytes:
    """A small file of that many black pixels: one bit each, compressed."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    packer, row = zlib.compressobj(1), bytes(1 + (width + 7) // 8)
    packed = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(/etc/passwd) (r) file\n%%EOF\n"
PICTURES: dict[str, tuple[Callable[[], bytes], str]] = {
    "PostScript": (lambda: EPS, "Pillow would start Ghostscript"),
    "one column": (lambda: png(1, 60_000), "scaled until it covers a square it has 300 million pixels"),
    "one row": (lambda: png(60_000, 1), "the same lying down"),
    "a hundred million pixels": (lambda: png(10_000, 10_000), "a small file, 400 MB of memory"),
    "1600 million pixels": (lambda: png(40_000, 40_000), "a small file, 6 GB of memory"),
    "no pixels": (lambda: png(0, 0), "a picture without size"),
    "cut short": (lambda: png(64, 64)[:40], "the rest is missing"),
    "a GIF": (lambda: b"GIF89a" + bytes(40), "another format under the name of this one"),
    "a PSD": (lambda: b"8BPS\x00\x01" + bytes(60), "another format under the name of this one"),
    "nothing": (lambda: b"", "an empty file"),
}


def picture(content: Callable[[], bytes]) -> Callable[[Path], list[str]]:
    def make(place: Path) -> list[str]:
        (place / "images").mkdir()
        (place / "images" / "one.png").write_bytes(content())
        return measured_on(place / "images")

    return make


for name, (content, what) in PICTURES.items():
    add(f"picture: {name}", picture(content), what)


def in_images(name: str, kind: Callable[[Path], None]) -> Callable[[Path], list[str]]:
    def make(place: Path) -> list[str]:
        (place / "images").mkdir()
        kind(place / "images" / name)
        return measured_on(place / "images")

    return make


def back(path: Path) -> None:
    path.symlink_to(path.parent, target_is_directory=True)


def root(path: Path) -> None:
    path.symlink_to("/", target_is_directory=True)


for kind, what in (
    (pipe, "reading it waits for a writer"),
    (device, "a device that never ends"),
    (nowhere, "a link to itself"),
    (a_socket, "nothing to read"),
):
    add(f"picture: {kind.__name__}", in_images("one.png", kind), what)
add("images: a link back", in_images("again", back), "a folder inside itself")
add("images: a link to all files", in_images("all", root), "hours of looking around")

# A table whose checksum is right ----------------------------------------------------------------------------


def table(**changes: object) -> Callable[[Path], list[str]]:
    """A latency table whose checksum fits, however odd its numbers are."""
    plain = {
        "format": 1, "place": {}, "work": {}, "counts": [9, 5], "dense": 1.0, "fixed": 0.1,
        "blocks": [[1.0, 0.5]] * 12, "sites": [0.0] * 4, "spread": 0.0, "seconds": 1.0, "date": "today",
        "samples": {}, "estimated": False, "error": 0.05, **changes,
    }  # fmt: skip
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    signed = json.dumps({**plain, "checksum": hashlib.sha256(text.encode()).hexdigest()})
    return as_text("table.json", signed, planned_by)


for name, changes, what in (
    ("100,000 lengths", {"counts": list(range(100_000, 0, -1)), "blocks": [[1.0] * 100_000]}, "their square"),
    ("no time at all", {"dense": 0.0}, "every share divides by it"),
    ("ages", {"dense": 1e308, "fixed": 1e308}, "numbers whose sum is infinite"),
    ("of nothing", {}, "of no model and no device"),
    ("a long fact", {"place": {"device": "a" * 100_000}}, "a message of that length"),
    ("a length of no token", {"counts": [5, 0]}, "an empty stream"),
):
    add(f"table: {name}", table(**changes), what)
