"""YAML whose every value knows its line, so that an error can name it. Nothing in it is executed."""

import math
import os
import re
import stat
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import yaml

from pretrain.files import NAME_BYTES, Failed, Missing, Usage

PATH_BYTES = 4000  # of a path; Linux takes 4,095, and we append to it
PLAN_BYTES = 100_000  # of a plan; the largest that ships has 1,300
PLAN_VALUES = 100_000  # of a plan, once its aliases are followed
REMEDY = "give a YAML file, or a shipped plan's name"
MOST_DIGITS = 9


@dataclass(frozen=True)
class Value:
    """A node of a YAML file: its file, its line from 1, its key from the top ("launch.workers"), what stands there."""

    file: Path
    line: int
    name: str
    node: yaml.Node

    @property
    def key(self) -> str:
        """The last part of `name`: keys have no dots."""
        return self.name.rpartition(".")[2]

    def wrong(self, what: str, *, kind: type[Failed] = Usage) -> Failed:
        """The error to raise: the file, the line, the key and `what`."""
        return kind(f"{self.file}:{self.line}: {self.name or 'plan'}: {what}")

    def fields(self, known: Collection[str] | None = None) -> "dict[str, Value]":
        """Key → value of a mapping; nothing at all is an empty one. Keys outside `known` are refused, and twins."""
        if self.node.tag == "tag:yaml.org,2002:null":
            return {}
        if not isinstance(self.node, yaml.MappingNode):
            raise self.wrong("needs keys and values here")
        found: dict[str, Value] = {}
        for key, value in self.node.value:
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else "?"
            said = Value(self.file, _line(key), ".".join(filter(None, (self.name, name))), value)
            if not re.fullmatch(r"[^.\s]+", name):
                raise self.wrong(f"{name!r} is no key: give one word without dots")
            if known is not None and name not in known:
                raise said.wrong(f"unknown key; known: {', '.join(known)}")
            if name in found:
                raise said.wrong("given twice")
            found[name] = said
        return found

    def entries(self) -> "list[Value]":
        """The entries of a list, of which there is at least one."""
        if not isinstance(self.node, yaml.SequenceNode) or not self.node.value:
            raise self.wrong("needs a list: [a, b]")
        return [Value(self.file, _line(node), self.name, node) for node in self.node.value]

    def text(self) -> str:
        """A scalar as it is written."""
        if not isinstance(self.node, yaml.ScalarNode) or not self.node.value:
            raise self.wrong("needs one word or number")
        return str(self.node.value)

    def path(self) -> Path:
        """A path; ~ is the home folder."""
        path = Path(self.text())
        try:
            encoded = os.fsencode(path)
        except UnicodeEncodeError as error:
            raise self.wrong(f"{str(path)!r}: a name that no file has") from error
        if b"\0" in encoded or len(encoded) > PATH_BYTES:
            raise self.wrong("a name that no file has")
        if any(len(part) > NAME_BYTES for part in encoded.split(b"/")):
            raise self.wrong(f"a name of more than {NAME_BYTES} bytes, which no file has")
        try:
            return path.expanduser()
        except RuntimeError as error:
            raise self.wrong(f"{path}: nobody here has such a home folder") from error

    def matching(self, pattern: str, what: str) -> str:
        """A text of the form `pattern`, which `what` describes."""
        if not re.fullmatch(pattern, text := self.text()):
            raise self.wrong(f"{text!r} is not {what}")
        return text

    def choice(self, known: Collection[str]) -> str:
        """One of `known`."""
        if (text := self.text()) not in known:
            raise self.wrong(f"no {text!r}; there are {', '.join(known)}")
        return text

    def whole(self, *, least: int = 0) -> int:
        """A whole number, at least `least`."""
        digits = self.matching(r"[0-9]+(_[0-9]+)*", "a whole number").replace("_", "")
        if len(digits) > MOST_DIGITS:
            raise self.wrong(f"a number of more than {MOST_DIGITS} digits")
        if (value := int(digits)) < least:
            raise self.wrong(f"{value} is less than {least}")
        return value

    def rate(self) -> float:
        """A positive number; 5e-4 too, which is a text to YAML."""
        try:
            value = float(self.text())
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise self.wrong(f"{self.text()!r} is not a positive number")
        return value


def read_lines(file: Path) -> Value:
    """The top of a YAML file. Raises Missing when it is not there, Usage, naming the line, when it is not YAML.

    Nor is it read when it is no regular file, which may never end, or is larger than any plan.
    """
    try:
        node = yaml.compose(_content(file), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise Usage(f"{file}{line}: not YAML: {error.problem}") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the latter two: from some escapes
        raise Usage(f"{file}: not YAML: {(str(error) or 'damaged').splitlines()[0]}") from error
    except RecursionError as error:
        raise Usage(f"{file}: nested too deep for a plan") from error
    except OSError as error:
        raise Missing(f"{file}: cannot be read ({error.strerror}): {REMEDY}") from error
    if node is None:
        raise Usage(f"{file}:1: empty: a plan needs recipe and methods")
    if _values(node, {}) > PLAN_VALUES:
        raise Usage(f"{file}: unfolds to more than {PLAN_VALUES} values by its aliases, so no plan: {REMEDY}")
    return Value(file, _line(node), "", node)


def _values(node: yaml.Node, known: dict[int, float]) -> float:
    """How many values a node holds with its aliases followed; infinity if it holds itself. known: id → this."""
    if id(node) not in known:
        known[id(node)] = math.inf
        inside = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for pair in inside for part in (pair if isinstance(pair, tuple) else (pair,))]
        known[id(node)] = 1 + sum(_values(part, known) for part in parts)
    return known[id(node)]


def _content(file: Path) -> bytes:
    """The bytes of a regular file of at most PLAN_BYTES. A pipe is opened too, but not waited for."""
    handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as opened:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise Usage(f"{file}: not a regular file: {REMEDY}")
        content = opened.read(PLAN_BYTES + 1)
    if len(content) > PLAN_BYTES:
        raise Usage(f"{file}: larger than {PLAN_BYTES} bytes, so no plan: {REMEDY}")
    return content


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
