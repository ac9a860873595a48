"""A grid on its way: start what is ready, look after what runs, start again what died."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from benchmarks.grid.attempt import Failure, Papers, read_failure
from benchmarks.grid.cells import Cell
from benchmarks.grid.display import Display, Durations, Pace, TimeLeft, last_line, stated
from benchmarks.grid.encoders import Given, Places, Rescaling, Training
from benchmarks.grid.launch import Handle, Launcher, last_words, launcher, outcome
from benchmarks.grid.plan import Plan
from benchmarks.grid.survey import Row, encoders
from benchmarks.results import read_results
from pretrain.files import Failed
from pretrain.locks import holder, locked
from pretrain.progress import log

AGAIN_SECONDS = 2.0  # between two looks at a job that another process is at
CLOSED_SECONDS = 60.0  # between two tries of what a scheduler refuses, or two looks for what came to be elsewhere
Standing = Literal["waiting", "running", "done", "failed", "not run"]


class Refused(Failed):
    """The scheduler takes no job at all."""


@dataclass
class Step:
    """A job and how it stands."""

    job: Training | Rescaling | Cell
    needs: "Step | None"
    papers: Papers
    standing: Standing = "waiting"
    file: Path | None = None  # of the encoder, once it is there
    hoped: bool = False  # a cell that is done if its encoder comes out as it says
    handle: Handle | None = None
    slot: int = 0
    since: float = 0.0  # when it was started
    pace: Pace = field(default_factory=Pace)
    again: float = 0.0  # not looked at before
    deaths: int = 0
    failure: Failure | None = None

    @property
    def kind(self) -> str:
        """What jobs that take about as long have in common."""
        job = self.job
        return job.task if isinstance(job, Cell) else job.row if isinstance(job, Training) else "rescaling"

    def encoder_file(self) -> Path | None:
        """The encoder of a cell."""
        return self.needs.file if self.needs else self.file

    @property
    def left(self) -> bool:
        """Whether there is something left to do."""
        return self.standing in ("waiting", "running")


def steps(rows: list[Row], folder: Path) -> dict[str, Step]:
    """Name → job, encoders first."""
    found: dict[str, Step] = {}

    def needed(encoder: Given | Training | Rescaling) -> Step | None:
        return None if isinstance(encoder, Given) else found.get(encoder.name)

    for encoder in encoders(rows):
        needs = needed(encoder.source) if isinstance(encoder, Rescaling) else None
        found[encoder.name] = Step(encoder, needs, Papers.of(encoder.name, folder))
    for row in rows:
        needs = needed(row.encoder)
        for cell, state in row.cells.items():
            done = state == "done"
            standing: Standing = "done" if done and not needs else "waiting"
            papers = Papers.of(cell.name, folder)
            found[cell.name] = Step(cell, needs, papers, standing, row.file, hoped=done)
    return found


class Grid:
    """The jobs of a plan, what starts them, and how long such jobs take."""

    def __init__(self, plan: Plan, found: dict[str, Step], *, launcher: Launcher, durations: Durations) -> None:
        self.plan, self.steps, self.launcher, self.durations = plan, found, launcher, durations
        self.closed = 0.0  # no job is submitted before
        self.display = Display(total=len(found), done=self.done())

    def done(self) -> int:
        """How many jobs are done."""
        return sum(step.standing == "done" for step in self.steps.values())

    def handles(self) -> dict[str, Handle]:
        """The jobs that this process started and that are not known to be over."""
        return {name: step.handle for name, step in self.steps.items() if step.handle}

    def fill(self) -> None:
        """Until nothing is left to do. On Ctrl-C, end what was started."""
        with self.display:
            try:
                while any(step.left for step in self.steps.values()):
                    self.look()
                    time.sleep(self.launcher.poll)
            except BaseException:
                if handles := self.handles():
                    self.display.say(f"grid: ending {len(handles)} jobs")
                    self.launcher.cancel(handles)
                raise

    def look(self) -> None:
        """Settle what is over, start what can be, show how it stands."""
        for name in sorted(self.launcher.over(self.handles())):
            with self.losing(self.steps[name]):
                self.settle(self.steps[name])
        for step in self.steps.values():
            if step.standing == "waiting":
                with self.losing(step):
                    self.start(step)
        running = {name: last_line(self.steps[name].papers.log) for name in self.handles()}
        for name, line in running.items():
            self.steps[name].pace.look(line)
        self.display.count(self.done())
        self.display.look(running, self.time_left())

    @contextmanager
    def losing(self, step: Step) -> Iterator[None]:
        """A job that cannot be looked at (its data or its encoder is gone) is lost, and the others go on."""
        try:
            yield
        except Refused:
            raise
        except (Failed, OSError) as error:
            self.lose(step, str(error))

    def start(self, step: Step) -> None:
        """Start a job if what it needs is there, nobody else is at it, and there is room."""
        needs = step.needs
        if needs and needs.standing in ("failed", "not run"):
            self.end(step, "not run", "not run: its encoder is not there")
        if (needs and needs.standing != "done") or time.monotonic() < max(step.again, self.closed):
            return
        if holder(step.papers.lock) is not None:
            if not step.again:
                self.display.say(f"{step.job.name}: another process is at it")
            step.again = time.monotonic() + AGAIN_SECONDS
        elif (slot := self.slot()) is None:
            return
        elif self.is_done(step):
            self.end(step, "done", "done")
        elif step.again and self.failed(step):  # there, after we began
            self.end(step, "failed", f"failed elsewhere: {step.failure and step.failure.message}")
        else:
            self.submit(step, slot)

    def submit(self, step: Step, slot: int) -> None:
        """Submit a job. What is refused once jobs were accepted (too many at a time, say) is tried again later."""
        file, job = step.encoder_file(), step.job
        job = job.with_file(file) if file and isinstance(job, Cell) else job
        try:
            step.handle = self.launcher.submit(job, number=step.deaths + 1, slot=slot)
        except Failed as error:
            if not any(other.since for other in self.steps.values()):  # none was ever accepted
                raise Refused(str(error)) from error
            self.closed = time.monotonic() + CLOSED_SECONDS
            self.display.say(f"{step.job.name}: {error}: tried again in {CLOSED_SECONDS:.0f} s")
            return
        step.standing, step.slot, step.since, step.pace = "running", slot, time.monotonic(), Pace()
        self.display.say(f"{step.job.name}: started")

    def slot(self) -> int | None:
        """The first free place among the workers."""
        places = range(self.launcher.workers or len(self.steps))
        used = {step.slot for step in self.steps.values() if step.handle}
        return next((slot for slot in places if slot not in used and not self.launcher.taken(slot)), None)

    def settle(self, step: Step) -> None:
        """A job is over: done, failed, busy elsewhere, or dead."""
        assert step.handle
        handle, step.handle, seconds = step.handle, None, time.monotonic() - step.since
        word = outcome(handle)
        if self.is_done(step):
            self.durations.note(step.kind, seconds)
            self.end(step, "done", f"done in {_duration(seconds)}")
        elif word == "busy":
            step.standing, step.again = "waiting", time.monotonic() + AGAIN_SECONDS
        elif word == "failed" and self.failed(step):
            self.end(step, "failed", f"failed: {step.failure and step.failure.message}")
        elif word == "done":  # by its own word
            self.unseen(step)
        else:
            self.died(step, last_words(handle))

    def died(self, step: Step, words: str) -> None:
        """Start a dead job again, or give it up."""
        step.deaths += 1
        words = f" ({words})" if words else ""
        if step.deaths < self.plan.launch.attempts:
            step.standing = "waiting"
            self.display.say(f"{step.job.name}: died{words}: started again, to go on where it was")
        else:
            self.lose(step, f"died {step.deaths} times{words}")

    def unseen(self, step: Step) -> None:
        """Look again later for what a job says it made (another machine's file may come late), or give it up."""
        step.deaths += 1
        if step.deaths < self.plan.launch.attempts:
            step.standing, step.again = "waiting", time.monotonic() + CLOSED_SECONDS
            self.display.say(f"{step.job.name}: ended, but what it made is not here yet: looked for again")
        else:
            self.lose(step, "ended, but what it made is not the plan's: did its data change? run the plan again")

    def lose(self, step: Step, message: str) -> None:
        """Record a failure that the job itself did not."""
        step.failure = Failure.of(step.job.name, 1, message, log=step.papers.log, attempt=step.deaths)
        step.failure.write(step.papers.failure)
        self.end(step, "failed", f"failed: {message}")

    def is_done(self, step: Step) -> bool:
        """Look whether a job is done, by whomever; an encoder's file is then noted."""
        job = step.job
        if isinstance(job, Cell):
            return job.state(step.encoder_file(), *self.plan.read[job.task]) == "done"
        step.file = job.file()
        return step.file is not None

    def failed(self, step: Step) -> bool:
        """Whether the job's failure is recorded, since this grid began; it is then noted."""
        path = step.papers.failure
        new = path.is_file() and path.stat().st_mtime >= self.launcher.began
        step.failure = read_failure(path) if new else None
        return step.failure is not None

    def end(self, step: Step, standing: Standing, said: str) -> None:
        """Nothing more to do with a job."""
        step.standing = standing
        self.display.say(f"{step.job.name}: {said}")

    def time_left(self) -> TimeLeft:
        """Until all is done, as far as it is known of each job."""
        work = {name: self.seconds(step) for name, step in self.steps.items() if step.left and not step.hoped}
        known = {name: seconds for name, seconds in work.items() if seconds is not None}
        workers = self.launcher.workers or len(self.steps)
        longest = (sum(known.get(s.job.name, 0.0) for s in _line(self.steps[name])) for name in known)
        seconds = max([sum(known.values()) / workers, *longest]) if known or not work else None
        return TimeLeft(seconds, whole=len(known) == len(work))

    def seconds(self, step: Step) -> float | None:
        """What a job still needs: by the durations of such jobs, else by its own pace."""
        expected = self.durations.expected(step.kind)
        if expected is None:
            return step.pace.left() if step.handle else None
        return max(expected - (time.monotonic() - step.since if step.handle else 0.0), 0.0)


def _line(step: Step) -> Iterator[Step]:
    """A job and what has to be done before it."""
    yield step
    if step.needs:
        yield from _line(step.needs)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def fill(plan: Plan, rows: list[Row], places: Places, *, kind: str, workers: int | None) -> bool:
    """Do what is left to do of a surveyed plan; whether all of it is done. What failed is told on stderr."""
    found = steps(rows, places.runs / "grid")
    if any(step.left for step in found.values()):
        chosen = launcher(kind, plan.launch, runs=places.runs, workers=workers)
        known: dict[str, float] = {}
        with suppress(Failed):  # a damaged result, which the table will name
            known = stated(read_results(places.results, recipe=plan.recipe))
        with locked(chosen.lock):
            Grid(plan, found, launcher=chosen, durations=Durations(known)).fill()
    failed = [step for step in found.values() if step.standing == "failed"]
    for step in failed:
        log(f"{step.job.name}: {step.failure and step.failure.message} (log: {step.papers.log})")
    if left_out := [step.job.name for step in found.values() if step.standing == "not run"]:
        log(f"not run, as their encoder failed: {', '.join(left_out)}")
    log(f"grid: {sum(step.standing == 'done' for step in found.values())} of {len(found)} jobs done")
    return all(step.standing == "done" for step in found.values())
