"""One attempt at a job, in a process of its own: alone at it, its output in a log, its failure recorded."""

import errno
import json
import os
import signal
import socket
import sys
import time
import traceback
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from pretrain.files import FREE_SPACE, Failed, write_text
from pretrain.locks import alone

Outcome = Literal["done", "failed", "busy"]


class Job(Protocol):
    """Something to do, under a name that is fit for a path."""

    @property
    def name(self) -> str:
        """Unique among all that shares a `runs` folder."""

    def run(self) -> None:
        """Do it, go on with it, or find it done. Raises Failed."""


@dataclass(frozen=True)
class Papers:
    """The files of one job: who is at it, what it said, how it failed."""

    lock: Path
    log: Path
    failure: Path

    @classmethod
    def of(cls, name: str, folder: Path) -> "Papers":
        """Those of the job `name` in the grid's folder."""
        return cls(*(folder / f"{name}.{kind}" for kind in ("lock", "log", "failed.json")))


@dataclass(frozen=True)
class Failure:
    """How an attempt failed."""

    job: str
    code: int
    message: str
    log: str
    attempt: int
    host: str
    time: str

    @classmethod
    def of(cls, job: str, code: int, message: str, *, log: Path, attempt: int) -> "Failure":
        """One that happened here and now."""
        return cls(job, code, message, str(log), attempt, socket.gethostname(), _now())

    def write(self, path: Path) -> None:
        """Record it."""
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")


def read_failure(path: Path) -> Failure | None:
    """What `write` wrote; None when there is none, or none that can be read."""
    try:
        return Failure(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def attempt(job: Job, *, folder: Path, number: int, threads: int, place: Path | None = None) -> Outcome:
    """Do a job unless another process is at it, or in the `place` that is held for it (a lock).

    A failure is recorded and logged, not raised.
    """
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, _stop)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # submitit's warning that time is up: the checkpoint is there
    papers = Papers.of(job.name, folder)
    with alone(papers.lock) as ours, alone(place) if place else nullcontext(True) as free:
        if not (ours and free):
            return "busy"
        papers.failure.unlink(missing_ok=True)
        _redirect(papers.log)
        print(f"--- {job.name}, attempt {number}, {_now()}, {socket.gethostname()}", file=sys.stderr)
        try:
            _limit(threads)
            job.run()
        except Exception as error:  # whatever it is, the grid goes on without it
            code, message = _told(error)
            print(message, file=sys.stderr)
            Failure.of(job.name, code, message, log=papers.log, attempt=number).write(papers.failure)
            return "failed"
    return "done"


def _stop(number: int, frame: Any) -> None:
    del number, frame
    for ours in (signal.SIGTERM, signal.SIGHUP):  # the launcher sends it until we end, which takes what it takes
        signal.signal(ours, signal.SIG_IGN)
    raise KeyboardInterrupt


def _limit(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


def _redirect(log: Path) -> None:
    """Let all that this process says, C libraries included, go to the end of `log`."""
    sys.stdout.flush()
    sys.stderr.flush()
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _told(error: Exception) -> tuple[int, str]:
    """Exit code and one line, as the command would give them; what nobody foresaw leaves its traceback in the log."""
    if isinstance(error, Failed):
        return error.exit_code, str(error)
    if isinstance(error, ModuleNotFoundError):
        return 3, f"{error.name}: not installed: run `make install`; `bench doctor` says what is missing"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return 1, f"{error.filename or 'the disk'}: disk full: {FREE_SPACE}"
    traceback.print_exc()
    return 1, f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}"
