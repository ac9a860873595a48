"""How much a pickle unfolds to, counted opcode by opcode before anything of it is built.

A few hundred bytes can share a tuple so often that hashing, printing or copying it never ends, and let
one string be copied into gigabytes of arrays. Every object is counted here as often as it is reached, and what
is a key, an element of a set or an argument may not be more than a multiple of the file.
"""

import pickletools
from typing import IO, Any

DEEPEST = 400  # containers within each other: deeper ones overflow the interpreter's own stack when they are hashed
TIMES = 16  # how many times its own size a pickle may unfold to, and
ANYWAY = 2**24  # how much it may in any case: bytes and objects
CALLS = {"REDUCE", "BUILD", "NEWOBJ", "NEWOBJ_EX", "INST", "OBJ"}
KEYS = {"SETITEM", "SETITEMS", "DICT"}  # of whose operands every second, from the top of the stack, is hashed
USED = CALLS | {"ADDITEMS", "FROZENSET"}
MARK = pickletools.markobject
Count = tuple[int, int]  # what an object unfolds to, and how deep it is


class Unbounded(ValueError):
    """A pickle unfolds to more than a file of its size holds, or is nested too deeply."""


def check_pickle(file: IO[bytes], *, size: int, streams: int = 1) -> set[str]:
    """Check the next `streams` pickles of a file of `size` bytes; return the names of what they ask for.

    A name is "module name". Raises Unbounded, or another Exception where a pickle is damaged.
    """
    counter = _Counter(TIMES * size + ANYWAY, size)
    for _ in range(streams):
        counter.memo.clear()
        for opcode, argument, _ in pickletools.genops(file):
            counter.step(opcode, argument)
    return counter.globals


class _Counter:
    """The stack and the memo of a pickle, as sizes."""

    def __init__(self, most: int, length: int) -> None:
        self.stack: list[Count | None] = []  # None: a mark
        self.memo: dict[int, Count] = {}
        self.most, self.length, self.made = most, length, 0
        self.globals: set[str] = set()

    def step(self, opcode: Any, argument: Any) -> None:
        """Do what an opcode does, with sizes."""
        name = opcode.name
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            key = len(self.memo) if name == "MEMOIZE" else int(argument)
            if key > self.length:  # the memo would be filled up to there
                raise Unbounded(f"memo place {key} in {self.length} bytes")
            self.memo[key] = self._top()
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[int(argument)])
        elif name == "DUP":
            self.stack.append(self._top())
        elif name == "POP":
            self.stack.pop()
        else:
            self._other(opcode, argument)

    def _other(self, opcode: Any, argument: Any) -> None:
        if opcode.name in ("GLOBAL", "INST"):
            self.globals.add(str(argument))
        before, pushed = opcode.stack_before, opcode.stack_after
        own = len(argument) if isinstance(argument, str | bytes | bytearray) else 0
        own += (argument.bit_length() // 8) if isinstance(argument, int) else 0
        taken: list[Count] = []
        if MARK in before:
            while (top := self.stack.pop()) is not None:
                taken.append(top)
        rest = before.index(MARK) if MARK in before else len(before)
        taken += [self._popped() for _ in range(rest)]
        used = taken[1::2] if opcode.name in KEYS else taken if opcode.name in USED else []
        size = 1 + own + sum(one for one, _ in taken)
        self.made += size if opcode.name in CALLS else 0
        if self.made > self.most or sum(one for one, _ in used) > self.most:
            raise Unbounded(f"unfolds to more than {self.most:,} bytes")
        if any(deep > DEEPEST for _, deep in used):
            raise Unbounded(f"nested deeper than {DEEPEST}")
        size, depth = min(size, 2**63), 1 + max((deep for _, deep in taken), default=0)
        self.stack += [None if kind is MARK else (size, depth) for kind in pushed]

    def _top(self) -> Count:
        if not self.stack or (top := self.stack[-1]) is None:
            raise ValueError("nothing on the stack")
        return top

    def _popped(self) -> Count:
        if not self.stack or (top := self.stack.pop()) is None:
            raise ValueError("nothing on the stack")
        return top
