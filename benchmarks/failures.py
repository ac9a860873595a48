"""Errors that nobody foresaw: one line that names cause and file, the traceback in a log that it names too."""

import errno
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from pretrain.files import FREE_SPACE, Failed, Usage
from pretrain.listing import escaped

OURS = ("pretrain", "transfer", "benchmarks")
LONGEST = 2_000  # characters of a line
MEMORY = ("out of memory", "allocate memory", "not enough memory")  # torch's words


def foreseen(error: Exception, *, command: str, runs: Path | None) -> Failed:
    """The error as one line. `runs`: where work is kept, and the log; without one it goes to the system's own place."""
    if isinstance(error, Failed):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Failed(f"{error.filename or 'the disk'}: disk full: {FREE_SPACE}")
    if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
        return Usage(f"{error.filename or command}: {error.strerror}: give another path")
    found = next((path for path in _paths(error.__traceback__)), None)
    where = f"{found}: " if found is not None and str(found) not in cause(error) else ""
    return Failed(f"{where}{cause(error)} (bench {command}; {_log(error, command, runs)})")


def cause(error: Exception) -> str:
    """What happened, in short."""
    said = " ".join(str(error).split())[:300]
    if isinstance(error, OSError) and error.strerror:
        return ": ".join(str(part) for part in (error.filename, error.strerror) if part)
    if isinstance(error, MemoryError) or any(words in said.lower() for words in MEMORY):
        return f"out of memory ({said or type(error).__name__}): free some, or give a smaller --batch"
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _paths(trace: TracebackType | None) -> Iterator[Path]:
    """The files that our own functions were at, the innermost first."""
    for frame, _ in reversed(list(traceback.walk_tb(trace))):
        if frame.f_globals.get("__name__", "").split(".")[0] in OURS:
            yield from (value for name, value in frame.f_locals.items() if "path" in name and isinstance(value, Path))


def _log(error: Exception, command: str, runs: Path | None) -> str:
    """Write the traceback below `runs`, or where the system keeps temporary files; say where."""
    name = f"bench-{command.replace(' ', '-')}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    text = f"{' '.join(sys.argv)}\n\n{''.join(traceback.format_exception(error))}"
    for folder in (runs and runs / "errors", None):
        with suppress(OSError, ValueError):
            place = folder or Path(tempfile.gettempdir())
            place.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(text, encoding="utf-8", errors="backslashreplace")
            return f"traceback: {place / name}"
    return "no place for a log"


def one_line(text: str) -> str:
    """The text on a line that every terminal can show: other characters as \\x1b, \\udce9."""
    shown = escaped(" ".join(text.split("\n")))
    return shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}…"
