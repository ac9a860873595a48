"""A grid through `bench run`: real processes, real pre-training; a counted task, and a real one shrunk."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import transfer
from benchmarks import cli
from benchmarks.grid.attempt import Papers, read_failure
from benchmarks.results import read_result
from pretrain import Folders
from pretrain.alexnet import read_encoder
from pretrain.locks import alone, holder
from pretrain.train import configure, pretrain

# What every process of a grid sees: a task that notes who begins it, and takes as long as it is told; and
# classification at a few iterations.
PATCH = """
import sys, transfer
sys.path.insert(0, {folder!r})
transfer.TASKS.update(
    counted=transfer.Task("counted", "depth", "NYU test"),
    classification=transfer.Task("shrunk", "map_sklearn", "VOC07 test"),
)
"""
COUNTED = """
import os, time
import numpy as np
from pathlib import Path
from pretrain.alexnet import Receipt
from pretrain.files import atomic
from transfer import Data, Outcome, Recipe

RECIPES = {"tiny": Recipe(name="tiny")}

def data(recipe, devkit):
    return Data("train → test", {"train": 1, "test": 1}, "d")

def evaluate(encoder, recipe, devkit, *, seed, work, device):
    if str(seed) == os.environ.get("DEADLY"):
        os.kill(os.getpid(), 9)
    begun = Path(os.environ["BEGUN"])
    with begun.open("a") as file:
        file.write(f"{encoder.provenance['method']} {seed}\\n")
    checkpoint = work / "checkpoint.pt"
    start = int(checkpoint.read_text()) if checkpoint.is_file() else 0
    for step in range(start, int(os.environ.get("STEPS", "0"))):
        time.sleep(0.1)
        with atomic(checkpoint) as temporary:
            temporary.write_text(str(step + 1))
    score = float(encoder.tensors["conv1.weight"].abs().mean())
    return Outcome({"depth": score, "chance_depth": 0.1}, {}, Receipt(10, 10), {"depths": np.full(1, score)})

def resampled(per_image, weights):
    return weights @ per_image["depths"] / weights.sum(1)
