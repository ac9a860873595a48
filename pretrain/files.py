"""Files that survive a crash, and errors that name the file and the remedy."""

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


class Failed(Exception):
    """The run cannot go on. The message is one line: the file, what is wrong, what to do."""

    exit_code = 1


class Usage(Failed):
    """The command was called the wrong way."""

    exit_code = 2


class Missing(Failed):
    """Data or a dependency is not there."""

    exit_code = 3


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` to write; then sync it and rename it into place.

    After a crash `path` holds either its old content or the whole new one. Raises Failed, naming
    the file, when the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise write_error(path, error) from error
    except RuntimeError as error:
        # torch.save reports a full disk as a RuntimeError of its zip writer ("unexpected pos").
        if "unexpected pos" in str(error) or "PytorchStreamWriter" in str(error):
            raise Failed(f"{path}: could not be written (disk full?): {FREE_SPACE}") from error
        raise
    finally:
        with suppress(OSError):  # not there, or its folder cannot be written, which has been said
            temporary.unlink()


FREE_SPACE = "free some space and run the same command again; finished work is kept"


def write_error(path: Path, error: OSError) -> Failed:
    """The one-line error for a write to `path` that the system refused."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return Failed(f"{path}: disk full: {FREE_SPACE}")
    return Failed(f"{path}: cannot be written ({error.strerror or error}): check the folder's rights")


def lock_error(path: Path, error: OSError) -> Failed:
    """The one-line error for a lock that the file system of `path` does not have."""
    return Failed(f"{path}: cannot be locked ({error.strerror}): give --runs on another file system")


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes. Raises Missing when there is no such file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise Missing(f"{path}: not there: complete the data, then run the same command again") from None


def digest(root: Path, paths: Iterable[Path]) -> str:
    """Hex sha256 over the names (relative to `root`) and the bytes of `paths`, in sorted order."""
    total = hashlib.sha256()
    for path in sorted(paths):
        total.update(f"{path.relative_to(root).as_posix()} {sha256(path)}\n".encode())
    return total.hexdigest()


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, and containers of them) to `path`, atomically."""
    import torch  # here, so that `bench doctor` and --help work without it and start at once

    with atomic(path) as temporary:
        torch.save(state, temporary)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """What save_checkpoint wrote at `path`, on the CPU, or None when there is no such file.

    Raises Failed when the file is damaged. No pickle is executed (weights_only).
    """
    import torch

    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise Failed(f"{path}: damaged checkpoint: delete it to start this run over") from error
    return state


@contextmanager
def restoring(path: Path) -> Iterator[None]:
    """Say of a state that does not fit that the checkpoint at `path` is not one of what is built here: Failed."""
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise Failed(f"{path}: not a checkpoint of this network: delete it to start this run over") from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold `path` alone, waiting for whoever holds it. The system lets go of it when the process dies."""
    import fcntl

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise write_error(path, error) from error
    with file:
        try:
            # lockf, not flock: forked workers inherit that one, and would keep it when we are killed.
            fcntl.lockf(file, fcntl.LOCK_EX)
        except OSError as error:  # a file system without locks
            raise lock_error(path, error) from error
        yield
