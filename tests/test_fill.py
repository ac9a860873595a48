"""The grid's bookkeeping: what it does with the words of a launcher, here one that starts nothing."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE
from types import SimpleNamespace

import pytest

from benchmarks.grid import display, fill, launch
from benchmarks.grid.attempt import Papers, read_failure
from benchmarks.grid.display import Durations, Pace, TimeLeft
from benchmarks.grid.encoders import Places
from benchmarks.grid.fill import Grid, Refused, steps
from benchmarks.grid.launch import Local
from benchmarks.grid.plan import read_plan
from benchmarks.grid.survey import survey
from pretrain.files import Failed

PLAN = """\
recipe: tiny
data: {data}
images: [images]
methods: {{autoencoder: {{iterations: 2, batch: 2}}, random: , again: {{method: random, label: again}}}}
tasks: [segmentation]
launch: {{attempts: 2}}
"""


class Told:
    """A launcher: `words` says how the jobs end, at once; `refused` which submissions (from 0) are turned down."""

    poll, began = 0.0, 0.0

    def __init__(self, words=None, *, workers=1, refused=()):
        self.workers, self.words, self.refused = workers, words or {}, refused
        self.tries, self.submitted, self.cancelled = 0, [], []

    def taken(self, slot):
        return False

    def submit(self, job, *, number, slot):
        self.tries += 1
        if self.tries - 1 in self.refused:
            raise Failed("sbatch refuses: too many jobs")
        self.submitted.append(job.name)
        return SimpleNamespace(word=self.words.get(job.name))

    def over(self, handles):
        return {name for name in handles if name in self.words}

    def cancel(self, handles):
        self.cancelled += handles


@pytest.fixture
def grid(tmp_path, tiny, monkeypatch):
    """The grid of a plan whose data can be spoilt, with a launcher."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fill, "outcome", lambda handle: handle.word)
    monkeypatch.setattr(fill, "last_words", lambda handle: "")
    shutil.copytree(tiny, tmp_path / "data")
    (tmp_path / "plan.yaml").write_text(PLAN.format(data=tmp_path / "data"))

    def made(launcher):
        plan = read_plan(Path("plan.yaml"))
        found = steps(survey(plan, Places(Path("results"), Path("runs"))), Path("runs/grid"))
        return Grid(plan, found, launcher=launcher, durations=Durations({}))

    return made


def test_a_job_that_cannot_be_looked_at_is_lost_alone(grid, tmp_path):
    """Its images are gone while it runs: that is its failure, and the next job starts."""
    launcher = Told({"pretrain/autoencoder": "failed"})
    made = grid(launcher)
    made.look()
    shutil.rmtree(tmp_path / "data/images")
    made.look()
    assert launcher.submitted == ["pretrain/autoencoder", "pretrain/random"]
    assert made.steps["pretrain/autoencoder"].standing == "failed"
    failure = read_failure(Papers.of("pretrain/autoencoder", Path("runs/grid")).failure)
    assert "data/images: no such folder" in failure.message
    made.look()
    assert made.steps["tiny/autoencoder/segmentation-seed0"].standing == "not run"


def test_a_job_that_is_refused_is_submitted_later(grid, monkeypatch, capfd):
    """As are those behind it, once the scheduler took any; those that run are left alone."""
    launcher = Told(workers=None, refused=(1,))
    made = grid(launcher)
    made.look()
    made.look()
    assert (launcher.tries, launcher.submitted) == (2, ["pretrain/autoencoder"])
    assert "pretrain/random: sbatch refuses: too many jobs: tried again in 60 s" in capfd.readouterr().err
    made.closed = 0.0  # a minute later
    made.look()
    assert launcher.submitted == ["pretrain/autoencoder", "pretrain/random", "pretrain/random-again"]
    assert not launcher.cancelled
    with pytest.raises(Refused, match="sbatch refuses"):
        grid(Told(refused=(0,))).look()


