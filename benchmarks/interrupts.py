"""SIGTERM and SIGHUP end a command as Ctrl-C does: what it started is ended, and one line is printed."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

NUMBERS = (signal.SIGTERM, signal.SIGHUP)
ONCE_SECONDS = 1.0  # a shell and a supervisor may both send one: those that come so close together are one


class Stopped(KeyboardInterrupt):
    """A signal came that ends the command."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = 128 + number


def exit_code(error: KeyboardInterrupt) -> int:
    """130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP, as shells have it."""
    return error.exit_code if isinstance(error, Stopped) else 130


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM and SIGHUP raise Stopped in what is inside, or whatever that made of it (a dead worker, say).

    A signal that is ignored stays so, as nohup wants it, and one that somebody else handles is left to them.
    """
    handler = _Handler()
    ours = [number for number in NUMBERS if _is_default(number)]
    for number in ours:
        signal.signal(number, handler)
    try:
        yield
    except Exception as error:
        if handler.number is None:
            raise
        raise Stopped(handler.number) from error
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


class _Handler:
    """Raises Stopped; in a process that was forked inside, which has not its own handlers yet, it just ends that."""

    def __init__(self) -> None:
        self.process, self.since = os.getpid(), 0.0
        self.number: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        del frame
        if os.getpid() != self.process:
            os._exit(128 + number)
        now = time.monotonic()
        if self.number is None or now - self.since > ONCE_SECONDS:
            self.number, self.since = number, now
            raise Stopped(number)


def _is_default(number: int) -> bool:
    main = threading.current_thread() is threading.main_thread()  # no other may set a handler
    return main and signal.getsignal(number) == signal.SIG_DFL
