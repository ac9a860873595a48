"""`bench probes`: means over seeds, intervals from what results keep, chance, records; apart from Table 2."""

import csv
import io
import json
from dataclasses import asdict

import numpy as np
import pytest

from benchmarks import cli
from benchmarks.bootstrap import interval
from benchmarks.probes import columns, report
from benchmarks.results import SCHEMA, packed, read_result, read_results, result_path, write_result
from benchmarks.sections import of_table
from pretrain.alexnet import CAFFENET
from pretrain.files import Failed, Missing
from transfer import TASKS
from transfer.probes import scores
from transfer.resampling import resamplings

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "pool5")
IMAGES = 40


def labels():
    found = np.random.default_rng(9).choice([-1, -1, -1, 0, 1], size=(IMAGES, 20))
    found[:2] = [[1], [-1]]
    return found


def ranking(seed, shift):
    """Scores of the test images, the better the larger `shift`."""
    return np.random.default_rng(seed).normal(size=(IMAGES, 20)) + shift * (labels() > 0)


def svm(seed, shifts):
    """Layer → shift, as metrics and per-image arrays of a result; the cross-validated score is the shift."""
    found = {layer: ranking(100 * seed + place, shift) for place, (layer, shift) in enumerate(shifts.items())}
    metrics = {f"cv_{layer}": shift / 10 for layer, shift in shifts.items()}
    for layer, each in found.items():
        metrics |= scores.maps(each, labels(), prefix=f"{layer}_")
    metrics |= scores.maps(each, labels()) | scores.chance(labels(), "map_sklearn")
    kept = {f"replicates_{layer}": scores.pack(scores.replicates(each, labels())) for layer, each in found.items()}
    return metrics, {**scores.per_image(each, labels()), **kept}


def put(folder, task, metrics, arrays, *, method="random", seed=0, recipe="tiny", architecture=True):
    provenance = {"method": method, "variant": "", "supervision": "initialization", "iterations": 0, "seed": 0}
    digest = TASKS[task].load().RECIPES[recipe].sha256
    result = {
        "schema": SCHEMA, "method": method, "variant": "", "task": task, "seed": seed,
        "recipe": {"name": recipe, "sha256": digest},
        "data": {
            "name": "tiny", "split": "trainval → test", "images": {"train": 24, "test": IMAGES}, "sources": {},
            "sha256": "d",
        },
        "encoder": {
            "sha256": "e", "architecture": json.loads(json.dumps(asdict(CAFFENET))) if architecture else None,
            "provenance": provenance,
        },
        "receipt": {"loaded": 10, "expected": 10}, "metrics": metrics, "per_class": {"cat": 0.5},
        "per_image": packed(arrays), "seconds": 1.0, "resumed": False, "peak_memory_bytes": 1, "hardware": "a machine",
        "versions": {}, "commit": "c" * 40, "dirty": False,
    }  # fmt: skip
    path = result_path(folder, recipe=recipe, method=method, variant="", task=task, seed=seed)
    write_result(path, result)
    return path


SHIFTS = dict(zip(LAYERS, (0.5, 1.0, 3.0, 1.5, 1.0, 0.8), strict=True))


@pytest.fixture
def folder(tmp_path):
    """Two seeds of random in svm, a descriptor, one k-NN."""
    for seed in (0, 1):
        put(tmp_path, "svm", *svm(seed, SHIFTS), seed=seed)
    put(tmp_path, "svm", *svm(7, {"hog": 0.3}), method="hog", architecture=False)
    found = ranking(5, 1.0)
    metrics = scores.maps(found, labels()) | scores.chance(labels(), "map_sklearn")
    put(tmp_path, "knn", metrics, scores.per_image(found, labels()))
    return tmp_path


def records(folder):
    found = list(csv.DictReader(io.StringIO(report(folder, recipe=None, style="csv"))))
    return {(record["Row"], record["Task"], record["Column"]): record for record in found}