"""
SHRUNK = """
from dataclasses import replace
from transfer.classification import *
from transfer.classification import RECIPES as WHOLE
RECIPES = {"tiny": replace(WHOLE["tiny"], iterations=4, batch=2, width=16, crops=1)}
"""
PLAN = """\
recipe: tiny
data: {data}
images: [images]
methods:
{methods}
tasks: [{tasks}]
seeds: [{seeds}]
launch: {{workers: 2, threads: 1{launch}}}
"""
TWO = "  random:\n  autoencoder: {iterations: 2, batch: 2}"
# With an ear for Ctrl-C, to which a shell's background is deaf.
RUN = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from benchmarks.cli import main; sys.exit(main())"
)


@pytest.fixture
def grid(tmp_path, monkeypatch, tiny):
    """Write a plan into an empty working folder where the tasks are those above."""
    patches = tmp_path / "patches"
    patches.mkdir()
    (patches / "sitecustomize.py").write_text(PATCH.format(folder=str(patches)))
    (patches / "counted.py").write_text(COUNTED)
    (patches / "shrunk.py").write_text(SHRUNK)
    monkeypatch.setenv("PYTHONPATH", str(patches), prepend=os.pathsep)
    monkeypatch.setenv("BEGUN", str(tmp_path / "begun"))
    monkeypatch.setenv("BENCH_CHECKPOINT_SECONDS", "0")
    monkeypatch.delenv("BENCH_DATA", raising=False)
    monkeypatch.chdir(tmp_path)

    def write(methods=TWO, *, tasks="counted", seeds="0", launch=""):
        text = PLAN.format(data=tiny, methods=methods, tasks=tasks, seeds=seeds, launch=launch)
        (tmp_path / "plan.yaml").write_text(text)
        return tmp_path

    return write


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """`bench run` of the plan, its jobs in their own processes but not itself: exit code, stdout, stderr."""
    monkeypatch.syspath_prepend(tmp_path / "patches")
    monkeypatch.setitem(transfer.TASKS, "counted", transfer.Task("counted", "depth", "NYU test"))
    monkeypatch.setitem(transfer.TASKS, "classification", transfer.Task("shrunk", "map_sklearn", "VOC07 test"))

    def bench(*options):
        capsys.readouterr()
        code = cli.main(["run", "plan.yaml", *options])
        return code, *capsys.readouterr()

    yield bench
    for name in ("counted", "shrunk"):
        sys.modules.pop(name, None)


@pytest.fixture
def sums(run):
    """The last line of `bench run --dry-run`."""
    return lambda *options: run("--dry-run", *options)[1].splitlines()[-1]


def start(*options):
    """`bench run` of the plan as a process of its own."""
    command = [sys.executable, "-c", RUN, "run", "plan.yaml", *options]
    # Files, not pipes: jobs that outlive a killed grid would keep these open.
    with Path("out").open("w") as out, Path("err").open("w") as err:
        return subprocess.Popen(command, stdout=out, stderr=err)


def finish(process):
    """Its exit code, stdout and stderr."""
    return process.wait(timeout=200), Path("out").read_text(), Path("err").read_text()


def begun():
    """Who began a cell, in order: (method, seed)."""
    path = Path("begun")
    lines = path.read_text().splitlines() if path.is_file() else []
    return [tuple(line.split()) for line in lines]


def wait_for(found, process):
    """Until `found()` says something; what it says."""
    end = time.monotonic() + 200
    while not (said := found()):
        assert time.monotonic() < end
        assert process.poll() is None, Path("err").read_text()
        time.sleep(0.01)
    return said


def worker(name):
    """The process that is at a job."""
    return holder(Papers.of(name, Path("runs/grid")).lock)


def checkpoint(folder):
    """Whether a checkpoint has been written anywhere under a folder of `runs`."""
    return list(Path("runs").glob(f"{folder}/**/checkpoint.pt"))


def undisturbed(iterations, tiny, folder):
    """The encoder that `autoencoder: {iterations: N, batch: 2}` makes when nothing happens to it."""
    folders = Folders(images=(tiny / "images",), shapes=(tiny / "VOCdevkit" / "VOC2012",))
    config = configure("autoencoder", folders=folders, budget="paper", iterations=iterations, batch=2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return read_encoder(pretrain(config, folders=folders, runs=folder, device=torch.device("cpu")))
    finally:
        torch.set_num_threads(threads)


def trained(row="autoencoder"):
    (path,) = Path("runs/pretrain").glob(f"{row}-*/encoder.safetensors")
    return read_encoder(path)


def same(one, two):
    return all((one.tensors[name] == two.tensors[name]).all() for name in one.tensors)


@pytest.mark.slow
def test_a_grid_is_filled_once(grid, run, sums, tiny):
    """Two methods, two tasks: dry run, run, run again; then what of it counts as done when something changes."""
    both = "counted, classification"
    here = grid(tasks=both)
    code, out, _ = run("--dry-run")
    assert code == 0
    assert "| autoencoder | missing   | missing   | missing          |" in out
    assert out.splitlines()[-1] == "4 cells: 0 done, 0 stale, 4 missing; encoders to make: 2"
    assert not (here / "results").exists()
    code, out, err = run()
    assert code == 0, err
    assert err.splitlines()[-1] == "grid: 6 of 6 jobs done"
    assert "| Autoencoder " in out
    for row in ("random", "autoencoder"):
        result = read_result(here / f"results/tiny/{row}/classification-seed0.json")
        assert result["receipt"] == {"loaded": 10, "expected": 10}
        assert "1 threads of" in result["hardware"]
        assert "train: 4/4" in (here / f"runs/grid/tiny/{row}/classification-seed0.log").read_text()
    assert sorted(begun()) == [("autoencoder", "0"), ("random", "0")]
    assert run() == (0, out, "grid: 4 of 4 jobs done\n")
    assert len(begun()) == 2

    # Without their encoders, as in a fresh clone with committed results: by what these say of them.
    shutil.rmtree(here / "runs")
    assert sums() == "4 cells: 4 done, 0 stale, 0 missing; encoders to make: 0"
    grid(TWO.replace("iterations: 2", "iterations: 3"), tasks=both)
    assert sums() == "4 cells: 2 done, 2 stale, 0 missing; encoders to make: 1"
    grid(TWO.replace("batch: 2", "batch: 2, tasks: [counted]"), tasks=both)
    assert sums() == "3 cells: 3 done, 0 stale, 0 missing; encoders to make: 0"
    grid(tasks=both, seeds="0, 1")
    assert sums() == "8 cells: 4 done, 0 stale, 4 missing; encoders to make: 2"
    shutil.copytree(tiny, here / "other")
    next((here / "other/images").rglob("*.jpg")).unlink()
    grid(tasks=both)
    assert sums("--data", "other") == "4 cells: 2 done, 2 stale, 0 missing; encoders to make: 1"
    path = here / "results/tiny/random/counted-seed0.json"
    path.write_text(path.read_text().replace('"sha256": "d"', '"sha256": "e"'))
    assert sums() == "4 cells: 3 done, 1 stale, 0 missing; encoders to make: 1"
    path.write_text("{")
    assert sums() == "4 cells: 3 done, 1 stale, 0 missing; encoders to make: 1"


@pytest.mark.slow
def test_what_is_killed_goes_on(grid, run, tiny, tmp_path, monkeypatch):
    """kill -9 of a job; of `bench run` alone, which ends its job: the same bits, nothing twice."""
    monkeypatch.setenv("STEPS", "10000")
    grid("  autoencoder: {iterations: 12, batch: 2}")
    process = start()
    wait_for(lambda: checkpoint("pretrain"), process)
    os.kill(worker("pretrain/autoencoder"), signal.SIGKILL)
    wait_for(lambda: checkpoint("transfer"), process)
    process.kill()
    assert "pretrain/autoencoder: died: started again" in finish(process)[2]
    log = Path("runs/grid/pretrain/autoencoder.log").read_text()
    assert log.count("going on from iteration") == 1

    cell, end = "tiny/autoencoder/counted-seed0", time.monotonic() + 20
    while worker(cell):
        assert time.monotonic() < end
        time.sleep(0.1)
    monkeypatch.setenv("STEPS", "1")
    code, _, err = run()
    assert code == 0, err
    assert same(trained(), undisturbed(12, tiny, tmp_path / "whole"))
    assert begun() == [("autoencoder", "0")] * 2
    assert read_result(Path(f"results/{cell}.json"))["resumed"]


def queue():
    """Name → id of Slurm's jobs; None where no Slurm answers."""
    try:
        done = subprocess.run(["squeue", "-h", "-o", "%i %j"], capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return {line.split(maxsplit=1)[1]: line.split()[0] for line in done.stdout.splitlines()}


@pytest.mark.slow
def test_a_grid_on_slurm_outlives_its_jobs(grid, tiny, tmp_path, monkeypatch):
    """scancel in the middle of pre-training, kill -9 of a cell: all the same, the grid is filled."""
    if queue() is None:
        pytest.skip('no Slurm answers squeue here: eval "$(.ci/slurm start)" starts one')
    monkeypatch.setenv("STEPS", "20")
    grid("  autoencoder: {iterations: 12, batch: 2}", launch=", minutes: 10, cpus: 1")
    process = start("--launcher", "slurm")
    wait_for(lambda: checkpoint("pretrain"), process)
    subprocess.run(["scancel", queue()["bench pretrain/autoencoder"]], check=True)
    wait_for(lambda: checkpoint("transfer"), process)
    os.kill(worker("tiny/autoencoder/counted-seed0"), signal.SIGKILL)
    code, out, err = finish(process)
    assert code == 0, err
    assert len(re.findall(r"died \(s.*: started again", err)) == 2
    assert "CANCELLED" in err
    assert "| Autoencoder " in out
    assert "going on from iteration" in Path("runs/grid/pretrain/autoencoder.log").read_text()
    assert same(trained(), undisturbed(12, tiny, tmp_path / "whole"))
    assert begun() == [("autoencoder", "0")] * 2


@pytest.mark.slow
def test_two_grids_at_once_share_the_work(grid, run, monkeypatch):
    monkeypatch.setenv("STEPS", "20")
    grid("  random:", seeds="0, 1, 2")
    other = start()
    wait_for(lambda: worker("pretrain/random"), other)
    ours = run()
    theirs = finish(other)
    assert (ours[0], theirs[0]) == (0, 0), (ours, theirs)
    assert ours[1] == theirs[1]
    assert sorted(begun()) == [("random", seed) for seed in "012"]
    assert Path("runs/grid/pretrain/random.log").read_text().count("encoder.safetensors: written") == 1


@pytest.mark.slow
def test_the_others_go_on_when_a_job_fails(grid, run, monkeypatch):
    """A loss that is not finite, a process that always dies: recorded, told, tried again next time."""
    monkeypatch.setenv("DEADLY", "13")
    context = "  context: {mask: central, iterations: 2, batch: 2, rate: 1000, label: wild}"
    grid(f"  random:\n{context}", seeds="0, 13", launch=", attempts: 2")
    code, out, err = run()
    assert code == 1
    assert "| Random Gaussian " in out
    failure = read_failure(Path("runs/grid/pretrain/context-central-wild.failed.json"))
    assert (failure.job, failure.code, failure.attempt) == ("pretrain/context-central-wild", 1, 1)
    assert "the loss is nan at iteration 2: lower" in failure.message
    assert failure.message in Path(failure.log).read_text()
    assert f"pretrain/context-central-wild: {failure.message} (log: {failure.log})" in err
    assert "not run, as their encoder failed: tiny/context-central-wild/counted-seed0, " in err
    dead = read_failure(Path("runs/grid/tiny/random/counted-seed13.failed.json"))
    assert "died 2 times" in dead.message
    assert "grid: 2 of 6 jobs done" in err
    monkeypatch.delenv("DEADLY")
    code, _, err = run()
    assert code == 1
    assert "grid: 2 of 5 jobs done" in err
    assert Path(failure.log).read_text().count("the loss is nan") == 2
    assert len(list(Path("runs/grid").rglob("*.failed.json"))) == 1
    assert begun() == [("random", "0"), ("random", "13")]


def test_control_c_ends_what_was_started(grid, monkeypatch):
    monkeypatch.setenv("STEPS", "1000")
    grid("  random:")
    process = start()
    wait_for(lambda: checkpoint("transfer"), process)
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert (code, out) == (130, "")
    assert err.splitlines()[-1].endswith("the same command goes on from the last checkpoint")
    assert "Traceback" not in err
    assert worker("tiny/random/counted-seed0") is None
    assert not list(Path("runs/grid").rglob("*.failed.json"))


def test_a_lock_is_free_when_its_holder_is_killed(tmp_path):
    """Also when a child of the killed process lives on, as the decoders of images do."""
    path = tmp_path / "lock"
    code = (
        "import sys, os, time; from pathlib import Path; from pretrain.locks import alone\n"
        "with alone(Path(sys.argv[1])) as ours:\n"
        "    child = os.fork()\n"
        "    if child: print(ours, child, flush=True)\n"
        "    time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True)
    ours, child = process.stdout.readline().split()
    try:
        assert ours == "True"
        assert holder(path) == process.pid
        with alone(path) as mine:
            assert not mine
        process.kill()
        process.wait()
        os.kill(int(child), 0)
        assert holder(path) is None
        with alone(path) as mine:
            assert mine
    finally:
        os.kill(int(child), signal.SIGKILL)


def test_probes_of_a_descriptor_are_a_grid_too(grid, run, sums):
    """No encoder to make; the table of frozen features ends it."""
    grid("  hog: {features: hog}", tasks="knn")
    assert sums() == "1 cells: 0 done, 0 stale, 1 missing; encoders to make: 0"
    code, out, err = run()
    assert code == 0, err
    assert out.startswith("## Frozen features, recipe `tiny`")
    assert sums() == "1 cells: 1 done, 0 stale, 0 missing; encoders to make: 0"
