"""What a grid shows of itself on stderr: one bar on a terminal, plain lines elsewhere, and the time left."""

import re
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median

from benchmarks.results import Result
from pretrain.progress import Progress, log

LINE_SECONDS = 60.0
BAR = 50  # columns that are taken before what is running
TAIL = 4096  # bytes of a log in which its last line is looked for


@dataclass
class Durations:
    """Seconds that jobs took, by kind: those of this grid count, else those that earlier results state."""

    stated: Mapping[str, float]
    measured: dict[str, list[float]] = field(default_factory=dict)

    def note(self, kind: str, seconds: float) -> None:
        """One job more."""
        self.measured.setdefault(kind, []).append(seconds)

    def expected(self, kind: str) -> float | None:
        """For a job of this kind; None when none is known."""
        return mean(self.measured[kind]) if kind in self.measured else self.stated.get(kind)


def stated(results: Iterable[Result]) -> dict[str, float]:
    """Kind of job → the seconds that results of a recipe state: a task's, a row's for its pre-training."""
    found: dict[str, list[float]] = {}
    for result in results:
        provenance = result["encoder"]["provenance"]
        row = "-".join(filter(None, (result["method"], result["variant"])))
        if not result["resumed"]:
            found.setdefault(result["task"], []).append(result["seconds"])
        if provenance.get("seconds") and "rescaled" not in provenance:
            found.setdefault(row, []).append(provenance["seconds"])
    return {kind: median(seconds) for kind, seconds in found.items()}


@dataclass
class Pace:
    """How fast a job that runs gets on, by the counts that its log shows: "autoencoder: 25/60 loss 2918"."""

    what: str = ""
    first: tuple[float, int] = (0.0, 0)  # when this count was first seen, and where it stood
    last: tuple[float, int, int] = (0.0, 0, 0)  # when it was seen last, where, of how many

    def look(self, line: str) -> None:
        """Take note of the last line of the log."""
        if found := re.match(r"(.+): +(\d+)/(\d+)\b", line):
            now, done, total = time.monotonic(), int(found[2]), int(found[3])
            if found[1] != self.what:
                self.what, self.first = found[1], (now, done)
            if (done, total) != self.last[1:]:
                self.last = now, done, total

    def left(self) -> float | None:
        """Seconds until the end of this count; None before it moved."""
        (began, start), (now, done, total) = self.first, self.last
        return (now - began) / (done - start) * (total - done) if done > start else None


@dataclass(frozen=True)
class TimeLeft:
    """Seconds (None: nothing is known); whether that is the whole, or jobs are left of which nothing is known."""

    seconds: float | None
    whole: bool

    def __str__(self) -> str:
        if self.seconds is None:
            return "time left not known yet"
        minutes, about = self.seconds / 60, "about" if self.whole else "at least"
        if minutes < 1.5:
            return f"{about} a minute left"
        return f"{about} {minutes:.0f} min left" if minutes < 90 else f"{about} {minutes / 60:.1f} h left"


def last_line(path: Path) -> str:
    """The last line of a log that is the job's own, or ""."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip() and not line.startswith("submitit ")), "")


class Display:
    """The grid's one progress display. Use as a context manager."""

    def __init__(self, *, total: int, done: int) -> None:
        self.shown = Progress("grid", total=total, start=done)
        self.shown.bar.bar_format = "{desc}: {n_fmt}/{total_fmt} |{bar:20}| {elapsed}{postfix}"
        self.lined = time.monotonic()

    def say(self, message: str) -> None:
        """One line, now."""
        log(message)

    def count(self, done: int) -> None:
        """So many jobs are done by now."""
        self.shown.done = self.shown.bar.n = done

    def look(self, running: Mapping[str, str], left: TimeLeft) -> None:
        """What is running, with the last line of its log; called often, shown in measure."""
        shown, told = self.shown, [f"{name}: {line}" for name, line in running.items()]
        if not shown.bar.disable:
            room = shutil.get_terminal_size().columns - BAR
            shown.bar.set_postfix_str("; ".join([str(left), *told])[: max(room, 0)])
        elif time.monotonic() - self.lined >= LINE_SECONDS:
            self.lined = time.monotonic()
            log(f"grid: {shown.done}/{shown.total} jobs, {left}")
            for line in told:
                log(f"  {line}")

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *_: object) -> None:
        self.shown.bar.close()
