"""Pools of processes and of threads. Worker processes leave Ctrl-C to their parent, and die when it does."""

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from pretrain.files import Failed

PR_SET_PDEATHSIG = 1  # prctl(2)
LOOK_SECONDS = 0.5  # between two looks at what the system does not tell


@contextmanager
def processes(what: str) -> Iterator[ProcessPoolExecutor]:
    """A worker process for each core; whatever ends this drops what has not begun, and ends them.

    After kill -9 of this process too: the system then kills them. Raises Failed, beginning with `what`, when a worker
    is killed.
    """
    with ProcessPoolExecutor(os.cpu_count(), initializer=_begin, initargs=(os.getpid(),)) as pool:
        try:
            yield pool
        except BrokenProcessPool as error:
            raise Failed(f"{what} process was killed (out of memory?): free some memory and run it again") from error
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def threads(count: int | None = None) -> Iterator[ThreadPoolExecutor]:
    """`count` threads (default: some for each core); whatever ends this drops what has not begun."""
    with ThreadPoolExecutor(count) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)


def _begin(parent: int) -> None:
    """What a worker does first. Its pool ends a broken set of workers by SIGTERM, so that has to work as usual."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with(parent)


def die_with(parent: int) -> None:
    """Let the system kill this process when its parent `parent` is gone, or was before this was called.

    Linux means the thread that made this process: a pool's is the one that waits for it.
    """
    try:
        asked = ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) == 0
    except (OSError, AttributeError):  # not Linux
        asked = False
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    if not asked:
        watch_parent()


def watch_parent() -> None:
    """The same by looking, now and then: for what some thread of the parent may have started."""
    parent = os.getppid()
    die_when(lambda: os.getppid() != parent)


def die_when(over: Callable[[], bool]) -> None:
    """Kill this process once `over` says so, which a thread asks now and then."""

    def watch() -> None:
        while not over():
            time.sleep(LOOK_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
