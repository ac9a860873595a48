"""`bench curve`: a real pre-training's encoders, scored, printed and drawn; nothing of them in the other tables."""

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import cli
from benchmarks.curve import read
from benchmarks.results import read_result, result_path, write_result
from benchmarks.trainings import ended, find_run, training_key
from pretrain import Folders
from pretrain.alexnet import AlexNet, read_encoder, save_encoder
from pretrain.files import Failed, Missing, Usage
from pretrain.train import Config, pretrain
from transfer import TASKS

CPU = torch.device("cpu")
CONFIG = Config(method="context", mask="central", loss="l2", iterations=3, batch=4, rate=1e-4, seed=0)
LAYERS = ["conv1", "conv2", "conv3", "conv4", "conv5", "pool5"]
ROW = "context-central"


@pytest.fixture(scope="module", autouse=True)
def shrunk() -> Iterator[None]:
    """SVMs of one cost and two folds."""
    recipes = TASKS["svm"].load().RECIPES
    tiny: Any = recipes["tiny"]
    with pytest.MonkeyPatch.context() as patch:
        machine = replace(tiny.machine, costs=(1.0,), folds=2)
        patch.setitem(recipes, "tiny", replace(tiny, machine=machine))  # type: ignore[arg-type]
        yield


@pytest.fixture(scope="module")
def scored(tiny: Path, encoder_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, of which 0, 2, 3 and the end were saved, and the results of `bench curve` and `random`."""
    root = tmp_path_factory.mktemp("curve")
    pretrain(CONFIG, folders=Folders(images=(tiny / "images",)), runs=root / "runs", device=CPU, save_at=(0, 2, 3))
    places = ["--data", str(tiny), "--results", str(root / "results"), "--runs", str(root / "runs"), "--device", "cpu"]
    assert cli.main(["transfer", "--task", "svm", "--encoder", str(encoder_file), *places]) == 0
    assert cli.main(["curve", ROW, "--recipe", "tiny", *places]) == 0
    return root


def bench(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    capsys.readouterr()
    code = cli.main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def curve(capsys: pytest.CaptureFixture[str], scored: Path, *arguments: object) -> str:
    """What `bench curve` prints of what is scored."""
    code, out, err = bench(capsys, "curve", "--recipe", "tiny", "--results", scored / "results", *arguments)
    assert (code, err) == (0, "")
    return out


def cells(table: str) -> list[dict[str, str]]:
    """The rows of the first Markdown table of a text, by heading."""
    lines = next(part for part in table.split("\n\n") if part.startswith("|")).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]


def result(scored: Path, row: str) -> dict[str, Any]:
    return read_result(scored / "results" / "tiny" / row / "svm-seed0.json")


def test_a_row_a_point_and_a_column_a_layer(scored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = curve(capsys, scored)
    assert "### Context encoder (central): 3 iterations of 4 images, adam, rate 0.0001, fp32" in text
    rows = cells(text)
    assert list(rows[0]) == ["Iterations", "Images", "Budget", *LAYERS, "Best layer"]
    told = [(row["Iterations"], row["Images"], row["Budget"]) for row in rows]
    assert told == [
        ("0 (untrained start)", "0", "0%"),
        ("2", "8", "0.000125%"),  # of 100,000 iterations of 64 images
        ("3", "12", "0.000188%"),
        ("Random Gaussian", "–", "–"),
        ("(chance)", "–", "–"),
    ]
    names = [f"{ROW}-at-0", f"{ROW}-at-2", ROW, "random"]
    for row, name in zip(rows, names, strict=False):
        metrics = result(scored, name)["metrics"]
        for layer in LAYERS:
            assert float(row[layer].split()[0]) == pytest.approx(100 * metrics[f"{layer}_map_sklearn"], abs=0.051)
        score, low, high = (float(number) for number in re.findall(r"[\d.]+", row["pool5"]))
        assert low < score < high
        best = max(LAYERS, key=lambda layer: metrics[f"cv_{layer}"])
        assert row["Best layer"] == f"{best}: {row[best].split()[0]}"
    chance = result(scored, ROW)["metrics"]["chance_map_sklearn"]
    assert {rows[-1][layer].split(" ± ")[0] for layer in LAYERS} == {f"{100 * chance:.1f}"}


def test_the_last_encoder_on_the_way_is_the_final_one(scored: Path) -> None:
    assert (scored / "runs" / "pretrain").is_dir()
    folders = {path.name for path in (scored / "results" / "tiny").iterdir()}
    assert folders == {ROW, f"{ROW}-at-0", f"{ROW}-at-2", "random"}
    (one,) = read(scored / "results", recipe="tiny")
    (training,) = one.trainings
    (end,) = training.points[3]
    assert "of_iterations" not in end["encoder"]["provenance"]


def test_what_is_scored_is_reused(scored: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (scored / "results").rglob("*.json")}
    places = ["--data", tiny, "--results", scored / "results", "--runs", scored / "runs", "--device", "cpu"]
    code, out, err = bench(capsys, "curve", ROW, "--recipe", "tiny", *places)
    assert code == 0
    assert err.count("finished, reused") == 3
    assert out == curve(capsys, scored)
    assert {path: path.stat().st_mtime_ns for path in (scored / "results").rglob("*.json")} == before


def test_the_other_tables_have_none_of_it(scored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = bench(capsys, "probes", "--results", scored / "results")
    assert code == 0
    assert "Context encoder (central)" in out
    assert "-at-" not in out
    assert err == "2 results of encoders on the way left out: `bench curve` prints them\n"


def test_records(scored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = json.loads(curve(capsys, scored, "--format", "json"))
    points = {(record["Row"], record["Iterations"], record["Column"]): record for record in made}
    assert len(points) == len(made) == 4 * 7 + 1
    one = points["Context encoder (central)", 2, "conv4"]
    assert one["Mean"] == pytest.approx(100 * result(scored, f"{ROW}-at-2")["metrics"]["conv4_map_sklearn"], abs=1e-4)
    assert (one["Images"], one["Budget"], one["Seeds"]) == (8, 8 / 6_400_000, 1)
    assert points["Random Gaussian", None, "pool5"]["Images"] is None
    rows = list(csv.DictReader(io.StringIO(curve(capsys, scored, "--format", "csv"))))
    assert [row["Iterations"] for row in rows[::7]] == ["0", "2", "3", "", ""]
    assert rows[0]["Seeds"] == "1"


def test_what_happened_in_the_layers(scored: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of all encoders on the way where the run is there, or else of those with results."""
    text = curve(capsys, scored, "--layers")
    rows = cells(text[text.index("| In each layer") :])
    assert [row["Iterations"] for row in rows] == ["0", "2"] * 4
    said = result(scored, f"{ROW}-at-2")["encoder"]["provenance"]["layers"]
    assert rows[1]["conv3"] == f"{said['conv3']['between_images']:.1%}"
    assert [row["conv5"] for row in rows[-2:]] == ["–", f"{said['conv5']['gradient']:.1e}"]
    records = json.loads(curve(capsys, scored, "--layers", "--format", "json"))
    assert [record["Layer"] for record in records] == LAYERS[:5] * 2
    assert records[5] == records[5] | said["conv1"] | {"Iterations": 2}
    places = ["--data", tiny, "--results", scored / "results", "--runs", scored / "runs", "--device", "cpu"]
    _, out, _ = bench(capsys, "curve", ROW, "--recipe", "tiny", "--layers", *places)
    assert [row["Iterations"] for row in cells(out[out.index("| In each layer") :])] == ["0", "2", "3"] * 4


def test_the_picture(scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.png", "b.png"):
        curve(capsys, scored, "--out", tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        assert (image.format, image.width) == ("PNG", 1200)
        assert not image.info.keys() & {"Software", "Creation Time", "date:create"}
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) > 50
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.png", "b.png"]
    code, out, err = bench(capsys, "curve", "--results", scored / "results", "--out", tmp_path / "c.pdf")
    assert (code, out) == (2, "")
    assert err == f"bench: --out {tmp_path / 'c.pdf'}: a PNG file is written: name it c.png\n"


def test_it_needs_no_framework_and_no_plot_that_is_not_asked_for(scored: Path) -> None:
    code = (
        "import sys; from dataclasses import replace; from benchmarks.cli import main; from transfer import TASKS\n"
        "recipes = TASKS['svm'].load().RECIPES; tiny = recipes['tiny']\n"
        "recipes['tiny'] = replace(tiny, machine=replace(tiny.machine, costs=(1.0,), folds=2))\n"
        "assert main(['curve', '--recipe', 'tiny', '--results', sys.argv[1]]) == 0\n"
        "print({name.split('.')[0] for name in sys.modules} & {'detectron2', 'mmseg', 'mmcv', 'matplotlib'})"
    )
    ended = subprocess.run([sys.executable, "-c", code, scored / "results"], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "set()"


# ---- which encoders are of one training ----


@pytest.mark.parametrize(
    ("variant", "label", "iterations", "expected"),
    [
        ("central-x-at-300", "x-at-300", 300, ("central-x", "x")),
        ("central-at-300", "at-300", 300, ("central", "")),
        ("at-0", "at-0", 0, ("", "")),
        ("at-300-rescaled", "at-300", 300, ("rescaled", "")),
        ("central-at-300-rescaled", "at-300", 300, ("central-rescaled", "")),
        ("central-at-3000", "at-3000", 300, ("central-at-3000", "at-3000")),  # a label of somebody's own
    ],
)
def test_the_name_of_the_whole(variant: str, label: str, iterations: int, expected: tuple[str, str]) -> None:
    said = {"method": "context", "variant": variant, "label": label, "iterations": iterations, "of_iterations": 5000}
    end = ended(said)
    assert (end["variant"], end["label"], end["iterations"]) == (*expected, 5000)
    assert ended({"variant": variant, "iterations": 9}) == {"variant": variant, "iterations": 9}


def put(folder: Path, source: dict[str, Any], *, label: str, **said: Any) -> None:
    """The result with another label and what else its encoder says."""
    provenance = source["encoder"]["provenance"]
    at = f"-at-{provenance['iterations']}" if "of_iterations" in provenance else ""
    variant = f"central-{label}{at}"
    encoder = source["encoder"] | {
        "provenance": provenance | said | {"variant": variant, "label": f"{label}{at}"},
    }
    made = source | {"variant": variant, "encoder": encoder}
    write_result(result_path(folder, recipe="tiny", method="context", variant=variant, task="svm", seed=0), made)


def test_a_training_is_what_differs_in_nothing_but_the_iteration(scored: Path, tmp_path: Path) -> None:
    for row in (f"{ROW}-at-0", f"{ROW}-at-2", ROW):
        put(tmp_path, result(scored, row), label="a")
        put(tmp_path, result(scored, row), label="b", precision="bf16")
    put(tmp_path, result(scored, ROW), label="c")  # of whose way nothing is known
    put(tmp_path, result(scored, f"{ROW}-at-2"), label="d", rate=1.0)
    put(tmp_path, result(scored, ROW), label="d")  # not its end
    (found,) = read(tmp_path, recipe="tiny")
    told = {training.name: (list(training.points), training.told[-19:]) for training in found.trainings}
    assert told == {
        "Context encoder (central-a)": ([0, 2, 3], "adam, rate 0.0001, fp32"[-19:]),
        "Context encoder (central-b)": ([0, 2, 3], "adam, rate 0.0001, bf16"[-19:]),
        "Context encoder (central-d)": ([2], "s, adam, rate 1, fp32"[-19:]),
    }
    assert found.references == []
    said = [one["encoder"]["provenance"] for one in found.trainings[0].points[0]]
    (only,) = read(tmp_path, recipe="tiny", saved=said)
    assert [training.name for training in only.trainings] == ["Context encoder (central-a)"]


def test_imagenets_row_stands_above_random(scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(scored / "results", tmp_path, dirs_exist_ok=True)
    known = result(scored, "random")
    told = {"variant": "torchvision", "method": "labels", "supervision": "1000 class labels", "source": {"file": "x"}}
    known |= {"method": "labels", "variant": "torchvision"}
    known["encoder"]["provenance"] |= told
    path = result_path(tmp_path, recipe="tiny", method="labels", variant="torchvision", task="svm", seed=0)
    write_result(path, known)
    _, out, _ = bench(capsys, "curve", "--recipe", "tiny", "--results", tmp_path)
    assert [row["Iterations"] for row in cells(out)][3:] == ["ImageNet (torchvision)", "Random Gaussian", "(chance)"]
    assert bench(capsys, "curve", "--recipe", "tiny", "--results", tmp_path, "--out", tmp_path / "a.png")[0] == 0


def test_several_trainings_are_several_panels(scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for label in "abc":
        for row in (f"{ROW}-at-0", ROW):
            put(tmp_path, result(scored, row), label=label)
    code, out, _ = bench(capsys, "curve", "--recipe", "tiny", "--results", tmp_path, "--out", tmp_path / "a.png")
    assert code == 0
    assert out.count("### Context encoder (central-") == 3
    with Image.open(tmp_path / "a.png") as image:
        assert (image.width, image.height) == (1200, 920)


# ---- what is wrong ----


def test_runs_are_found_by_path_and_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    below = tmp_path / "runs" / "pretrain"
    for name in ("context-central-0123abcd", "context-0123abcd", "relative-0123abcd", "relative-9876abcd"):
        (below / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    runs = Path("runs")
    folder = runs / "pretrain" / "context-0123abcd"
    assert {find_run(name, runs) for name in (str(folder), folder.name, "context")} == {folder}
    with pytest.raises(Usage, match=r"^relative: 2 runs of this name: give relative-0123abcd or relative-9876abcd$"):
        find_run("relative", runs)
    with pytest.raises(Missing, match=r"^labels: no such run, nor in runs/pretrain: give the folder"):
        find_run("labels", runs)


def test_what_cannot_be_scored_is_refused_before_anything_is(
    scored: Path, tiny: Path, encoder_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--data", tiny, "--results", tmp_path / "results", "--runs", scored / "runs", "--device", "cpu"]
    (tmp_path / "bare").mkdir()
    shutil.copy(encoder_file, tmp_path / "bare" / "encoder.safetensors")
    shutil.copytree(tmp_path / "bare", tmp_path / "strange")
    shutil.copy(encoder_file, tmp_path / "strange" / "encoder-000001.safetensors")
    for name, exit_code, said in (
        ("nowhere", 3, "nowhere: no such run"),
        (tmp_path / "bare", 3, f"{tmp_path / 'bare'}: no encoders on the way: train again, with `bench pretrain --sav"),
        (tmp_path / "strange", 2, f"{tmp_path / 'strange' / 'encoder-000001.safetensors'}: not saved on the way"),
    ):
        code, out, err = bench(capsys, "curve", ROW, name, "--recipe", "tiny", *places)
        assert (code, out) == (exit_code, "")
        assert err.startswith(f"bench: {said}")
        assert err.count("\n") == 1
    code, _, err = bench(capsys, "curve", ROW, "--recipe", "tiny-bf16", *places)
    assert (code, err) == (2, "bench: --recipe tiny-bf16: svm has paper, quick, tiny\n")
    code, _, err = bench(capsys, "curve", "--results", tmp_path / "results")
    assert (code, err.count("\n")) == (3, 1)
    assert "no encoders on the way with recipe quick: run `bench pretrain --save-at" in err
    assert not (tmp_path / "results").exists()


def test_a_damaged_provenance_is_named(scored: Path, tmp_path: Path) -> None:
    for said in ({"layers": {"conv1": {"dead": "x"}}}, {"layers": [1]}, {"iterations": "2"}, {"batch": None}):
        put(tmp_path, result(scored, f"{ROW}-at-2"), label="a")
        (path,) = tmp_path.glob("tiny/*/svm-seed0.json")
        damaged = json.loads(path.read_text())
        damaged["encoder"]["provenance"] |= said
        path.write_text(json.dumps(damaged))
        with pytest.raises(Failed, match=r"svm-seed0\.json: "):
            read(tmp_path, recipe="tiny")
        shutil.rmtree(tmp_path / "tiny")


def test_another_method_has_no_paper_budget(scored: Path, tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    said = read_encoder(next((scored / "runs").glob("pretrain/*/encoder-000002.safetensors"))).provenance
    save_encoder(path, AlexNet(), said | {"method": "mine"})
    assert training_key(read_encoder(path).provenance).startswith("mine-central ")
    (one,) = read(scored / "results", recipe="tiny")
    other = replace(one.trainings[0], provenance=one.trainings[0].provenance | {"method": "mine"})
    assert other.share(2) is None
    assert one.trainings[0].share(100_000 * 64 // 4) == 1
