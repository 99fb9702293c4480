"""What a pickle says, opcode by opcode, as values that do nothing.

Nothing is looked up, called or hashed: a name becomes a `Named`, a call a `Call`, a dict the list of its
pairs. So time and memory are those of the pickle's own length, whatever it says. The opcodes are those that
torch.save writes; any other is an error.
"""

from __future__ import annotations

import pickletools
from typing import Any, BinaryIO

#: Limits far above any model's: of the pickle itself, without the numbers.
MOST_BYTES = 16 << 20
MOST_OPCODES = 1_000_000
MOST_CALLS = 200_000


class NotTrusted(ValueError):  # noqa: N818 - the reader makes an error of it
    """A file wants what prunec does not trust; the message says what."""


class Named:
    """A name of something in Python, which was not looked up."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class Pairs:
    """A dict as its keys and values, which need not be hashable."""

    __slots__ = ("pairs",)

    def __init__(self) -> None:
        self.pairs: list[tuple[Any, Any]] = []


class Call(Pairs):
    """A call that was not made: of what, with which arguments, and what is put into the result."""

    __slots__ = ("args", "elements", "function", "state")

    def __init__(self, function: Any, args: Any) -> None:
        super().__init__()
        self.function, self.args = function, args
        self.state: Any = None
        self.elements: list[Any] = []

    @property
    def name(self) -> str:
        """The name of what is called, empty where that is no name."""
        return self.function.name if isinstance(self.function, Named) else ""


class Stored:
    """Numbers that lie beside the pickle."""

    __slots__ = ("place",)

    def __init__(self, place: Any) -> None:
        self.place = place


#: Opcodes whose argument is the value that they put on the stack.
_VALUES = frozenset(
    {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
    | {"BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES"}
)
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_CALLS = frozenset({"REDUCE", "NEWOBJ", "BUILD"})


def parse(file: BinaryIO) -> tuple[Any, list[Stored]]:
    """The value of one pickle, which ends where it says so, and all numbers that it refers to.

    Raises:
        NotTrusted: the pickle is far larger than any model's.
        Exception: whatever pickletools and a stack raise for a damaged one.
    """
    machine = _Machine()
    start, calls = file.tell(), 0
    for count, (opcode, argument, place) in enumerate(pickletools.genops(file)):
        if count > MOST_OPCODES or (place or 0) - start > MOST_BYTES:
            raise NotTrusted("holds a pickle far larger than any model's")
        calls += opcode.name in _CALLS
        if calls > MOST_CALLS:
            raise NotTrusted(f"makes more than {MOST_CALLS} objects")
        machine.step(opcode.name, argument)
    return machine.stack.pop(), machine.stored


class _Machine:
    """The stack and the memo of an unpickler."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks below the marks
        self.memo: dict[int, Any] = {}
        self.stored: list[Stored] = []

    def step(self, opcode: str, argument: Any) -> None:
        stack = self.stack
        if opcode in _VALUES:
            stack.append(argument)
        elif opcode in _CONSTANTS:
            stack.append(_CONSTANTS[opcode])
        elif opcode in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif opcode == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif opcode in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif opcode == "MARK":
            self.outer.append(stack)
            self.stack = []
        elif opcode == "POP":
            stack.pop()
        elif opcode not in ("PROTO", "FRAME", "STOP"):
            self._made(opcode, argument)

    def _made(self, opcode: str, argument: Any) -> None:
        stack = self.stack
        if opcode == "EMPTY_LIST":
            stack.append([])
        elif opcode == "EMPTY_DICT":
            stack.append(Pairs())
        elif opcode == "EMPTY_SET":
            stack.append(Call(Named("builtins.set"), ([],)))
        elif opcode in _TUPLES:
            stack[-_TUPLES[opcode] :] = [tuple(stack[-_TUPLES[opcode] :])]
        elif opcode == "TUPLE":
            elements = self._to_mark()
            self.stack.append(tuple(elements))
        elif opcode == "GLOBAL":
            stack.append(Named(".".join(str(argument).split(" ", 1))))
        elif opcode == "STACK_GLOBAL":
            module, name = _popped(stack, 2)
            stack.append(Named(f"{_text(module)}.{_text(name)}"))
        elif opcode == "BINPERSID":
            stack.append(Stored(stack.pop()))
            self.stored.append(stack[-1])
        elif opcode in _CALLS:
            self._call(opcode)
        else:
            self._fill(opcode)

    def _call(self, opcode: str) -> None:
        target, argument = _popped(self.stack, 2)
        if opcode != "BUILD":
            target = Call(target, argument)
        elif isinstance(target, Call) and target.state is None:
            target.state = argument
        else:
            raise ValueError("a state is given to what has none")
        self.stack.append(target)

    def _fill(self, opcode: str) -> None:
        if opcode in ("APPENDS", "SETITEMS", "ADDITEMS"):
            elements = self._to_mark()
        elif opcode in ("APPEND", "SETITEM"):
            elements = _popped(self.stack, 1 if opcode == "APPEND" else 2)
        else:
            raise ValueError(f"torch.save does not write the opcode {opcode}")
        target = self.stack[-1]
        if opcode.startswith("SETITEM") and isinstance(target, Pairs):
            target.pairs.extend(zip(elements[::2], elements[1::2], strict=True))
        elif opcode.startswith("APPEND") and isinstance(target, Call | list):
            (target if isinstance(target, list) else target.elements).extend(elements)
        elif opcode == "ADDITEMS" and isinstance(target, Call):
            target.args[0].extend(elements)
        else:
            raise ValueError(f"the opcode {opcode} stands where it has no meaning")

    def _to_mark(self) -> list[Any]:
        elements, self.stack = self.stack, self.outer.pop()
        return elements


def _popped(stack: list[Any], count: int) -> list[Any]:
    if len(stack) < count:
        raise ValueError("it takes more than was given")
    taken = stack[-count:]
    del stack[-count:]
    return taken


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a name in it is no text")
    return value
