"""Checkpoints written opcode by opcode: small files whose reading would take all memory or all time."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.hostile import Hostile
from tests.hostile.pickles import archive, raw, row

HEAD, STOP = b"\x80\x02", b"."
#: A tuple of 2 ** 60 elements on the stack.
DOUBLED = b"K\x01" + b"q\x01h\x01\x86" * 60


def text(string: str) -> bytes:
    """A string on the stack."""
    encoded = string.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def numbers(count: int) -> bytes:
    """A list of so many numbers on the stack."""
    return b"](" + b"K\x07" * count + b"e"


def again(name: str, argument: bytes, times: int) -> bytes:
    """So many calls with the same argument, whose results are all kept."""
    called = b"c" + name.replace(".", "\n").encode() + b"\nq\x010" + argument + b"q\x020"
    return called + b"](" + b"h\x01h\x02R" * times + b"e"


def hexed() -> bytes:
    """Text that is written as hexadecimal digits, again and again: each time twice as long."""
    first = b"c_codecs\nencode\nq\x010" + text("hex") + b"q\x020" + text("x" * 10_000) + b"q\x03"
    return first + b"0](" + b"h\x01h\x03h\x02\x86Rq\x03" * 18 + b"e"


def collisions(count: int) -> bytes:
    """A dict whose keys all have the same hash."""
    keys = ((number * ((1 << 61) - 1)).to_bytes(12, "little") for number in range(1, count))
    return b"}(" + b"".join(b"\x8a\x0c" + key + b"N" for key in keys) + b"u"


def tensor(
    offset: bytes, size: bytes, stride: bytes, stored: int = 16, kind: bytes = b"Float"
) -> Callable[[Path], None]:
    """A checkpoint with one tensor, of any place and shape in numbers of so many bytes."""
    place = text("storage") + b"ctorch\n" + kind + b"Storage\n" + text("0") + text("cpu") + b"K\x04tQ"
    call = b"ctorch._utils\n_rebuild_tensor_v2\n((" + place + offset + size + stride + b"\x89Nt\x52"
    entries = {"x/data.pkl": HEAD + b"}" + text("a") + call + b"s.", "x/data/0": b"\0" * stored}
    return lambda path: archive(path, entries)


def _hostile() -> Iterator[Hostile]:
    large = numbers(200_000)
    yield row("hexadecimal", "text that doubles with every call", raw(HEAD, hexed(), STOP), "than bytes")
    yield row(
        "hashed", "a key that takes 2 ** 60 steps to look at", raw(HEAD, b"}", DOUBLED, b"Ns."), "a key"
    )
    yield row("collisions", "200,000 keys of one hash", raw(HEAD, collisions(200_000), STOP), "a key")
    for name, refusal in {
        "collections.OrderedDict": "with arguments",
        "__builtin__.set": "far more than it holds",
        "torch.Size": "one value",
        "torch.Tensor": "calls torch.Tensor",
    }.items():
        copies = raw(HEAD, again(name, large + b"\x85", 2000), STOP)
        yield row(f"copies by {name}", "the same large list, copied 2000 times", copies, refusal)
    encoded = again("_codecs.encode", text("x" * 10**6) + text("latin1") + b"\x86", 1000)
    yield row("copies of bytes", "the same text, copied", raw(HEAD, encoded, STOP), "far more than it holds")
    lists = b"ctorch\nTensor\nK\x01" + b"q\x01h\x01\x86" * 29
    yield row("tensor of lists", "a tensor of 2 ** 29 numbers", raw(HEAD, lists, b"\x85R."), "torch.Tensor")
    many = raw(HEAD, b"](", b"}r\0\0\0\0" * 490_000, b"e.")
    yield row("many dicts", "as many dicts as a pickle may have", many, "neither a module")
    yield row(
        "many marks",
        "as many marks as a pickle may have",
        raw(HEAD, b"(" * 900_000, STOP),
        "cannot be read",
    )
    one, two = b"K\x01\x85", b"K\x02\x85"
    yield row("beyond", "a tensor that ends after its numbers", tensor(b"K\x03", two, one), "without all")
    yield row("before", "a tensor that begins before them", tensor(b"J\xff\xff\xff\xff", two, one), "none")
    yield row(
        "backwards", "a tensor that runs backwards", tensor(b"K\x03", two, b"J\xff\xff\xff\xff\x85"), "none"
    )
    yield row(
        "enormous steps",
        "steps of 2 ** 62",
        tensor(b"K\0", two, b"\x8a\x08" + b"\0" * 7 + b"\x40\x85"),
        "without all",
    )
    yield row(
        "sides of no size",
        "no numbers, 2 ** 62 times",
        tensor(b"K\0", b"K\0\x8a\x08" + b"\0" * 7 + b"\x40\x86", b"K\x01K\x01\x86"),
        "",
    )
    yield row("words for sides", "a shape of text", tensor(b"K\0", text("a") + b"\x85", one), "none")
    yield row(
        "other numbers",
        "numbers of a kind that is none",
        tensor(b"K\0", two, one, kind=b"Q"),
        "wants torch.QStorage",
    )
    yield row("no place", "numbers that are not in the archive", raw(HEAD, b"K\x01Q."), "")


HOSTILE = tuple(_hostile())
