"""How jobs get their own processes: on this machine or through Slurm, both by submitit."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import submitit

from benchmarks.grid.attempt import Job, Outcome, Papers, attempt
from benchmarks.grid.plan import Launch
from pretrain.files import Failed, Missing, Usage, write_error
from pretrain.locks import holder

Handle = submitit.Job[Outcome]
FOREVER = 60 * 24 * 365  # minutes: a local job has no time limit
GRACE = 30.0  # seconds that a cancelled job is given


class Launcher(Protocol):
    """A way to start jobs."""

    workers: int | None  # at once; None: as many as there are
    poll: float  # seconds between two looks
    began: float  # by the clock of the file system

    @property
    def lock(self) -> Path:
        """Held while the grid is on its way."""

    def taken(self, slot: int) -> bool:
        """Whether a job that another grid started is in place `slot` of the workers."""

    def submit(self, job: Job, *, number: int, slot: int) -> Handle:
        """Start attempt `number` of a job in a place. Raises Failed, with the scheduler's words, when it is refused."""

    def over(self, handles: Mapping[str, Handle]) -> set[str]:
        """Which of the jobs no longer run, nor will."""

    def cancel(self, handles: Mapping[str, Handle]) -> None:
        """End the jobs, and wait until they have ended."""


def outcome(handle: Handle) -> Outcome | None:
    """What an attempt that is over came to; None when it died without a word."""
    if not handle.paths.result_pickle.exists():
        return None
    try:
        return handle.result()
    except Exception:  # submitit's own, when the job never came to our code: its log says why
        return None


def last_words(handle: Handle) -> str:
    """What the scheduler says of a job's end (its first error); or a process that did not start, in its last line."""
    lines: list[str] = []
    for path in (handle.paths.stdout, handle.paths.stderr):
        with suppress(OSError):
            said = map(str.strip, path.read_text(errors="replace").splitlines())
            lines += [line for line in said if line and not line.startswith("submitit INFO")]
    return next((line for line in lines if " error: " in line), lines[-1] if lines else "")


@dataclass
class Local:
    """Processes of this machine, at most `workers` at once, each with a GPU of its own if there are enough.

    They end when the grid does, even by kill -9, and its lock is free.
    """

    folder: Path
    began: float
    threads: int
    workers: int | None
    gpus: tuple[int, ...]
    poll: float = 0.25

    @property
    def lock(self) -> Path:
        """See Launcher."""
        return self.folder / "grid.lock"

    def place(self, slot: int) -> Path:
        """A lock of this machine's: that of a GPU, or of the jobs that share it; without GPUs that of a worker."""
        gpus = self.gpus
        name = f"gpu{gpus[slot % len(gpus)]}-{slot // len(gpus)}" if gpus else f"worker{slot}"
        return _grid(self.folder) / "places" / f"{socket.gethostname()}-{name}.lock"

    def taken(self, slot: int) -> bool:
        """See Launcher."""
        return holder(self.place(slot)) is not None

    def submit(self, job: Job, *, number: int, slot: int) -> Handle:
        """See Launcher."""
        words = [sys.executable, "-m", "benchmarks.grid.begin", str(self.lock)]
        executor = submitit.LocalExecutor(self.folder, python=shlex.join(words))
        gpus = [self.gpus[slot % len(self.gpus)]] if self.gpus else []
        executor.update_parameters(timeout_min=FOREVER, gpus_per_node=len(gpus), visible_gpus=gpus)
        folder = _grid(self.folder)
        with _environment(self.threads), _ignoring():
            return executor.submit(
                attempt, job, folder=folder, number=number, threads=self.threads, place=self.place(slot)
            )

    def over(self, handles: Mapping[str, Handle]) -> set[str]:
        """See Launcher."""
        return {name for name, handle in handles.items() if handle.done()}

    def cancel(self, handles: Mapping[str, Handle]) -> None:
        """See Launcher. SIGTERM, as the jobs ignore Ctrl-C; later SIGKILL, of submitit's process and the job."""
        end = time.monotonic() + GRACE
        left = set(handles)
        while left := left - self.over({name: handles[name] for name in left}):
            late = time.monotonic() >= end
            for name in left:
                process = holder(Papers.of(name, _grid(self.folder)).lock) if late else None
                for number in filter(None, (process, int(handles[name].job_id))):
                    with suppress(ProcessLookupError):
                        os.kill(number, signal.SIGKILL if late else signal.SIGTERM)
            time.sleep(0.3)


