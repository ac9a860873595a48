"""The commands of the card, from pixels to the table, with shrunken recipes and the real frameworks."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file
from torch import nn

import pretrain
import transfer
from benchmarks import cli, commands
from benchmarks.results import read_result
from pretrain.alexnet import AlexNet, Receipt, read_encoder
from transfer import TASKS, tasks

SHRINK = {
    "classification": {"iterations": 4, "batch": 2, "width": 16, "crops": 1},
    "detection": {"iterations": 4, "width": 16, "max_boxes": 40},
    "segmentation": {"iterations": 4, "width": 16},
    "low-shot": {"samples": 1},
}


@pytest.fixture
def shrunk(monkeypatch):
    """The tiny recipes at a few iterations."""
    for task, changes in SHRINK.items():
        recipes = TASKS[task].load().RECIPES
        known = {field.name for field in dataclasses.fields(recipes["tiny"])}
        fitting = {key: value for key, value in changes.items() if key in known}
        monkeypatch.setitem(recipes, "tiny", dataclasses.replace(recipes["tiny"], **fitting))


@pytest.fixture
def here(tmp_path, monkeypatch, tiny):
    """An empty working folder whose embedded data is the small one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BENCH_DATA", raising=False)
    monkeypatch.setattr(commands, "TINY", tiny)
    monkeypatch.setattr(commands, "_make_tiny", lambda: None)
    return tmp_path


def bench(capsys, *arguments):
    """Exit code, stdout, stderr."""
    code = cli.main([str(a) for a in arguments])
    return code, *capsys.readouterr()


def test_from_pixels_to_the_table(here, shrunk, capsys):
    code, out, _ = bench(capsys, "pretrain", "--iterations", 2, "--batch", 2)
    assert code == 0
    encoder = read_encoder(here / out.strip())
    assert encoder.provenance["variant"] == "random-region"
    code, out, _ = bench(capsys, "transfer", "--task", "all")
    assert code == 0
    paths = [here / line for line in out.splitlines()]
    assert [p.name for p in paths] == [f"{task}-seed0.json" for task in tasks("table2")]
    for path in paths:
        result = read_result(path)
        assert result["receipt"] == {"loaded": 10, "expected": 10}
        assert result["encoder"]["sha256"] == encoder.sha256
        assert all(0 <= value <= 1 for value in result["metrics"].values())
    stamps = [p.stat().st_mtime_ns for p in paths]
    code, _, err = bench(capsys, "transfer", "--task", "all")
    assert code == 0
    assert err.count("finished, reused") == 3
    assert [p.stat().st_mtime_ns for p in paths] == stamps
    code, out, _ = bench(capsys, "table2")
    assert code == 0
    assert "Context encoder (random-region)" in out
    assert "recipe `tiny` (not comparable" in out


def test_a_method_is_trained_on_what_it_is_given(here, tiny, capsys):
    """The embedded films where there is a method for them, the images given otherwise, by budgets of their own."""
    assert commands.embedded("context") == pretrain.Folders((tiny / "images",), (), (tiny / "VOCdevkit/VOC2012",))
    assert commands.embedded("egomotion").videos == (tiny / "odometry",)
    assert commands.embedded("tracking").videos == (tiny / "videos",)
    command = ("pretrain", "--method", "egomotion", "--iterations", 0, "--batch", 2)
    found = []
    for more in ((), ("--images", tiny / "images"), ("--images", tiny / "images", "--budget", "tiny")):
        code, out, err = bench(capsys, *command, *more)
        assert code == 0, err
        found.append(read_encoder(here / out.strip()).provenance)
    assert [said["variant"] for said in found] == ["", "synthetic", "synthetic"]
    assert [said["supervision"] for said in found] == ["egomotion"] + ["egomotion, synthetic from stills"] * 2
    assert [said["dataset"]["name"] for said in found] == ["odometry", "images", "images"]
    assert [said["solver"]["name"] for said in found] == ["adam", "sgd", "adam"]
    code, out, err = bench(capsys, *command, "--images", tiny / "images", "--videos", tiny / "odometry")
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_shapes_that_are_given_are_those_that_are_used(here, capsys):
    code, out, err = bench(capsys, "pretrain", "--iterations", 1, "--batch", 2, "--shapes", here / "nowhere")
    assert (code, out) == (3, "")
    assert "nowhere" in err


