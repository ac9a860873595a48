"""Two at once, and what is left behind: locks on runs, signals, workers of killed processes, temporary files."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

import pretrain.train as loop
from benchmarks import cli, run
from benchmarks.interrupts import Stopped, stoppable
from pretrain import Folders, files
from pretrain.alexnet import Encoder
from pretrain.files import atomic, sweep, temporary_name, write_text
from pretrain.locks import alone, locked
from pretrain.train import Config, pretrain

CPU = torch.device("cpu")
CONFIG = Config("random", None, "l2", iterations=0, batch=0, rate=0.0, seed=0)


def process(code: str, *arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def line(started: "subprocess.Popen[str]") -> str:
    assert started.stdout
    return started.stdout.readline().strip()


def wait_until(found: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not found():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_alive(number: int) -> bool:
    """Whether the process runs: one that nobody has fetched the end of does not."""
    with suppress(OSError):
        return Path(f"/proc/{number}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    return False


# ---- two at once ----


HOLD = """
import sys
from pathlib import Path
from pretrain.locks import locked
with locked(Path(sys.argv[1])):
    print("holds", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def hold(tmp_path: Path):
    """Hold a lock in another process; write a line to that process to let go."""
    started: list[subprocess.Popen[str]] = []

    def hold(path: Path) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", HOLD, str(path)]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert line(started[-1]) == "holds"
        return started[-1]

    yield hold
    for one in started:
        one.kill()
        one.communicate()


def test_who_waits_says_for_whom(hold, tmp_path: Path, capsys, monkeypatch) -> None:
    path = tmp_path / "run.lock"
    other = hold(path)
    with alone(path) as ours:
        assert not ours
    take = locks_taken(monkeypatch, lambda: other.communicate("\n", timeout=20))
    with locked(path):
        assert path.read_text().startswith(f"process {os.getpid()} on ")
    assert take == [True]
    err = capsys.readouterr().err
    assert err.startswith(f"{path}: waiting for process {other.pid} on {os.uname().nodename}, since 2")
    assert err.count("\n") == 1
    assert path.read_text() == ""


def locks_taken(monkeypatch, let_go: Callable[[], object]) -> list[bool]:
    """Call `let_go` when a lock is about to be waited for; the list then holds True."""
    import fcntl

    called: list[bool] = []
    real = fcntl.lockf

    def lockf(file, how):
        if not how & fcntl.LOCK_NB and not called:
            called.append(True)
            let_go()
        return real(file, how)

    monkeypatch.setattr(fcntl, "lockf", lockf)
    return called


def test_of_two_pretrainings_one_waits_and_finds_the_other_s_encoder(hold, tmp_path: Path, monkeypatch, capsys) -> None:
    """The lock of a run is held while it is trained; who waited for it looks again before it trains."""
    encoder = pretrain(CONFIG, folders=Folders(), runs=tmp_path, device=CPU)
    whole, lock = encoder.read_bytes(), encoder.parent.with_name(f"{encoder.parent.name}.lock")
    encoder.unlink()
    other = hold(lock)

    def finish() -> None:  # as the other one would
        encoder.write_bytes(whole)
        other.communicate("\n", timeout=20)

    assert locks_taken(monkeypatch, finish) == []
    monkeypatch.setattr(loop, "_train", lambda run: pytest.fail("trained twice"))
    assert pretrain(CONFIG, folders=Folders(), runs=tmp_path, device=CPU) == encoder
    err = capsys.readouterr().err
    assert f"{lock}: waiting for process {other.pid} on " in err
    assert f"{encoder}: already trained" in err


def test_a_run_is_locked_while_it_is_trained(tmp_path: Path, monkeypatch) -> None:
    train, free = loop._train, []

    def looking(given: loop.Run) -> float:
        lock = given.folder.with_name(f"{given.folder.name}.lock")
        code = (
            "import sys; from pathlib import Path; from pretrain.locks import holder; print(holder(Path(sys.argv[1])))"
        )
        free.append(process(code, lock).communicate(timeout=60)[0])
        return train(given)

    monkeypatch.setattr(loop, "_train", looking)
    pretrain(CONFIG, folders=Folders(), runs=tmp_path, device=CPU)
    assert free == [f"{os.getpid()}\n"]


def test_of_two_transfers_one_waits_and_finds_the_other_s_result(
    hold, tmp_path: Path, encoder: Encoder, tiny: Path, monkeypatch, capsys
) -> None:
    """And the work of the one that is on its way is not removed."""
    given = {
        "recipe": "tiny",
        "data": tiny,
        "seed": 0,
        "results": tmp_path / "results",
        "runs": tmp_path,
        "device": CPU,
    }
    (path,) = run.transfer(encoder, tasks=["knn"], **given)
    (lock,) = (tmp_path / "transfer").rglob("knn-*.lock")
    whole = path.read_bytes()
    path.unlink()
    work = lock.with_suffix("")
    write_text(work / "checkpoint.pt", "of the other")
    other = hold(lock)

    def finish() -> None:
        assert (work / "checkpoint.pt").read_text() == "of the other"
        path.write_bytes(whole)
        other.communicate("\n", timeout=20)

    locks_taken(monkeypatch, finish)
    assert run.transfer(encoder, tasks=["knn"], **given) == [path]
    err = capsys.readouterr().err
    assert f"{lock}: waiting for process {other.pid} on " in err
    assert err.endswith(f"{path}: finished, reused\n")
    assert not work.exists()
    work.mkdir()  # as one leaves it that was killed when its result was written
    assert run.transfer(encoder, tasks=["knn"], **given) == [path]
    assert not work.exists()


# ---- signals ----


WAIT = """
import signal, sys, time
from benchmarks import cli
class Parser:
    def parse_args(self, arguments):
        return self
    def command(self, options):
        print("ready", flush=True)
        sys.__stdout__.write("ready\\n"); sys.__stdout__.flush()
        time.sleep(30)
        return 0, "slept"
cli.parser = Parser
if sys.argv[1] != "-": signal.signal(int(sys.argv[1]), signal.SIG_IGN)
sys.exit(cli.main([]))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_signals_end_a_command_as_control_c_does(number: signal.Signals, code: int) -> None:
    """Also where Ctrl-C is ignored, as in the background of a shell."""
    started = process(WAIT, "-" if number == signal.SIGINT else int(signal.SIGINT))
    assert line(started) == "ready"
    started.send_signal(number)
    out, err = started.communicate(timeout=20)
    assert (started.returncode, out) == (code, "")
    assert err.splitlines()[-1] == "bench: interrupted; the same command goes on from the last checkpoint"
    assert "Traceback" not in err


def test_under_nohup_the_end_of_a_terminal_is_ignored() -> None:
    started = process(WAIT, int(signal.SIGHUP))
    assert line(started) == "ready"
    started.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        started.wait(0.3)
    started.terminate()
    assert started.wait(20) == 143
    started.communicate()


def test_what_a_signal_led_to_counts_as_the_signal(monkeypatch) -> None:
    """A worker that the same signal killed, say; two signals at once are one; handlers are put back."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as caught, stoppable():  # noqa: PT012
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            signal.raise_signal(signal.SIGHUP)
        raise files.Failed("a worker process was killed")
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    monkeypatch.setattr(cli, "parser", lambda: pytest.fail("not asked"))
    with pytest.raises(files.Failed, match="of its own"), stoppable():
        raise files.Failed("of its own")


# ---- workers ----


POOL = """
import os, sys, time
from pretrain.workers import processes
def work(number):
    print("worker", os.getpid(), flush=True)
    time.sleep(60)
with processes("a worker") as pool:
    list(pool.map(work, range(os.cpu_count() or 1)))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_no_worker_outlives_its_parent(number: signal.Signals) -> None:
    started = process(POOL)
    workers = [int(line(started).split()[1]) for _ in range(os.cpu_count() or 1)]
    assert all(map(is_alive, workers))
    started.send_signal(number)
    started.wait(20)
    wait_until(lambda: not any(map(is_alive, workers)))


def test_a_worker_whose_parent_died_before_it_began_ends() -> None:
    code = "from pretrain.workers import die_with; die_with(1 << 22); print('lives')"
    started = process(code)
    assert started.communicate(timeout=20)[0] == ""
    assert started.returncode == -signal.SIGKILL


JOB = """
import runpy, sys
sys.argv = ["begin", sys.argv[1], "-u", "-m", "sleeper", "60"]
runpy.run_module("benchmarks.grid.begin", run_name="__main__")
"""


def test_a_job_ends_when_its_grid_is_killed(hold, tmp_path: Path, monkeypatch) -> None:
    """Though another process lies between the two, as submitit's does."""
    (tmp_path / "sleeper.py").write_text("import sys, time; print(sys.argv[1:], flush=True); time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    grid = hold(tmp_path / "grid.lock")
    job = process(JOB, tmp_path / "grid.lock")
    assert line(job) == "['60']"
    grid.kill()
    assert job.wait(20) == -signal.SIGKILL
    job.communicate()


# ---- temporary files ----


def dead() -> int:
    """The id of a process that has ended."""
    ended = subprocess.Popen([sys.executable, "-S", "-c", ""])
    ended.wait()
    return ended.pid


def left_by(path: Path, monkeypatch, process: int, machine: str | None = None) -> Path:
    """A temporary of `path` as that process of that machine (None: this one) would leave it."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: process)
        if machine:
            patch.setattr(files, "_here", lambda: machine)
        found = temporary_name(path)
    found.write_text("half")
    return found


def test_what_a_dead_process_was_writing_is_removed_by_the_next(tmp_path: Path, monkeypatch) -> None:
    """Not what a living one writes, nor another machine's, nor another file's, unless it is a day old."""
    path = tmp_path / "checkpoint.pt"
    gone = left_by(path, monkeypatch, dead())
    alive = left_by(path, monkeypatch, os.getppid())
    elsewhere = left_by(path, monkeypatch, dead(), "0123abcd")
    other = left_by(tmp_path / "checkpoint.pt.bak", monkeypatch, dead())
    before = tmp_path / f".checkpoint.pt.{dead()}.tmp"  # as they were once named
    before.write_text("half")
    yours = tmp_path / ".checkpoint.pt.mine.tmp"
    yours.write_text("whole")
    write_text(path, "new")
    assert path.read_text() == "new"
    assert not gone.exists()
    kept = {alive, elsewhere, other, before, yours}
    assert set(tmp_path.iterdir()) == {path, *kept}
    for old in kept:
        os.utime(old, (1, 1))
    write_text(path, "newer")
    assert set(tmp_path.iterdir()) == {path, alive, other, yours}


def test_folders_of_dead_processes_are_removed_too(tmp_path: Path, monkeypatch) -> None:
    root = tmp_path / "tiny"
    gone = left_by(root, monkeypatch, dead())
    gone.unlink()
    (gone / "images").mkdir(parents=True)
    (tmp_path / f"{gone.name.removesuffix('.tmp')}.old.tmp").mkdir()
    sweep(root)
    assert list(tmp_path.iterdir()) == []
    sweep(tmp_path / "absent" / "file")


def test_a_name_as_long_as_can_be_has_a_temporary(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 127)
    with atomic(path) as temporary:
        temporary.write_text("all")
    assert path.read_text() == "all"
