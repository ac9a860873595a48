"""YAML whose every value knows its line, so that an error can name it. Nothing in it is executed."""

import math
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import yaml

from pretrain.files import Failed, Missing, Usage

NAME_BYTES = 255  # of a file's name, at most, on any file system of today
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
        if any(len(os.fsencode(part)) > NAME_BYTES for part in path.parts):
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
    """The top of a YAML file. Raises Missing when it is not there, Usage, naming the line, when it is not YAML."""
    try:
        node = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise Usage(f"{file}{line}: not YAML: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Usage(f"{file}: not YAML: {str(error).splitlines()[0]}") from error
    except RecursionError as error:
        raise Usage(f"{file}: nested too deep for a plan") from error
    except OSError as error:
        remedy = "give a YAML file, or a shipped plan's name"
        raise Missing(f"{file}: cannot be read ({error.strerror}): {remedy}") from error
    if node is None:
        raise Usage(f"{file}:1: empty: a plan needs recipe and methods")
    return Value(file, _line(node), "", node)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