def test_a_stale_result_is_computed_again(here, shrunk, capsys):
    bench(capsys, "pretrain", "--method", "random")
    command = ("transfer", "--task", "classification")
    code, out, _ = bench(capsys, *command)
    assert code == 0
    first = read_result(here / out.strip())
    bench(capsys, "pretrain", "--method", "random", "--seed", 1)
    code, out, err = bench(capsys, *command)
    assert code == 0
    assert "stale" in err
    second = read_result(here / out.strip())
    assert second["encoder"]["sha256"] != first["encoder"]["sha256"]


def test_a_method_and_a_task_are_one_line_each(here, shrunk, capsys, monkeypatch):
    """A fake of each, by patching the two dicts: every command knows them."""
    method = types.ModuleType("fake_method")
    source = pretrain.method_module("random")
    method.__dict__.update(
        {
            name: getattr(source, name)
            for name in ("VERSION", "MASKS", "TINY", "EMBEDDED", "defaults", "source", "build")
        }
    )
    method.SUPERVISION = "nothing at all"
    task = types.ModuleType("fake_task")
    task.RECIPES = {name: transfer.Recipe(name=name) for name in ("tiny", "quick", "paper")}
    task.data = lambda recipe, devkit: transfer.Data("train → test", {"train": 1, "test": 1}, "d")
    task.evaluate = lambda encoder, recipe, devkit, **rest: transfer.Outcome(
        {"depth": 0.25, "chance_depth": 0.1}, {}, Receipt(10, 10), {"depths": np.full(1, 0.25)}
    )
    task.resampled = lambda per_image, weights: weights @ per_image["depths"] / weights.sum(1)
    monkeypatch.setitem(sys.modules, "fake_method", method)
    monkeypatch.setitem(sys.modules, "fake_task", task)
    monkeypatch.setitem(pretrain.METHODS, "fake", "fake_method")
    monkeypatch.setitem(transfer.TASKS, "depth", transfer.Task("fake_task", "depth", "NYU test"))
    assert bench(capsys, "pretrain", "--method", "fake")[0] == 0
    assert bench(capsys, "transfer", "--task", "depth")[0] == 0
    code, out, _ = bench(capsys, "table2")
    assert code == 0
    header, row = (next(line for line in out.splitlines() if key in line) for key in ("| Method", "| fake"))
    assert header.split("|")[-2].strip() == "Depth"
    assert "nothing at all" in row
    assert "25.0 (1)" in row


def test_probes_from_an_encoder_and_from_none_to_their_table(here, shrunk, capsys):
    """They neither need nor fill Table 2; finished ones are reused; a plan runs them."""
    bench(capsys, "pretrain", "--method", "random")
    for source in ((), ("--features", "hog")):
        code, out, err = bench(capsys, "transfer", "--task", "probes", *source)
        assert code == 0, err
        names = [Path(line).name for line in out.splitlines()]
        assert names == ["svm-seed0.json", "low-shot-seed0.json", "knn-seed0.json"]
        result = read_result(here / out.splitlines()[0])
        tensors = 0 if source else 10
        assert result["receipt"] == {"loaded": tensors, "expected": tensors}
        assert (result["encoder"]["architecture"] is None) == bool(source)
    assert result["method"] == "hog"
    assert bench(capsys, "transfer", "--task", "probes", "--features", "hog")[2].count("finished, reused") == 3
    assert bench(capsys, "table2")[0] == 3
    code, out, _ = bench(capsys, "probes")
    assert code == 0
    rows = [[cell.strip() for cell in line.split("|")] for line in out.splitlines() if line.startswith("| ")]
    assert rows[0][3:10] == ["conv1", "conv2", "conv3", "conv4", "conv5", "pool5", "Best layer"]
    assert [row[1] for row in rows[1:4]] == ["Random Gaussian", "hog", "(chance)"]
    assert rows[2][3:9] == ["–"] * 6
    assert rows[2][9].startswith("hog: ")
    assert re.fullmatch(r"\d+\.\d ± \d+\.\d", rows[3][3])
    code, out, err = bench(capsys, "transfer", "--task", "all", "--features", "hog")
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_a_pickle_is_never_opened(here, capsys):
    import pickle

    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {here}/executed",)

    Path("evil.safetensors").write_bytes(pickle.dumps(Payload()))
    code, out, err = bench(capsys, "transfer", "--task", "classification", "--encoder", "evil.safetensors")
    assert (code, out) == (1, "")
    assert "evil.safetensors" in err
    assert err.count("\n") == 1
    assert not (here / "executed").exists()