def test_what_a_job_says_it_made_is_looked_for_again(grid, monkeypatch, capfd):
    monkeypatch.setattr(fill, "CLOSED_SECONDS", 0.0)
    launcher = Told({"pretrain/autoencoder": "done"}, workers=1)
    made = grid(launcher)
    for _ in range(3):
        made.look()
    assert launcher.submitted == ["pretrain/autoencoder", "pretrain/autoencoder", "pretrain/random"]
    err = capfd.readouterr().err
    assert "pretrain/autoencoder: ended, but what it made is not here yet: looked for again" in err
    assert "pretrain/autoencoder: failed: ended, but what it made is not the plan's: did its data change?" in err


HOLD = """
import sys, time
from pathlib import Path
from pretrain.locks import alone
with alone(Path(sys.argv[1])) as ours:
    print(ours, flush=True)
    time.sleep(60)
"""
ATTEMPT = """
import sys
from pathlib import Path
from types import SimpleNamespace
from benchmarks.grid.attempt import attempt
job = SimpleNamespace(name="idle", run=Path("ran").touch)
print(attempt(job, folder=Path("jobs"), number=1, threads=1, place=Path(sys.argv[1])), flush=True)
"""


def test_a_place_is_one_jobs_whichever_grid_started_it(grid, tmp_path):
    """A GPU each; one that another grid's job is on, or that of a grid that was killed, is left to it."""
    launcher = Local(tmp_path / "runs/grid/submitted/now", 0.0, threads=1, workers=4, gpus=(2, 5))
    names = [launcher.place(slot).stem.removeprefix(f"{os.uname().nodename}-") for slot in range(4)]
    assert names == ["gpu2-0", "gpu5-0", "gpu2-1", "gpu5-1"]
    made = grid(launcher)
    assert made.slot() == 0
    place = launcher.place(0)
    process = subprocess.Popen([sys.executable, "-c", HOLD, place], stdout=PIPE, text=True)
    try:
        assert process.stdout.readline() == "True\n"
        assert made.slot() == 1
        # Two grids that start a job at once: one of the jobs finds the place held.
        said = subprocess.run([sys.executable, "-c", ATTEMPT, place], capture_output=True, text=True, check=True)
        assert said.stdout == "busy\n"
        assert not Path("ran").exists()
    finally:
        process.kill()
        process.wait()
    assert made.slot() == 0


def test_a_job_that_does_not_end_is_killed(tmp_path, monkeypatch):
    """With the process that submitit started it from."""
    monkeypatch.setattr(launch, "GRACE", 0.5)
    launcher = Local(tmp_path / "grid/submitted/now", 0.0, threads=1, workers=1, gpus=())
    lock = Papers.of("deaf", tmp_path / "grid").lock
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    starter = subprocess.Popen(
        [sys.executable, "-c", f"{deaf}print(1, flush=True); import time; time.sleep(60)"], stdout=PIPE
    )
    job = subprocess.Popen([sys.executable, "-c", deaf + HOLD, lock], stdout=PIPE)
    try:
        assert starter.stdout.readline() == b"1\n"
        assert job.stdout.readline() == b"True\n"
        launcher.cancel({"deaf": SimpleNamespace(job_id=starter.pid, done=lambda: starter.poll() is not None)})
        assert (starter.wait(10), job.wait(10)) == (-signal.SIGKILL, -signal.SIGKILL)
    finally:
        starter.kill()
        job.kill()


def test_the_time_left_of_a_job_of_which_nothing_is_known(monkeypatch):
    """By its own count, once that has moved; a resumed one's does not start at 0."""
    now = 0.0
    monkeypatch.setattr(display.time, "monotonic", lambda: now)
    pace = Pace()
    pace.look("autoencoder: going on from iteration 20")
    assert pace.left() is None
    pace.look("autoencoder: 20/100 loss 3, 4 images/s")
    assert pace.left() is None
    now = 30.0
    pace.look("autoencoder: 50/100 loss 3, 4 images/s")
    now = 45.0
    pace.look("autoencoder: 50/100 loss 3, 4 images/s")
    assert pace.left() == 50.0
    pace.look("classification: test:   1/8")
    assert pace.left() is None


def test_the_time_left_in_words():
    said = [
        str(TimeLeft(seconds, whole=whole))
        for seconds, whole in ((None, False), (20, True), (600, False), (9000, True))
    ]
    assert said == ["time left not known yet", "about a minute left", "at least 10 min left", "about 2.5 h left"]
