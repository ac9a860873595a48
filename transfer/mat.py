"""MATLAB files, read in another process: a damaged one crashes SciPy's reader, here only that process.

One process serves all reads, since SBD has 11,000 files; it ends with its last pipe, so with ours at the latest.
"""

import atexit
import contextlib
import io
import os
import re
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pretrain.contents import head_of, mistaken
from pretrain.files import Failed, Missing

MEMORY = 8 * 2**30  # bytes of address space for the process that reads
PATIENCE = 300.0  # seconds for one file: SBD's take milliseconds, Fast R-CNN's largest some ten seconds
LENGTH = struct.Struct("<q")  # of the answer that follows; negative: of an error's text

Arrays = dict[str, NDArray[Any]]


def read_mat(path: Path, names: Sequence[str]) -> dict[str, list[NDArray[Any]]]:
    """The variables `names` of a MATLAB file: those that are there, each a list of arrays.

    "a" is an array, a list of one; "a.b" the field b of the struct a; "a{}" the cells of the cell array a, in
    MATLAB's order of columns. Raises Missing without the file; Failed when it cannot be read, or when a variable is of
    another kind.
    """
    if not path.is_file():
        raise Missing(f"{path}: no such file: complete the data, then run the same command again")
    if why := mistaken(head_of(path), ".mat"):
        raise Failed(f"{path}: {why}")
    answer = _READER.ask("\0".join([str(path.absolute()), *names]))
    if isinstance(answer, str):
        raise Failed(f"{path}: not a readable MATLAB file ({answer}): get it again")
    found: dict[str, list[NDArray[Any]]] = {}
    with np.load(io.BytesIO(answer), allow_pickle=False) as arrays:
        for key in arrays.files:
            found.setdefault(key.split("/")[0], []).append(arrays[key])
    return {name: found.get(name, []) for name in names if name in found}


class _Reader:
    """The process that reads, begun when it is needed; a fork of ours begins its own."""

    def __init__(self) -> None:
        self.child: subprocess.Popen[bytes] | None = None
        self.owner, self.lock = 0, threading.Lock()

    def ask(self, question: str) -> bytes | str:
        """The arrays as an .npz, or what went wrong."""
        with self.lock:
            if self.child is None or self.owner != os.getpid() or self.child.poll() is not None:
                self.begin()
            assert self.child
            timer = threading.Timer(PATIENCE, self.child.kill)
            timer.start()
            try:
                return self.answer(question.encode("utf-8", "surrogateescape"))
            except (OSError, struct.error):
                code = self.end()
                return f"SciPy's reader crashed or took too long, signal {-code}" if code < 0 else f"exit {code}"
            except BaseException:  # Ctrl-C: what would be read next is the answer to another question
                self.end()
                raise
            finally:
                timer.cancel()

    def answer(self, question: bytes) -> bytes | str:
        """Send a question, receive its answer. Raises OSError or struct.error when the process died."""
        assert self.child
        assert self.child.stdin
        assert self.child.stdout
        self.child.stdin.write(LENGTH.pack(len(question)) + question)
        self.child.stdin.flush()
        (length,) = LENGTH.unpack(self.child.stdout.read(LENGTH.size))
        content = self.child.stdout.read(abs(length))
        if len(content) != abs(length):
            raise OSError("broke off")
        return content if length >= 0 else content.decode("utf-8", "replace")

    def begin(self) -> None:
        """Start the process, of a session of its own: Ctrl-C is for us."""
        self.end()
        self.owner = os.getpid()
        self.child = subprocess.Popen(
            [sys.executable, "-P", "-m", "transfer.mat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, start_new_session=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"},
        )  # fmt: skip

    def end(self) -> int:
        """End the process; return its exit status, negative where a signal ended it."""
        child, self.child = self.child, None
        if child is None or self.owner != os.getpid():
            return 0
        for pipe in (child.stdin, child.stdout):
            with contextlib.suppress(OSError):
                if pipe:
                    pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(2)  # it ends with its pipe, if it has not crashed
        child.kill()
        return child.wait()


_READER = _Reader()
atexit.register(_READER.end)


def serve(questions: IO[bytes], answers: IO[bytes]) -> None:
    """Answer until the pipe is closed."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while len(head := questions.read(LENGTH.size)) == LENGTH.size:
        path, *names = questions.read(*LENGTH.unpack(head)).decode("utf-8", "surrogateescape").split("\0")
        try:
            buffer = io.BytesIO()
            np.savez(buffer, allow_pickle=False, **_arrays(path, names))
            answers.write(LENGTH.pack(buffer.getbuffer().nbytes) + buffer.getbuffer())
        except Exception as error:  # SciPy and zlib raise many kinds on a damaged file
            said = (" ".join(f"{error}".split())[:200] or type(error).__name__).encode()
            answers.write(LENGTH.pack(-len(said)) + said)
        answers.flush()


def _arrays(path: str, names: Sequence[str]) -> Arrays:
    """ "name/0", "name/1", …: the cells of what is there of `names`."""
    from scipy.io import loadmat

    content = loadmat(path, variable_names=[re.split(r"[.{]", name)[0] for name in names])
    found: Arrays = {}
    for name in names:
        variable, *fields = name.removesuffix("{}").split(".")
        if variable not in content:
            continue
        value = np.asarray(content[variable])
        for field in fields:
            value = np.asarray(value[field].flat[0])
        if name.endswith("{}") and value.dtype != object:
            raise ValueError(f"{variable} is no cell array")
        for index, cell in enumerate(value.ravel(order="F") if name.endswith("{}") else [value]):
            array = np.asarray(cell)
            if array.dtype.hasobject:
                raise ValueError(f"{variable} holds cells or structs where arrays are expected")
            found[f"{name}/{index}"] = array
    return found


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
