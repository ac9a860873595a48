"""Locks: POSIX ones on a file, whose text says who holds it. The system frees one when its holder dies.

lockf, not flock: a forked worker inherits that one, and would keep it when its parent is killed. They hold across
machines where the file system has locks (NFS 4; Lustre with `-o flock`).
"""

import fcntl
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from pretrain.files import lock_error, write_error

FLOCK = struct.Struct("hhqqi")  # struct flock: type, whence, start, length, process
WORDS = 200  # characters at most that are shown of a lock's text


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold `path` alone, waiting for whoever holds it, which is said on stderr. Raises Failed without locks there."""
    from pretrain.progress import log  # here, as most who import this module have nothing to say

    with _opened(path) as file:
        if not _taken(file, path, fcntl.LOCK_EX | fcntl.LOCK_NB):
            log(f"{path}: waiting for {_said(file)}, which is doing the same")
            _taken(file, path, fcntl.LOCK_EX)
        with _signed(file):
            yield


@contextmanager
def alone(path: Path) -> Iterator[bool]:
    """Whether nobody else holds the lock `path`; if so, it is held until the end of this or of the process."""
    with _opened(path) as file:
        if _taken(file, path, fcntl.LOCK_EX | fcntl.LOCK_NB):
            with _signed(file):
                yield True
        else:
            yield False


def holder(path: Path) -> int | None:
    """The id of the process that holds the lock `path`, if another one does."""
    asked = FLOCK.pack(fcntl.F_WRLCK, 0, 0, 0, 0)
    with suppress(FileNotFoundError), path.open("r+") as file:
        kind, *_, process = FLOCK.unpack(fcntl.fcntl(file, fcntl.F_GETLK, asked))
        return None if kind == fcntl.F_UNLCK else int(process)
    return None


def _opened(path: Path) -> IO[str]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a+", encoding="utf-8", errors="replace")
    except OSError as error:
        raise write_error(path, error) from error


def _taken(file: IO[str], path: Path, how: int) -> bool:
    """Whether the lock could be had; with LOCK_NB in `how` it is not waited for."""
    try:
        fcntl.lockf(file, how)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:  # a file system without locks
        raise lock_error(path, error) from error
    return True


@contextmanager
def _signed(file: IO[str]) -> Iterator[None]:
    """The lock's text names this process while it holds it; to name it is a courtesy, so a full disk is no error."""
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    _write(file, f"process {os.getpid()} on {socket.gethostname()}, since {now}\n")
    try:
        yield
    finally:
        _write(file, "")


def _write(file: IO[str], text: str) -> None:
    with suppress(OSError):
        file.truncate(0)
        file.write(text)
        file.flush()


def _said(file: IO[str]) -> str:
    """Who holds a lock, by its text. Read from the open file: to close another one of it would free what we hold."""
    with suppress(OSError):
        file.seek(0)
        line = file.read(WORDS).partition("\n")[0]
        if line.startswith("process ") and line.isprintable():
            return line
    return "another process"
