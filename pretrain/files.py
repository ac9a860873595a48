"""Files that survive a crash, and errors that name the file and the remedy."""

import errno
import hashlib
import os
import re
import shutil
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

NAME_BYTES = 255  # of a file's name, at most, on any file system of today
OLD_SECONDS = 24 * 3600.0  # nobody writes a temporary file for so long without a byte


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

    After a crash `path` holds either its old content or the whole new one, and the temporary of the crashed process
    is removed by the next that writes `path`. Raises Failed, naming the file, when the disk is full or the folder
    cannot be written.
    """
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path)
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


def temporary_name(path: Path, kind: str = "tmp") -> Path:
    """A hidden sibling of `path` that this process alone may write, to be renamed to `path` when it is whole."""
    end = f".{_here()}-{os.getpid()}.{kind}"
    return path.with_name(_start(path.name) + end)


def sweep(path: Path) -> None:
    """Remove the temporaries of `path`, files or folders, whose writer is dead, or that are a day old.

    A process id means something on its own machine only: what another one wrote is left until it is old.
    """
    ours = re.compile(re.escape(_start(path.name)) + r"\.(?:([0-9a-f]{8})-)?([0-9]+)\.(?:old\.)?tmp")
    with suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            if (found := ours.fullmatch(entry.name)) and _abandoned(entry, found[1], int(found[2])):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    with suppress(OSError):
                        Path(entry.path).unlink()


def _start(name: str) -> str:
    """What a temporary's name begins with: the file's name, or a digest where that would make it too long."""
    long = len(os.fsencode(name)) > NAME_BYTES - 40
    return "." + (hashlib.sha256(os.fsencode(name)).hexdigest()[:32] if long else name)


@cache
def _here() -> str:
    """8 hex digits of this machine since it was started, or of this container: where process ids mean something."""
    said = [socket.gethostname()]
    with suppress(OSError):
        said += [Path("/proc/sys/kernel/random/boot_id").read_text(), str(Path("/proc/self/ns/pid").readlink())]
    return hashlib.sha256("\n".join(said).encode()).hexdigest()[:8]


def _abandoned(entry: "os.DirEntry[str]", machine: str | None, process: int) -> bool:
    if machine == _here():
        try:
            os.kill(process, 0)
        except (ProcessLookupError, OverflowError):
            return True
        except OSError:  # it is another user's
            return False
        return False
    with suppress(OSError):
        return time.time() - entry.stat(follow_symlinks=False).st_mtime > OLD_SECONDS
    return False


FREE_SPACE = "free some space and run the same command again; finished work is kept"


def write_error(path: Path, error: OSError) -> Failed:
    """The one-line error for a write to `path` that the system refused."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return Failed(f"{path}: disk full: {FREE_SPACE}")
    return Failed(f"{path}: cannot be written ({error.strerror or error}): check the folder's rights")


def lock_error(path: Path, error: OSError) -> Failed:
    """The one-line error for a lock that the file system of `path` does not have."""
    return Failed(f"{path}: cannot be locked ({error.strerror}): give --runs on another file system")


def read_bounded(path: Path, *, most: int) -> bytes:
    """The bytes of a file. Raises ValueError when they are more than `most`, and OSError."""
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"more than {most:,} bytes")
    return content


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
