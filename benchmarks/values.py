"""Values of the options of `bench`, and of its environment: checked where they are given, refused in one line."""

import argparse
import math
import os
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

from benchmarks import streams
from benchmarks.failures import one_line
from pretrain.files import Missing

NAME, PATH = 255, 4_000  # bytes of a file's name and of a path that systems take, with room for names below it
LABEL = 100  # characters


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        """Exit with 2."""
        self.exit(2, f"bench: {one_line(message)[:400]}: see `{self.prog} --help`\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Help is an answer; argparse would not notice that it cannot be written. Raises Failed."""
        if message and file is sys.stdout:
            streams.answer(message.rstrip("\n"))
        else:
            super()._print_message(message, file)


def _refuse(text: str, why: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"{text if len(text) <= 60 else f'{text[:60]}…'!r} {why}")


def _whole(text: str, low: int, high: int) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text.strip(), re.ASCII):
        raise _refuse(text, f"is not a whole number up to {high:,}")
    if int(text) < low:
        raise _refuse(text, "is negative" if low == 0 else f"must be at least {low}")
    if int(text) > high:
        raise _refuse(text, f"is more than {high:,}")
    return int(text)


def count(text: str) -> int:
    """0 or more: iterations."""
    return _whole(text, 0, 10**9)


def positive(text: str) -> int:
    """1 or more."""
    return _whole(text, 1, 10**9)


def small(text: str) -> int:
    """1 or more, of what is in memory at once."""
    return _whole(text, 1, 65_536)


def seed(text: str) -> int:
    """What all generators take as a seed."""
    return _whole(text, 0, 2**32 - 1)


def number(text: str) -> float:
    """A finite number."""
    if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text.strip(), re.ASCII):
        raise _refuse(text, "is not a finite number")
    if not math.isfinite(float(text)):
        raise _refuse(text, "is not a finite number")
    return float(text)


def rate(text: str) -> float:
    """A positive number."""
    if (value := number(text)) <= 0:
        raise _refuse(text, "is not a positive number")
    return value


def label(text: str) -> str:
    """What becomes part of a path."""
    if not re.fullmatch(r"[A-Za-z0-9_.+-]*", text) or len(text) > LABEL:
        raise _refuse(
            text, f"is not at most {LABEL} letters, digits, '_', '.', '+' and '-', as it becomes part of a path"
        )
    return text


def row(text: str) -> str:
    """A row's or a recipe's name."""
    if not text or not (text[0].isascii() and text[0].isalnum()):
        raise _refuse(text, "does not start with a letter or a digit, as names do")
    return label(text)


def given(text: str) -> str:
    """A path, or the name of something that could be one."""
    try:
        name = os.fsencode(text)
    except UnicodeEncodeError:
        raise _refuse(text, "holds a character that no path has") from None
    if not text:
        raise _refuse(text, "is empty: give a path, or leave the option out")
    if b"\0" in name:
        raise _refuse(text, "holds a NUL character, which no path has")
    if len(name) > PATH or any(len(part) > NAME for part in name.split(b"/")):
        raise _refuse(text, f"is too long: a path has at most {PATH:,} bytes, a name in it {NAME}")
    return text


def folder(text: str) -> Path:
    """A path."""
    return Path(given(text))


def bench_data() -> Path | None:
    """$BENCH_DATA, if it is set. Raises Missing when it names no folder."""
    text = os.environ.get("BENCH_DATA")
    if not text:
        return None
    try:
        path = folder(text)
    except argparse.ArgumentTypeError as error:
        raise Missing(f"$BENCH_DATA: {error}") from error
    if not path.is_dir():
        raise Missing(f"$BENCH_DATA: {text} is not a folder: set it to the one that holds VOCdevkit, or unset it")
    return path