@dataclass
class Slurm:
    """Slurm's queue. What is left of a job is asked of squeue, as not every Slurm keeps accounts (sacct)."""

    folder: Path
    began: float
    threads: int
    launch: Launch
    workers: int | None = None
    poll: float = 3.0
    gone: set[str] = field(default_factory=set)  # not in the queue when it was last asked

    @property
    def lock(self) -> Path:
        """See Launcher. Nobody looks at it: jobs in the queue outlive the grid."""
        return self.folder / "grid.lock"

    def taken(self, slot: int) -> bool:
        """See Launcher. Slurm itself finds room."""
        del slot
        return False

    def submit(self, job: Job, *, number: int, slot: int) -> Handle:
        """See Launcher."""
        del slot
        executor = submitit.SlurmExecutor(self.folder)
        asked = {
            "partition": self.launch.partition,
            "gpus_per_node": self.launch.gpus or None,
            "cpus_per_task": self.launch.cpus or self.threads,
            "mem": self.launch.memory and f"{self.launch.memory}GB",
            "additional_parameters": dict(self.launch.slurm),
        }
        asked = {key: value for key, value in asked.items() if value is not None}
        executor.update_parameters(job_name=f"bench {job.name}", time=self.launch.minutes, **asked)
        folder = _grid(self.folder)
        try:
            with _environment(self.threads):
                return executor.submit(attempt, job, folder=folder, number=number, threads=self.threads)
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            raise Failed(
                f"sbatch refuses: {' '.join(str(error).split())}: correct the plan's `launch`, or see sinfo"
            ) from error

    def over(self, handles: Mapping[str, Handle]) -> set[str]:
        """See Launcher. A job that left the queue is over at the second look: its last file may come late."""
        told = {name for name, handle in handles.items() if handle.paths.result_pickle.exists()}
        queue = self._queue() if told != set(handles) else set()
        if queue is None:  # the controller does not answer: nothing is known
            return told
        gone = {name for name, handle in handles.items() if handle.job_id not in queue} - told
        twice = gone & self.gone
        self.gone = gone - twice  # what is over may be submitted again, and then starts anew
        return told | twice

    def _queue(self) -> set[str] | None:
        command = ["squeue", "--noheader", "--format=%i", f"--user={os.getuid()}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return set(done.stdout.split())

    def cancel(self, handles: Mapping[str, Handle]) -> None:
        """See Launcher."""
        for handle in handles.values():
            handle.cancel(check=False)


def launcher(kind: str, launch: Launch, *, runs: Path, workers: int | None) -> Launcher:
    """The launcher of that name, with a folder of its own for what submitit keeps. Raises Missing without a Slurm."""
    workers = workers or launch.workers
    if kind == "slurm":
        if submitit.SlurmExecutor.affinity() < 0:
            raise Missing("--launcher slurm: no srun here: run it on a machine of the cluster, or leave it out")
        return Slurm(*_begin(runs), launch.threads or launch.cpus or 1, launch, workers)
    gpus = _gpus()
    workers = workers or max(1, len(gpus))
    return Local(*_begin(runs), launch.threads or max(1, (os.cpu_count() or 1) // workers), workers, gpus)


def _grid(submitted: Path) -> Path:
    """Where locks, logs and failures lie: beside what submitit keeps."""
    return submitted.parents[1]


def _begin(runs: Path) -> tuple[Path, float]:
    """A new folder for what submitit keeps, and the time at which it was made."""
    folder = runs / "grid" / "submitted" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise write_error(folder, error) from error
    return folder, folder.stat().st_mtime


def _gpus() -> tuple[int, ...]:
    """The numbers of the GPUs that this process may use."""
    import torch

    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is None or not torch.cuda.is_available():
        return tuple(range(torch.cuda.device_count()))
    try:
        return tuple(int(number) for number in said.split(","))
    except ValueError:
        raise Usage(f"CUDA_VISIBLE_DEVICES={said}: give GPUs by number, as 0,1") from None


@contextmanager
def _environment(threads: int) -> Iterator[None]:
    """What a job's process inherits: the number of threads, before any library is loaded."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


@contextmanager
def _ignoring() -> Iterator[None]:
    """What starts here ignores a terminal's Ctrl-C and its end: they are for the grid, which then ends its jobs."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGHUP))  # ours come when this is over
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
