"""Progress on stderr: a bar on a terminal, one plain line now and then elsewhere."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
LINE_SECONDS = 15.0


def quiet() -> bool:
    """Whether this is one of several processes under torchrun, and not the first, which speaks for all."""
    return os.environ.get("RANK", "0") != "0"


def log(message: str) -> None:
    """One line on stderr, which leaves a running bar intact. stdout is for the answer.

    A stderr that is full or closed ends no run.
    """
    if not quiet() and sys.stderr is not None:
        with suppress(OSError):
            tqdm.write(message, file=sys.stderr)


class Progress:
    """Counts from `start` to `total`. Use as a context manager; call step() once per item."""

    def __init__(self, name: str, *, total: int, start: int = 0) -> None:
        self.name, self.total, self.done = name, total, start
        self.printed = time.monotonic()
        # disable=None: tqdm draws nothing when stderr is not a terminal.
        self.bar = tqdm(total=total, initial=start, desc=name, disable=quiet() or None, file=sys.stderr, leave=False)

    def step(self, note: str = "") -> None:
        """One item done; `note` (a loss, say) is shown beside the count."""
        self.done += 1
        if not self.bar.disable:
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.update()
        elif not quiet() and (time.monotonic() - self.printed >= LINE_SECONDS or self.done == self.total):
            self.printed = time.monotonic()
            with suppress(OSError):  # see log
                print(f"{self.name}: {self.done}/{self.total} {note}".rstrip(), file=sys.stderr, flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()


def progress(items: Iterable[T], name: str, *, total: int) -> Iterator[T]:
    """Yield `items` under a Progress."""
    with Progress(name, total=total) as shown:
        for item in items:
            yield item
            shown.step()
