"""A training run's log: log.jsonl, one JSON object per line, and the same scalars for TensorBoard."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from pretrain.files import write_error, write_text
from pretrain.progress import log


class Journal:
    """The log in a run's folder; with `writes` False it only counts (one of several processes writes).

    Lines after `start` (written before a crash, after the last checkpoint) are dropped, and torn ones.
    """

    def __init__(self, folder: Path, *, start: int, writes: bool = True) -> None:
        self.path, self.note, self.writes = folder / "log.jsonl", "", writes
        self.waited, self.since, self.iteration = 0.0, time.monotonic(), start
        if not writes:
            return
        write_text(self.path, "".join(f"{line}\n" for line in _kept(self.path, start)))
        with self._writing():
            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise write_error(self.path, error) from error

    def timed(self, stream: Iterator[Any]) -> Iterator[Any]:
        """Pass batches on, adding up the time that the loop waits for them."""
        while True:
            asked = time.monotonic()
            images = next(stream, None)
            self.waited += time.monotonic() - asked
            if images is None:
                if self.writes:
                    with self._writing():
                        self.board.close()
                return
            yield images

    def write(self, iteration: int, *, loss: float, images: int, seconds: float) -> None:
        """One line: loss, images/s and the share of time spent waiting for data since the last."""
        elapsed = time.monotonic() - self.since
        record = {
            "iteration": iteration,
            "loss": loss,
            "images_per_second": round((iteration - self.iteration) * images / elapsed, 2),
            "waiting_share": round(self.waited / elapsed, 4),
            "seconds": round(seconds, 1),
        }
        if self.writes:
            self._append(record, iteration)
        self.note = f"loss {loss:.4g}, {record['images_per_second']:.0f} images/s"
        self.waited, self.since, self.iteration = 0.0, time.monotonic(), iteration

    def _append(self, record: dict[str, Any], iteration: int) -> None:
        with self._writing():
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
            for name in ("loss", "images_per_second", "waiting_share"):
                self.board.add_scalar(name, record[name], iteration)


def _kept(path: Path, start: int) -> list[str]:
    """The lines of a log up to iteration `start`; those that are torn or not a log's are left out, which is said."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []
    except OSError as error:
        raise write_error(path, error) from error
    numbers = [_iteration(line) for line in lines]
    if damaged := sum(number is None and bool(line) for line, number in zip(lines, numbers, strict=True)):
        log(f"{path}: {damaged} damaged lines left out")
    return [line for line, number in zip(lines, numbers, strict=True) if number is not None and number <= start]


def _iteration(line: str) -> int | None:
    """The iteration that a line of a log is of, None where it is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    number = record.get("iteration") if isinstance(record, dict) else None
    return number if type(number) is int and number >= 0 else None