def test_exit_codes(here, capsys):
    assert bench(capsys, "transfer", "--task", "classification")[0] == 3  # no encoder yet
    assert bench(capsys, "transfer", "--task", "classification", "--encoder", "absent")[0] == 3
    assert bench(capsys, "pretrain", "--method", "random", "--mask", "central")[0] == 2
    assert bench(capsys, "pretrain", "--images", "nowhere")[0] == 3
    assert bench(capsys, "pretrain", "--device", "abacus")[0] == 2
    assert bench(capsys, "table2", "--results", "nowhere")[0] == 3
    assert bench(capsys, "data", "check", "nowhere")[0] == 3
    for wrong in (
        ["pretrain", "--lr", "0"],
        ["pretrain", "--lr", "nan"],
        ["pretrain", "--label", "a/b"],
        ["transfer"],
        ["transfer", "--task", "chess"],
        [],
        ["pretrain", "--batch", "0"],
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(wrong)
        assert stop.value.code == 2
        capsys.readouterr()
    for task, recipe in (("classification", "bogus"), ("detection", "paper-fc8"), ("all", "paper-40k")):
        code, out, err = bench(capsys, "transfer", "--task", task, "--recipe", recipe)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert f"--recipe {recipe}: " in err
    bench(capsys, "pretrain", "--method", "random")
    code, out, err = bench(capsys, "transfer", "--task", "classification", "--recipe", "quick")
    assert (code, out) == (3, "")
    assert "--data" in err


def test_interrupt_is_130(here, capsys, monkeypatch):
    from benchmarks import table2

    def interrupted(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(table2, "report", interrupted)
    code, out, err = bench(capsys, "table2")
    assert (code, out) == (130, "")
    assert err.count("\n") == 1


DRIVER = """
import dataclasses, json, signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts with Ctrl-C ignored
from benchmarks import cli, commands
from transfer import TASKS
shrink = json.loads(sys.argv[1])
for task, changes in shrink.items():
    recipes = TASKS[task].load().RECIPES
    known = {field.name for field in dataclasses.fields(recipes["tiny"])}
    recipes["tiny"] = dataclasses.replace(recipes["tiny"], **{k: v for k, v in changes.items() if k in known})
commands._make_tiny = lambda: None
commands.TINY = Path(sys.argv[2])
sys.exit(cli.main(sys.argv[3:]))
"""


def start(folder, tiny, *arguments, shrink=None, seconds="0"):
    """`bench` as a process of its own, in `folder`."""
    command = [sys.executable, "-c", DRIVER, json.dumps(shrink or {}), str(tiny), *map(str, arguments)]
    environment = os.environ | {"BENCH_CHECKPOINT_SECONDS": seconds}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process):
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out


def kill_after_a_checkpoint(process, folder, *, how=signal.SIGKILL):
    """Wait for a checkpoint anywhere under `folder`, then kill; the files that were there."""
    deadline = time.monotonic() + 200
    while not list(folder.rglob("checkpoint.pt")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(how)
    process.wait(timeout=60)


@pytest.mark.parametrize("command", ["pretrain", *tasks("table2"), "svm"])
def test_killed_and_started_again_is_the_same(command, tiny, tmp_path, encoder_file):
    """kill -9 behind the first checkpoint; the same command again ends with the same bits."""
    longer = {task: changes | {"iterations": 16} for task, changes in SHRINK.items() if task == command}
    if command == "pretrain":
        arguments = ("pretrain", "--iterations", 10, "--batch", 2, "--lr", 1e-3)
    else:
        arguments = ("transfer", "--task", command, "--encoder", encoder_file)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    undisturbed = start(whole, tiny, *arguments, shrink=longer)
    killed = start(parts, tiny, *arguments, shrink=longer)
    kill_after_a_checkpoint(killed, parts)
    assert killed.returncode == -signal.SIGKILL
    again = parts / finish(start(parts, tiny, *arguments, shrink=longer)).strip()
    first = whole / finish(undisturbed).strip()
    if command == "pretrain":
        one, two = read_encoder(first), read_encoder(again)
        assert all((one.tensors[name] == two.tensors[name]).all() for name in one.tensors)
    else:
        one, two = read_result(first), read_result(again)
        assert all(one[key] == two[key] for key in ("metrics", "per_class", "per_image"))
        assert two["resumed"]
        assert not one["resumed"]


def test_control_c_says_how_to_go_on(tiny, tmp_path):
    process = start(tmp_path, tiny, "pretrain", "--iterations", 1000, "--batch", 2)
    kill_after_a_checkpoint(process, tmp_path, how=signal.SIGINT)
    assert process.returncode == 130
    assert "same command goes on" in process.stderr.read().splitlines()[-1]
    assert not list(tmp_path.rglob("*.tmp")), "a temporary file was left"


def test_a_full_disk_loses_nothing(tiny, tmp_path, encoder_file):
    """A file-size limit is a disk that is full for large files: checkpoints fail, results before them stay."""
    limited = DRIVER.replace("import dataclasses", "import resource, dataclasses", 1).replace(
        "sys.exit(",
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\nsys.exit(",
        1,
    )
    command = [
        sys.executable,
        "-c",
        limited,
        json.dumps({"classification": SHRINK["classification"]}),
        str(tiny),
        "transfer",
        "--task",
        "classification",
        "--encoder",
        str(encoder_file),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 1
    assert done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert "checkpoint.pt" in last
    assert "disk full" in last
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.tmp"))
    assert not list(tmp_path.rglob("*.json"))


def test_an_encoder_of_another_shape_is_refused(here, capsys):
    trunk = AlexNet()
    trunk.conv5 = nn.Conv2d(384, 128, 3)
    provenance = {"method": "random", "variant": "", "supervision": "x"}
    tensors = {name: tensor.contiguous() for name, tensor in trunk.state_dict().items()}
    save_file(tensors, "small.safetensors", metadata={"provenance": json.dumps(provenance)})
    code, _, err = bench(capsys, "transfer", "--task", "classification", "--encoder", "small.safetensors")
    assert code == 1
    assert "conv5.weight is (128, 384, 3, 3), not (256, 192, 3, 3)" in err


def spoil_xml(text):
    return lambda devkit: [
        p.write_text(p.read_text().replace("<xmin>", text)) for p in (devkit / "VOC2007/Annotations").iterdir()
    ]


def empty(name):
    return lambda devkit: (devkit / name).write_text("\n")


SPOILED = {
    "classification-empty": ("classification", empty("VOC2007/ImageSets/Main/test.txt"), 3, "test.txt"),
    "detection-empty": ("detection", empty("VOC2007/ImageSets/Main/trainval.txt"), 3, "trainval.txt"),
    "segmentation-empty": ("segmentation", empty("VOC2012/ImageSets/Segmentation/val.txt"), 3, "val.txt"),
    "classification-broken": ("classification", spoil_xml("<"), 1, ".xml: broken annotation"),
    "detection-outside": ("detection", spoil_xml("<xmin>-9"), 1, "outside the image"),
    "segmentation-missing": (
        "segmentation",
        lambda devkit: shutil.rmtree(devkit / "VOC2012/SegmentationClass"),
        3,
        ".png: not there",
    ),
}


@pytest.mark.parametrize("case", SPOILED)
def test_bad_data_gives_one_line_and_no_result(case, here, shrunk, capsys, tiny, encoder_file):
    task, spoil, code, said = SPOILED[case]
    shutil.copytree(tiny, here / "spoiled")
    spoil(here / "spoiled" / "VOCdevkit")
    arguments = ("transfer", "--task", task, "--encoder", encoder_file, "--data", here / "spoiled")
    found, out, err = bench(capsys, *arguments)
    assert (found, out) == (code, "")
    assert said in err.splitlines()[-1]
    assert not list(here.rglob("*-seed0.json"))
