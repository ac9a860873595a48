"""stdout and stderr, whatever the shell made of them: closed, full, or in an encoding that lacks our signs."""

import errno
import io
import os
import sys
from contextlib import suppress
from pathlib import Path

from pretrain.files import FREE_SPACE, Failed


def prepare() -> None:
    """Fill closed descriptors, so that no file of ours becomes stdout; write UTF-8 whatever the terminal's encoding.

    Signs that a terminal lacks are no reason to lose a table, and a table in a file is UTF-8. Names of files come out
    as the bytes they are. stderr shows what it cannot encode as \\u2013, which is Python's own way.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115  # as long as the process
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")


def answer(text: str) -> None:
    """Write the answer to stdout. Raises Failed when it cannot be written."""
    if sys.stdout is None:
        raise Failed("stdout: closed, so that the answer was not written: give it a file or a terminal")
    try:
        try:
            print(text, flush=True)
        except UnicodeEncodeError:  # a lone surrogate
            print(text.encode("utf-8", "backslashreplace").decode(), flush=True)
    except BrokenPipeError:
        discard(sys.stdout)
        raise Failed("stdout: closed by its reader, so that the answer was not written whole") from None
    except OSError as error:
        discard(sys.stdout)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise Failed(f"stdout: {f'disk full: {FREE_SPACE}' if full else error.strerror}") from error


def close() -> None:
    """Let nothing that stderr could not write change the exit code."""
    try:
        sys.stderr.flush()
    except (OSError, ValueError):
        discard(sys.stderr)


def discard(stream: io.TextIOBase | object) -> None:
    """Send what is left in a stream to nowhere: Python writes it at its end, and would fail again."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # type: ignore[union-attr]