def test_a_cell_is_the_mean_over_seeds_and_its_interval(folder):
    """The interval is that of replicates computed anew, shifted onto the score, averaged over seeds."""
    found = records(folder)
    for place, layer in enumerate(LAYERS):
        values, kept = [], []
        for seed in (0, 1):
            each = ranking(100 * seed + place, SHIFTS[layer])
            value = 100 * scores.maps(each, labels())["map_sklearn"]
            weights = scores.resampled(scores.per_image(each, labels()), resamplings(IMAGES))
            values.append(value)
            kept.append(100 * weights - np.mean(100 * weights) + value)
        record = found["Random Gaussian", "svm", layer]
        assert float(record["Mean"]) == pytest.approx(np.mean(values), abs=1e-3)
        assert float(record["Deviation"]) == pytest.approx(np.std(values, ddof=1), abs=1e-3)
        low, high = interval(np.mean(kept, axis=0))
        assert (float(record["Low"]), float(record["High"])) == pytest.approx((low, high), abs=5e-3)
        assert record["Seeds"] in ("2", "2.0")


def test_the_best_layer_is_that_of_cross_validation(folder):
    found = records(folder)
    best, third = (found["Random Gaussian", "svm", name] for name in ("Best layer", "conv3"))
    assert {key: best[key] for key in ("Mean", "Low", "High")} == {key: third[key] for key in ("Mean", "Low", "High")}
    assert "| conv3: " in report(folder, recipe=None, style="markdown")
    assert ("hog", "svm", "conv1") not in found
    assert found["hog", "svm", "Best layer"]["Seeds"] in ("1", "1.0")


def test_markdown_says_what_it_shows(folder):
    text = report(folder, recipe="tiny", style="markdown")
    assert text.startswith("## Frozen features, recipe `tiny`\n")
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert "k-NN" in table[0]
    assert "image" not in table[0]  # there is no low-shot here
    mean, spread = (100 * value for value in scores.chance(labels(), "x").values())
    assert table[-1].split("|")[3].strip() == f"{mean:.1f} ± {spread:.1f}"
    assert "the test images are resampled" in text
    assert "24 + 40 images" in text
    assert "0.1, 1, 10, 100" in text
    assert text == report(folder, recipe="tiny", style="markdown")


def test_every_style_holds_the_same(folder):
    found = json.loads(report(folder, recipe=None, style="json"))
    assert len(found) == len(records(folder)) == 6 + 1 + 1 + 1 + 2
    assert all(record["Recipe"] == "tiny" for record in found)
    latex = report(folder, recipe=None, style="latex")
    assert latex.startswith("\\begin{tabular}")
    assert "hog" in latex
    assert len(columns()) == 6 + 1 + 8 + 1


def test_probes_and_table_2_do_not_see_each_other(folder, capsys):
    assert cli.main(["table2", "--results", str(folder)]) == 3
    assert cli.main(["compare", "random", "hog", "--results", str(folder)]) == 3
    assert of_table("table2", read_results(folder)) == []
    with pytest.raises(Missing, match="no probes of recipe quick: run `bench transfer --task probes`"):
        report(folder, recipe="quick", style="markdown")
    capsys.readouterr()
    assert cli.main(["probes", "--results", str(folder)]) == 0
    assert capsys.readouterr().out.startswith("## Frozen features")


@pytest.mark.parametrize("damage", ["gone", "short", "not a file"])
def test_replicates_that_cannot_be_read_are_one_line(damage, folder, capsys):
    path = folder / "tiny" / "random" / "svm-seed0.json"
    result = read_result(path)
    metrics, arrays = svm(0, SHIFTS)
    if damage == "gone":
        arrays.pop("replicates_conv1")
    elif damage == "short":
        arrays["replicates_conv1"] = arrays["replicates_conv1"][:10]
    write_result(path, result | {"per_image": "AAAA" if damage == "not a file" else packed(arrays)})
    text = report(folder, recipe=None, style="markdown")
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"left out: {path}: its per-image scores cannot be read" in err
    assert "delete it and run `bench transfer` again" in err
    cells = next(line for line in text.splitlines() if line.startswith("| Random"))
    assert f"{100 * read_result(path.with_name('svm-seed1.json'))['metrics']['conv2_map_sklearn']:.1f} (1)" in cells
    assert metrics


def test_a_result_of_table_2_needs_an_architecture(folder):
    path = folder / "tiny" / "hog" / "svm-seed0.json"
    assert read_result(path)["encoder"]["architecture"] is None
    moved = folder / "tiny" / "hog" / "classification-seed0.json"
    text = json.loads(path.read_text()) | {"task": "classification"}
    moved.write_text(json.dumps(text))
    with pytest.raises(Failed, match="not a result file"):
        read_result(moved)
