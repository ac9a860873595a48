"""Result files and the table made of them: truthful, byte-stable, never mixed."""

import copy
import io
import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import cli, probes, summary
from benchmarks.bootstrap import RESAMPLES, interval, replicates
from benchmarks.controls import control_line
from benchmarks.published import NONE, published
from benchmarks.results import (
    SCHEMA,
    packed,
    read_result,
    read_results,
    result_path,
    row_name,
    same_run,
    unpacked,
    write_result,
)
from benchmarks.rows import FULL, comparable, known_rows, spread
from benchmarks.sections import Section, sections
from benchmarks.table2 import frame, markdown, report
from pretrain import method_module
from pretrain.alexnet import CAFFENET
from pretrain.files import Failed, Missing
from transfer import TASKS, Data
from transfer.ranking import average_precisions


def per_image(task, score, images):
    """Test images that give `score`, a multiple of 1/40 from 1/2 on; the first two decide, the others hold nothing."""
    perfect = round(40 * score) - 20  # classes with an AP of 1; that of the others is 1/2
    if task == "classification":
        scores, labels = np.zeros((images, 20), np.float32), np.zeros((images, 20), np.int8)
        scores[0, :perfect] = 2
        scores[1] = 1
        labels[:2] = [[1] * 20, [-1] * 20]
        return {"scores": scores, "labels": labels}
    if task == "detection":
        found = [[0]] * perfect + [[1, 0]] * (20 - perfect)  # the images of each class's detections
        where = np.concatenate(found).astype(np.uint16)
        lengths = np.array([len(f) for f in found])
        positives = np.zeros((images, 20), np.uint16)
        positives[0] = 1
        return {"images": where, "true": where == 0, "lengths": lengths, "positives": positives}
    right, wrong = 20 + perfect, 20 - perfect  # of two classes: IU = right / (right + wrong)
    tables = np.zeros((images, 21, 21), np.int32)
    tables[0, :2, :2] = [[right, wrong], [0, right]]
    return {"tables": tables}


def make_result(
    *,
    method="context",
    variant="random-region",
    task="classification",
    seed=0,
    score=0.5,
    recipe="tiny",
    data="d",
    iterations=100,
    images=None,
    data_name="tiny",
    per_class=None,
    sha256="e",
    kind=None,
    **said,
):
    """`said`: what else the encoder's provenance says; `kind`: the data it says it had."""
    metric = TASKS[task].metric
    return {
        "schema": SCHEMA,
        "method": method,
        "variant": variant,
        "task": task,
        "recipe": {"name": recipe, "sha256": TASKS[task].load().RECIPES[recipe].sha256},
        "data": {
            "name": data_name,
            "split": "trainval → test",
            "images": images or {"train": 4, "test": 2},
            "sources": {},
            "sha256": data,
        },
        "encoder": {
            "sha256": sha256,
            "architecture": json.loads(json.dumps(asdict(CAFFENET))),
            "provenance": {
                "method": method,
                "variant": variant,
                "supervision": "context",
                "iterations": iterations,
                "seconds": 90.0,
            }
            | said
            | ({} if kind is None else {"data": kind}),
        },
        "receipt": {"loaded": 10, "expected": 10},
        "seed": seed,
        "metrics": {metric: score, f"chance_{metric}": 0.07},
        "per_class": per_class or {"cat": score},
        "per_image": packed(per_image(task, score, (images or {"test": 2})["test"])),
        "seconds": 1.0,
        "resumed": False,
        "peak_memory_bytes": 1,
        "hardware": "a machine",
        "versions": {},
        "commit": "c" * 40,
        "dirty": False,
    }


def put(folder: Path, **changes) -> Path:
    result = make_result(**changes)
    keys = {key: result[key] for key in ("method", "variant", "task", "seed")}
    path = result_path(folder, recipe=result["recipe"]["name"], **keys)
    write_result(path, result)
    return path


def test_path_follows_from_identity(tmp_path):
    path = put(tmp_path, seed=3, task="detection")
    assert path == tmp_path / "tiny" / "context-random-region" / "detection-seed3.json"
    assert read_result(path) == make_result(seed=3, task="detection")
    assert [p.name for p in path.parent.iterdir()] == ["detection-seed3.json"], "a temporary file was left"


@pytest.mark.parametrize("name", ["../../etc", "a/b", "", ".hidden", "a b"])
def test_row_names_cannot_leave_the_folder(name):
    with pytest.raises(Failed, match="not a row's name"):
        row_name(name, "")


def test_unknown_or_missing_keys_are_refused(tmp_path):
    broken = make_result()
    del broken["receipt"]
    with pytest.raises(Failed, match="receipt"):
        write_result(tmp_path / "x.json", broken)


def test_a_moved_result_is_mislabelled(tmp_path):
    path = put(tmp_path)
    moved = tmp_path / "tiny" / "autoencoder" / path.name
    moved.parent.mkdir()
    path.rename(moved)
    with pytest.raises(Failed, match="context-random-region"):
        read_results(tmp_path)


def test_a_result_renamed_inside_is_mislabelled(tmp_path):
    result = make_result() | {"method": "labels"}
    path = tmp_path / "tiny" / "labels-random-region" / "classification-seed0.json"
    write_result(path, result)
    with pytest.raises(Failed, match=r"classification-seed0\.json"):
        read_result(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": 99}', "\xff\xfe"])
def test_a_damaged_result_is_named(tmp_path, text):
    path = put(tmp_path)
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(Failed, match=r"classification-seed0\.json: not a result file"):
        report(tmp_path, recipe=None, style="markdown")


def test_stale_means_another_encoder_recipe_or_data():
    result = make_result()
    data = Data("trainval → test", {"train": 4, "test": 2}, "d")
    same = {"encoder": "e", "recipe": result["recipe"]["sha256"], "data": data}
    assert same_run(result, **same)
    others = {"sha256": replace(data, sha256="x"), "sources": replace(data, sources={"proposals": "others"})}
    for key, other in [("encoder", "x"), ("recipe", "x"), *(("data", value) for value in others.values())]:
        assert not same_run(result, **(same | {key: other}))


def test_spread_is_the_sample_deviation():
    assert spread([]) == "–"
    assert spread([50.0]) == "50.0 (1)"
    assert spread([50.0, 52.0]) == "51.0 ± 1.4 (2)"
    assert spread([50.0, 52.0, 54.0]) == "52.0 ± 2.0 (3)"


def test_seeds_share_a_row_and_budgets_do_not(tmp_path):
    put(tmp_path, seed=0, score=0.50)
    put(tmp_path, seed=1, score=0.525)
    put(tmp_path, seed=2, score=0.9, iterations=999)
    (section,) = sections(read_results(tmp_path))
    table = frame(section)
    cells = table[table.Method == "Context encoder (random-region)"].Classification.tolist()
    assert sorted(cells) == ["51.2 ± 1.8 (2) [34.9, 83.7] b", "90.0 (1) [86.6, 96.6] a"]


def test_every_row_of_the_paper_keeps_its_place(tmp_path):
    put(tmp_path)
    (section,) = sections(read_results(tmp_path))
    names = frame(section).Method.tolist()
    assert names == [
        "ImageNet",
        "Random Gaussian",
        "Autoencoder",
        "Agrawal et al.",
        "Wang et al.",
        "Doersch et al.",
        "Context encoder (random-region)",
        "(chance)",
    ]


def test_chance_has_its_spread_where_a_result_says_it(tmp_path):
    def chance():
        (section,) = sections(read_results(tmp_path))
        return frame(section).set_index("Method").loc["(chance)"].Classification

    path = put(tmp_path)
    assert chance() == "7.0"
    result = json.loads(path.read_text())
    result["metrics"] |= {"chance_map_sklearn": 0.0812, "chance_map_sklearn_spread": 0.0049}
    path.write_text(json.dumps(result))
    put(tmp_path, seed=1)  # an older one, of another definition
    assert chance() == "8.1 ± 0.5"


def test_other_data_and_other_recipes_go_to_other_tables(tmp_path):
    put(tmp_path, method="context", seed=0)
    put(tmp_path, method="autoencoder", variant="", seed=0)
    put(tmp_path, method="random", variant="", data="other")
    put(tmp_path, method="random", variant="", recipe="quick")
    found = sections(read_results(tmp_path))
    described = [(s.recipe, sorted(r["method"] for r in s.results)) for s in found]
    assert described == [("quick", ["random"]), ("tiny", ["autoencoder", "context"]), ("tiny", ["random"])]


def test_another_precision_is_a_section_behind_its_recipe(tmp_path, monkeypatch):
    recipes = TASKS["classification"].load().RECIPES
    others = {f"{name}-bf16": replace(recipes[name], name=f"{name}-bf16") for name in ("paper", "quick", "tiny")}
    monkeypatch.setattr(TASKS["classification"].load(), "RECIPES", {**recipes, **others})
    for recipe in ("tiny-bf16", "quick", "quick-fc6-8", "quick-bf16", "paper-bf16"):
        put(tmp_path, recipe=recipe)
    found = [section.recipe for section in sections(read_results(tmp_path))]
    assert found == ["paper-bf16", "quick", "quick-bf16", "quick-fc6-8", "tiny-bf16"]


def test_a_changed_recipe_leaves_the_table(tmp_path, capsys):
    put(tmp_path)
    path = put(tmp_path, seed=1, score=0.975)
    result = read_result(path)
    result["recipe"]["sha256"] = "of another day"
    write_result(path, result)
    text = report(tmp_path, recipe=None, style="markdown")
    assert "97.5" not in text
    assert "1 results left out" in capsys.readouterr().err


SAID = ("batch", "rate", "solver", "calibrate")  # of how an encoder was trained


def trained(method, mask=None):
    """What the provenance of an encoder that was trained by its method's defaults says of that."""
    recipe = asdict(method_module(method).defaults(mask))
    return {key: recipe[key] for key in SAID}


WHOLE = {"recipe": "paper", "data_name": "VOC", "images": FULL["classification"], "iterations": 100_000}
WHOLE |= trained("context")


def test_only_the_full_protocol_stands_beside_published_numbers(tmp_path):
    put(tmp_path, **WHOLE)
    text = report(tmp_path, recipe=None, style="markdown")
    assert "ours / published" in text.splitlines()[0]
    assert re.search(r"50\.0 \(1\) \[[\d., ]+\] / 56\.5", text)


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": "quick"},
        {"images": {"train": 5011, "test": 100}},
        {"data_name": "a VOC of my own"},
        {"iterations": 99_999},
        {"variant": "central"},  # not the encoder that 56.5 stands for
        {"variant": "random-region-rescaled"},
        {"batch": 32},
        {"rate": 1e-3},
        {"mask": "central"},  # whose rate is 1e-3
        {"solver": {"name": "sgd", "momentum": 0.9, "decay": 0.0, "step": 0, "drop": 1.0}},
        {"calibrate": True},
        {"precision": "bf16"},
        {"start": "kmeans"},
    ],
    ids=str,
)
def test_anything_less_does_not(change, tmp_path):
    put(tmp_path, **WHOLE | change)
    text = report(tmp_path, recipe=None, style="markdown")
    assert "/ 56.5" not in text
    assert "not comparable" in text.splitlines()[0]


def test_older_encoders_and_untrained_ones_stand_there_too(tmp_path):
    """The ones say nothing of solver and calibration; the others were not trained by what they say of it."""
    older = {key: value for key, value in WHOLE.items() if key not in ("solver", "calibrate")}
    put(tmp_path / "a", **older)
    assert "/ 56.5" in report(tmp_path / "a", recipe=None, style="csv")
    untrained = older | {"method": "random", "variant": "", "iterations": 0, "batch": 1, "rate": 0.0}
    put(tmp_path / "b", **untrained)
    assert "/ 53.3" in report(tmp_path / "b", recipe=None, style="csv")
    put(tmp_path / "c", **untrained | {"start": "kmeans"})
    assert "/ 53.3" not in report(tmp_path / "c", recipe=None, style="csv")
    put(tmp_path / "d", **WHOLE | {"precision": "fp32", "start": ""})
    assert "/ 56.5" in report(tmp_path / "d", recipe=None, style="csv")


def test_another_trunk_does_not_but_weights_of_the_authors_do(tmp_path):
    other = make_result(**WHOLE)
    other["encoder"]["architecture"] |= {"norm": "none"}
    save(tmp_path / "a", other)
    assert "/ 56.5" not in report(tmp_path / "a", recipe=None, style="csv")
    theirs = make_result(**WHOLE | {"variant": "released", "iterations": None} | dict.fromkeys(SAID))
    theirs["encoder"]["provenance"] |= {"source": {"file": "ce_features.caffemodel"}}
    save(tmp_path / "b", theirs)
    assert "/ 56.5" in report(tmp_path / "b", recipe=None, style="csv")


def test_formats_and_bytes(tmp_path, capsys):
    put(tmp_path, seed=0)
    put(tmp_path, seed=1, score=0.6, task="segmentation")
    arguments = ["table2", "--results", str(tmp_path)]
    printed = {}
    for style in ("markdown", "csv", "latex", "json"):
        for _ in range(2):
            assert cli.main([*arguments, "--format", style]) == 0
            out, err = capsys.readouterr()
            assert err == ""
            assert printed.setdefault(style, out) == out
    assert "| Method" in printed["markdown"]
    assert printed["markdown"].endswith("|\n")
    rows = pd.read_csv(io.StringIO(printed["csv"]))
    assert rows.Classification.tolist()[6] == "50.0 (1) [33.2, 83.2]"
    assert json.loads(printed["json"])[6]["Segmentation"] == "60.0 (1) [60.0, 60.0]"
    assert r"\begin{tabular}" in printed["latex"]


def test_no_results_is_missing_data(tmp_path, capsys):
    with pytest.raises(Missing, match="run `bench transfer"):
        report(tmp_path, recipe=None, style="markdown")
    assert cli.main(["table2", "--results", str(tmp_path)]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1


def test_published_rows_are_those_of_the_paper():
    rows = {
        row["method"]: (row["classification"], row["detection"], row["segmentation"]) for row in published("table2")
    }
    assert rows == {
        "labels": (78.2, 56.8, 48.0),
        "random": (53.3, 43.4, 19.8),
        "autoencoder": (53.8, 41.9, 25.2),
        "egomotion": (52.9, 41.8, None),
        "tracking": (58.7, 47.4, None),
        "relative": (55.3, 46.6, None),
        "context": (56.5, 44.5, 30.0),
    }


def test_a_new_method_gets_a_row_of_its_own(tmp_path):
    put(tmp_path, method="jigsaw", variant="")
    (section,) = sections(read_results(tmp_path))
    row = frame(section).set_index("Method").loc["jigsaw"]
    assert (row.Supervision, row.Classification) == ("context", "50.0 (1) [33.2, 83.2]")


def test_reading_does_not_change_results(tmp_path):
    put(tmp_path)
    found = read_results(tmp_path)
    before = copy.deepcopy(found)
    for section in sections(found):
        frame(section)
    assert found == before


def test_the_committed_tables_are_what_the_commands_print():
    root = Path(__file__).resolve().parent.parent
    results = root / "results"
    short = summary.report(results, recipe="quick")
    printed = {
        "table2.md": report(results, recipe="quick", style="markdown"),
        "probes.md": probes.report(results, recipe="quick", style="markdown"),
        "summary.md": short,
    }
    assert {name: (results / name).read_text() for name in printed} == printed
    rows = [line for line in short.splitlines() if line.startswith("|")]
    assert len(rows) <= 13, "ten rows at most, and chance"
    assert "\n".join(rows) in (root / "README.md").read_text(), "README shows other numbers"


# ---- what a row says of its encoder ----


def cells(folder, **changes):
    """The rows of the table of one result, by their names."""
    put(folder, **changes)
    (section,) = sections(read_results(folder))
    return frame(section).set_index("Method")


TEN = {"method": "labels", "variant": "10-classes", "kind": "10-classes", "supervision": "10 class labels"}
STILLS = {"variant": "synthetic", "kind": "synthetic", "supervision": "motion, synthetic from stills"}


@pytest.mark.parametrize(
    ("said", "name"),
    [
        (TEN, "Class labels (10-classes)"),
        (TEN | {"variant": "10-classes-rescaled"}, "Class labels (10-classes-rescaled)"),
        (TEN | {"variant": "10-classes-long"}, "Class labels (10-classes-long)"),
        ({"method": "labels", "variant": "", "supervision": "1000 class labels"}, "ImageNet"),
        ({"method": "labels", "variant": "rescaled", "supervision": "1000 class labels"}, "ImageNet (rescaled)"),
        ({"method": "labels", "variant": "caffenet", "supervision": "1000 class labels"}, "ImageNet (caffenet)"),
        ({"method": "labels", "variant": "torchvision", "supervision": "1000 class labels"}, "ImageNet (torchvision)"),
        ({"method": "labels", "variant": "mine", "supervision": "class labels"}, "Class labels (mine)"),
        (STILLS | {"method": "egomotion"}, "Agrawal et al. (synthetic)"),
        (STILLS | {"method": "tracking"}, "Wang et al. (synthetic)"),
        ({"method": "tracking", "variant": "", "supervision": "motion"}, "Wang et al."),
    ],
    ids=str,
)
def test_a_row_is_called_what_its_encoder_saw(said, name, tmp_path):
    assert cells(tmp_path, **said).loc[name].Supervision == said["supervision"]


def test_what_was_not_trained_was_supervised_by_nothing(tmp_path):
    table = cells(tmp_path, **STILLS, method="tracking", iterations=0)
    assert table.loc["Wang et al. (synthetic)"].Supervision == "initialization"


def test_an_encoder_that_is_silent_borrows_only_its_own_row_s_word(tmp_path):
    assert cells(tmp_path / "a", method="labels", variant="", supervision="").loc["ImageNet"].Supervision == (
        "1000 class labels"
    )
    silent = cells(tmp_path / "b", **TEN | {"supervision": ""})
    assert silent.loc["Class labels (10-classes)"].Supervision == NONE


def test_labels_of_ten_classes_leave_imagenet_unmeasured(tmp_path):
    table = cells(tmp_path, **TEN)
    assert table.index[:2].tolist() == ["ImageNet", "Class labels (10-classes)"]
    assert table.loc["ImageNet"].tolist() == ["1000 class labels", *[NONE] * 5]
    put(tmp_path, method="labels", variant="torchvision", supervision="1000 class labels")
    (section,) = sections(read_results(tmp_path))
    assert frame(section).Method[:2].tolist() == ["ImageNet (torchvision)", "Class labels (10-classes)"]
    stills = cells(tmp_path / "stills", method="egomotion", **STILLS)
    assert [name for name in stills.index if "Agrawal" in name] == ["Agrawal et al. (synthetic)"]


@pytest.mark.parametrize("method", ["labels", "egomotion", "tracking", "relative", "context"])
def test_other_data_is_not_comparable(method):
    """In full, so that the data alone decides."""
    row = known_rows()[method]
    stands = row["variants"][0]
    full = WHOLE | trained(method) | {"method": method, "iterations": row["iterations"]}
    assert comparable(make_result(variant=stands, **full), row)
    assert not comparable(make_result(variant=stands, **full | {"iterations": row["iterations"] - 1}), row)
    assert not comparable(make_result(variant=stands, **full | {"batch": 1}), row)
    assert full["iterations"] <= method_module(method).defaults(None).iterations
    for data in ("10-classes", "synthetic"):
        variant = "-".join(filter(None, (stands, data)))
        assert not comparable(make_result(variant=variant, **full), row)
        assert not comparable(make_result(variant=variant, kind=data, **full | {"iterations": 10**9}), row)


def test_no_published_number_beside_ten_classes(tmp_path):
    put(tmp_path, **WHOLE | trained("labels") | TEN | {"iterations": 450_000})
    text = report(tmp_path, recipe=None, style="markdown")
    assert "/ 78.2" not in text
    assert "not comparable" in text.splitlines()[0]


@pytest.mark.parametrize("key", ["supervision", "kind", "calibrate", "version", "precision", "start"])
def test_other_supervision_is_another_row(key, tmp_path, capsys):
    said = {"supervision": "10 class labels", "kind": "synthetic", "calibrate": True, "version": 2}
    said |= {"precision": "bf16", "start": "kmeans"}
    put(tmp_path, seed=0)
    put(tmp_path, seed=1, **{key: said[key]})
    put(tmp_path, method="random", variant="")
    (section,) = sections(read_results(tmp_path))
    names = frame(section).Method.tolist()
    assert names.count("Context encoder (random-region)") == 2
    assert cli.main(["compare", "context-random-region", "random", "--results", str(tmp_path)]) == 1
    assert "differ in their pre-training" in capsys.readouterr().err


def test_seeds_of_older_and_newer_encoders_share_a_row(tmp_path):
    put(tmp_path, seed=0)
    newer = {"precision": "fp32", "start": ""}
    put(tmp_path, seed=1, kind="", calibrate=False, solver={"name": "adam"}, processes=1, held_out={}, **newer)
    (section,) = sections(read_results(tmp_path))
    assert frame(section).set_index("Method").loc["Context encoder (random-region)"].Classification[:3] == "50."
    put(tmp_path, seed=2, solver={"name": "sgd"})
    (section,) = sections(read_results(tmp_path))
    assert sum(name.startswith("Context encoder") for name in frame(section).Method) == 2


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ({"hardware": "AMD EPYC, 1 threads of 2 cores"}, "AMD EPYC, 1 thread"),
        ({"hardware": "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz, 16 threads of 32 cores"},
         "Intel Xeon Platinum 8481C, 16 threads"),
        ({"hardware": "AMD EPYC 7763 64-Core Processor, 11 threads of 64 cores"}, "AMD EPYC 7763, 11 threads"),
        ({"hardware": "NVIDIA H100 80GB HBM3"}, "H100 80GB HBM3"),
        ({"hardware": "NVIDIA H100 80GB HBM3", "processes": 4}, "4 × H100 80GB HBM3"),
        ({"hardware": "NVIDIA H100 80GB HBM3", "processes": 1}, "H100 80GB HBM3"),
        ({"hardware": "NVIDIA H100 80GB HBM3", "iterations": 0, "seconds": 0.0}, NONE),  # not trained
        ({"hardware": "NVIDIA H100 80GB HBM3", "iterations": 0, "seconds": 9.0}, "H100 80GB HBM3"),  # k-means
        ({"hardware": "NVIDIA H100 80GB HBM3", "source": {"file": "a.pth"}}, NONE),  # trained elsewhere
        ({}, NONE),
    ],
    ids=str,
)  # fmt: skip
def test_the_hardware_of_the_pre_training(said, shown, tmp_path):
    put(tmp_path, **{key: value for key, value in said.items() if key != "seconds"})
    if "seconds" in said:
        put(tmp_path, **said)
    (section,) = sections(read_results(tmp_path))
    table = frame(section)
    assert table.columns.tolist()[1:4] == ["Supervision", "Pre-training time", "Hardware"]
    assert table.set_index("Method").loc["Context encoder (random-region)"].Hardware == shown


def test_seeds_on_different_hardware_name_it_all(tmp_path):
    for seed, name in enumerate(("NVIDIA H200", "NVIDIA H100 80GB HBM3", "NVIDIA H200")):
        put(tmp_path, seed=seed, hardware=name)
    (section,) = sections(read_results(tmp_path))
    row = frame(section).set_index("Method").loc["Context encoder (random-region)"]
    assert row.Hardware == "H100 80GB HBM3; H200"
    assert "(3)" in row.Classification


HELD_OUT = {"top1": 0.31, "chance_top1": 0.1, "top5": 0.75, "chance_top5": 0.5, "sign_error": 0.125}


def held_out_lines(folder):
    printed = report(folder, recipe=None, style="markdown")
    return [line for line in printed.splitlines() if "held-out" in line]


def test_held_out_scores_are_conditions_one_a_row(tmp_path):
    for task in ("classification", "detection"):
        put(tmp_path, task=task, held_out=HELD_OUT, **TEN)
    put(tmp_path, held_out={})
    rescaled = TEN | {"variant": "10-classes-rescaled", "rescaled": {"dataset": {"name": "photos"}}, "sha256": "r"}
    put(tmp_path, held_out=HELD_OUT, **rescaled)  # the head belonged to the encoder before
    assert held_out_lines(tmp_path) == [
        "- labels-10-classes: held-out sign error 12.5, top-1 31.0 (chance 10.0), top-5 75.0 (chance 50.0)."
    ]


def test_held_out_scores_of_several_encoders_are_averaged(tmp_path):
    for seed, (sha256, top1) in enumerate((("a", 0.30), ("b", 0.32), ("b", 0.32))):
        put(tmp_path, seed=seed, sha256=sha256, held_out={"top1": top1, "chance_top1": 0.1}, **TEN)
    assert held_out_lines(tmp_path) == ["- labels-10-classes: held-out top-1 31.0 ± 1.4 (2) (chance 10.0)."]


def test_the_paper_s_order_then_the_extras_then_new_ones_raw_before_rescaled(tmp_path):
    """Result paths sort otherwise: autoencoder, context, egomotion, kmeans, labels, random, relative, tracking."""
    variants = dict.fromkeys(("random", "autoencoder", "kmeans", "relative", "aaa", "zzz"), ("rescaled", ""))
    variants |= {"labels": ("10-classes-rescaled", "rescaled", "10-classes", ""), "tracking": ("", "synthetic")}
    variants |= {"context": ("random-region-rescaled", "central-rescaled", "random-region", "central")}
    for method, names in variants.items():
        for name in names:
            put(tmp_path, method=method, variant=name)
    (section,) = sections(read_results(tmp_path))
    assert frame(section).Method.tolist() == [
        "ImageNet", "ImageNet (rescaled)", "Class labels (10-classes)", "Class labels (10-classes-rescaled)",
        "Random Gaussian", "Random Gaussian (rescaled)",
        "Autoencoder", "Autoencoder (rescaled)",
        "Agrawal et al.",
        "Wang et al.", "Wang et al. (synthetic)",
        "Doersch et al.", "Doersch et al. (rescaled)",
        "Context encoder (central)", "Context encoder (central-rescaled)",
        "Context encoder (random-region)", "Context encoder (random-region-rescaled)",
        "k-means initialization", "k-means initialization (rescaled)",
        "aaa", "aaa (rescaled)", "zzz", "zzz (rescaled)",
        "(chance)",
    ]  # fmt: skip
    assert frame(Section(section.recipe, section.results[::-1])).Method.tolist() == frame(section).Method.tolist()


# ---- class by class ----


def long(folder, style, capsys):
    """What the command prints, twice the same."""
    printed = []
    for _ in range(2):
        assert cli.main(["table2", "--results", str(folder), "--long", "--format", style]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        printed.append(out)
    assert printed[0] == printed[1]
    return printed[0]


@pytest.fixture
def classes(tmp_path):
    """Two seeds of one row, a row of the same name, a task with one row."""
    put(tmp_path, seed=0, per_class={"cat": 0.5, "dog": None, "cow": 0.2})
    put(tmp_path, seed=1, per_class={"cat": 0.25, "dog": None, "cow": None})
    put(tmp_path, seed=2, per_class={"cat": 1.0, "dog": 0.125, "cow": 0.0}, iterations=999)
    put(tmp_path, method="random", variant="", per_class={"cat": 0.125, "dog": 0.0, "cow": 0.0})
    put(tmp_path, task="segmentation", per_class={"background": 0.7})
    return tmp_path


def test_long_adds_one_table_a_task(classes, capsys):
    short, text = report(classes, recipe=None, style="markdown"), long(classes, "markdown", capsys)
    own, published_tables = short.split("## Table 2 as published")
    assert text.startswith(own)
    assert text.endswith(published_tables)
    between = text.removeprefix(own).split("## Table 2 as published")[0]
    tables = {
        block.split(" by class")[0]: [
            [cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines() if line[:1] == "|"
        ]
        for block in between.split("### ")[1:]
    }
    assert list(tables) == ["Classification", "Segmentation"]
    head, _, *rows = tables["Classification"]
    assert head == ["Method", "cat", "cow", "dog"]
    assert rows == [
        ["Random Gaussian", "12.5", "0.0", "0.0"],
        ["Context encoder (random-region)", "37.5", "20.0", "–"],
        ["Context encoder (random-region) #2", "100.0", "0.0", "12.5"],
    ]
    assert tables["Segmentation"][2:] == [["Context encoder (random-region)", "70.0"]]


def test_long_records_are_tidy(classes, capsys):
    records = json.loads(long(classes, "json", capsys))
    assert len(records) == 3 * 3 + 1
    assert len({(r["Task"], r["Row"], r["Class"]) for r in records}) == len(records)
    context = "Context encoder (random-region)"
    found = {(r["Task"], r["Row"], r["Class"]): (r["Mean"], r["Seeds"]) for r in records}
    assert found["classification", context, "cat"] == (37.5, 2)
    assert found["classification", context, "cow"] == (20.0, 1)
    assert found["classification", context, "dog"] == (None, 0)
    assert found["segmentation", context, "background"] == (70.0, 1)
    told = {"Recipe": "tiny", "Data": "tiny trainval → test, 4 + 2 images", "Task": "classification"}
    assert records[0] == told | {"Row": "Random Gaussian", "Class": "cat", "Mean": 12.5, "Seeds": 1}
    table = pd.read_csv(io.StringIO(long(classes, "csv", capsys)))
    assert table.columns.tolist() == ["Recipe", "Data", "Task", "Row", "Class", "Mean", "Seeds"]
    assert table.astype(object).where(table.notna(), None).to_dict(orient="records") == records


def test_long_has_no_place_in_latex(classes, capsys):
    assert cli.main(["table2", "--results", str(classes), "--long", "--format", "latex"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "not in latex" in err


def test_the_classes_of_the_committed_results_give_their_cells():
    """Where every class has a score, the mean over classes of the means over seeds is the cell's."""
    results = Path(__file__).resolve().parent.parent / "results"
    table = pd.DataFrame(json.loads(report(results, recipe="quick", style="json"))).set_index("Method")
    classes = pd.DataFrame(json.loads(report(results, recipe="quick", style="json", long=True)))
    compared = 0
    for (task, row), own in classes.groupby(["Task", "Row"]):
        assert len(own) == {"classification": 20, "detection": 20, "segmentation": 21}[task]
        shown = float(table.loc[row, task.capitalize()].split()[0])
        assert own.Mean.mean() == pytest.approx(shown, abs=0.0501)
        compared += 1
    assert compared >= 6


# ---- how sure a score is ----


def random_result(seed, *, shift=0.0, variant="random-region", data="d", **changes):
    """A classification result on 200 images whose scores follow the labels the more, the larger `shift`."""
    truth, noise = np.random.default_rng(0), np.random.default_rng(seed + 1)
    labels = np.where(truth.random((200, 20)) < 0.2, 1, -1).astype(np.int8)
    scores = (noise.normal(size=(200, 20)) + shift * labels).astype(np.float32)
    aps = average_precisions(scores.astype(np.float64), labels.astype(np.int64), metric="sklearn")
    made = make_result(variant=variant, seed=seed, data=data, images={"train": 4, "test": 200}, **changes)
    made["metrics"]["map_sklearn"] = float(np.mean([ap for ap in aps if ap is not None]))
    return made | {"per_image": packed({"scores": scores, "labels": labels})}


def save(folder, result):
    keys = {key: result[key] for key in ("method", "variant", "task", "seed")}
    write_result(result_path(folder, recipe=result["recipe"]["name"], **keys), result)


def test_the_interval_covers_the_score_and_narrows_with_the_images():
    one = replicates([random_result(0, shift=0.5)])
    low, high = interval(one)
    score = 100 * random_result(0, shift=0.5)["metrics"]["map_sklearn"]
    assert low < score < high
    assert np.mean(one) == pytest.approx(score)  # what repeated images add is taken off
    assert len(one) == RESAMPLES
    # By theory the bootstrap's deviation of a mean over classes shrinks as 1/sqrt(images): resample 50 of the images.
    arrays = unpacked(random_result(0, shift=0.5)["per_image"])
    few = random_result(0, shift=0.5)
    few["data"]["images"]["test"] = 50
    few["per_image"] = packed({key: value[:50] for key, value in arrays.items()})
    aps = average_precisions(arrays["scores"][:50].astype(float), arrays["labels"][:50].astype(int), metric="sklearn")
    few["metrics"]["map_sklearn"] = float(np.mean([ap for ap in aps if ap is not None]))
    assert 1.4 < np.nanstd(replicates([few])) / np.std(one) < 3


def test_seeds_are_averaged_within_a_resampling():
    first, second = random_result(0, shift=0.5), random_result(1, shift=0.5)
    together = replicates([first, second])
    np.testing.assert_allclose(together, (replicates([first]) + replicates([second])) / 2)


def test_scores_that_do_not_give_the_result_are_refused():
    result = random_result(0)
    result["metrics"]["map_sklearn"] += 0.01
    with pytest.raises(Failed, match=r"tiny/context-random-region/classification-seed0\.json: .*not its score"):
        replicates([result])
    result["per_image"] = result["per_image"][:-40]
    with pytest.raises(Failed, match=r"classification-seed0\.json: its per-image scores cannot be read"):
        replicates([result])


def test_packed_scores_are_the_same_bytes_and_hold_no_pickle():
    arrays = {"scores": np.arange(3.0)}
    assert packed(arrays) == packed(arrays)
    assert (unpacked(packed(arrays))["scores"] == arrays["scores"]).all()
    with pytest.raises(ValueError, match="damaged per-image scores"):
        unpacked(packed({"scores": np.array([print], dtype=object)}))


def test_compare(tmp_path, capsys):
    save(tmp_path, random_result(0, shift=0.9))
    save(tmp_path, random_result(1, shift=0.9))
    save(tmp_path, random_result(0, shift=0.2, variant="central"))
    save(tmp_path, random_result(5, shift=0.9, variant="other"))

    def answer(*rows):
        assert cli.main(["compare", *rows, "--results", str(tmp_path)]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return next(line for line in out.splitlines() if line.startswith("| classification"))

    assert "| yes" in answer("context-random-region", "context-central")
    assert "no, it is behind" in answer("context-central", "context-random-region")
    assert "not significant" in answer("context-random-region", "context-other")
    assert "(2)" in answer("context-random-region", "context-other")


def test_compare_wants_one_pre_training_a_row(tmp_path, capsys):
    save(tmp_path, random_result(0))
    save(tmp_path, random_result(1, iterations=999))
    save(tmp_path, random_result(0, variant="other"))
    command = ["compare", "context-random-region", "context-other", "--results", str(tmp_path)]
    assert cli.main(command) == 1
    assert "context-random-region differ in their pre-training" in capsys.readouterr().err
    assert cli.main(["compare", "random", "random", "--results", str(tmp_path)]) == 2
    assert "against itself" in capsys.readouterr().err


# ---- what the controls showed ----

IMAGENET = {"method": "labels", "variant": "caffenet", "supervision": "1000 class labels", "source": {"file": "a"}}
GAUSSIAN = {"method": "random", "variant": "", "iterations": 0, "supervision": "initialization"}
NO_CONTROL = "no positive control among these results: differences may say nothing about features"


def lines(folder):
    return report(folder, recipe=None, style="markdown").split("## Table 2 as published")[0].splitlines()


def test_the_control_is_the_paired_difference_of_means_over_seeds():
    best = [random_result(seed, shift=0.9, **IMAGENET) for seed in range(2)]
    chance = [random_result(seed + 5, **GAUSSIAN) for seed in range(3)]
    low, high = interval(replicates(best) - replicates(chance))
    means = [100 * np.mean([result["metrics"]["map_sklearn"] for result in rows]) for rows in (best, chance)]
    shown = f"+{means[0] - means[1]:.0f} [{low:.0f}, {high:.0f}]"
    assert low > 20
    found = [*best, *chance, random_result(9, shift=0.2)]
    assert control_line(found, "classification") == f"positive control: ImageNet (caffenet) − random: {shown}"
    assert control_line(found, "detection") == NO_CONTROL


def test_a_column_that_its_control_does_not_see_is_called_blind():
    found = [random_result(0, **IMAGENET), random_result(1, shift=0.02, **GAUSSIAN)]
    gaps = replicates(found[:1]) - replicates(found[1:])
    low, high = interval(gaps)
    assert low < 0 < high
    numbers = f"{gaps.mean():+.1f} [{low:.1f}, {high:.1f}]".replace("-", "−")
    line = control_line(found, "classification")
    assert line == (
        f"positive control: ImageNet (caffenet) − random: {numbers}; blind: differences in this column may say "
        "nothing about features"
    )


@pytest.mark.parametrize(
    ("said", "counts"),
    [
        ({}, True),
        ({"method": "imagenet", "variant": "", "supervision": "imported"}, True),
        ({"variant": "", "source": None}, True),  # trained here
        ({"variant": "caffenet-rescaled"}, False),
        (TEN, False),
        ({"method": "rotnet", "supervision": "rotation"}, False),
        ({"variant": "", "source": None, "iterations": 0}, False),  # not trained
    ],
    ids=str,
)
def test_what_is_a_positive_control(said, counts):
    told = {key: value for key, value in (IMAGENET | said).items() if value is not None}
    found = [random_result(0, shift=0.9, **told), random_result(1, **GAUSSIAN)]
    assert (control_line(found, "classification") != NO_CONTROL) == counts
    assert control_line(found[:1], "classification") == NO_CONTROL
    rescaled = random_result(1, **GAUSSIAN | {"variant": "rescaled"})
    assert control_line([found[0], rescaled], "classification") == NO_CONTROL


def test_imported_weights_are_the_control_before_those_trained_here():
    here = {"method": "labels", "variant": "", "supervision": "1000 class labels"}
    found = [random_result(0, shift=0.2, **here), random_result(0, shift=0.9, **IMAGENET), random_result(1, **GAUSSIAN)]
    assert "ImageNet (caffenet) − random" in control_line(found, "classification")
    longer = random_result(0, shift=0.5, **here | {"variant": "caffenet", "iterations": 999})
    assert "ImageNet (caffenet) − random" in control_line([found[0], longer, found[2]], "classification")


def test_the_control_stands_under_every_table(tmp_path, capsys):
    for recipe in ("tiny", "quick"):
        save(tmp_path, random_result(1, recipe=recipe, **GAUSSIAN))
    save(tmp_path, random_result(0, shift=0.9, **IMAGENET))
    for task, score in (("detection", 0.5), ("segmentation", 0.6)):
        put(tmp_path, task=task, score=score, **GAUSSIAN)
    put(tmp_path, task="detection", score=0.6, **IMAGENET)
    (told,) = [line for line in lines(tmp_path) if line.startswith("- positive control")]
    assert re.fullmatch(
        r"- positive control: ImageNet \(caffenet\) − random: \+\d\d \[\d\d, \d\d\] in classification, "
        r"\+10\.0 \[-?\d\.\d, \d+\.\d\] in detection; (blind in detection, )?none in segmentation: differences "
        r"there may say nothing about features\.",
        told.replace("−0", "-0"),
    )
    assert f"- {NO_CONTROL}." in lines(tmp_path)
    records = json.loads(report(tmp_path, recipe=None, style="json"))
    assert {record["Control"] for record in records} == {told[2:-1], NO_CONTROL}


def test_letters_stand_beside_the_numbers_and_are_explained(tmp_path):
    for seed, shift, said in ((0, 0.9, IMAGENET), (1, 0.0, GAUSSIAN), (2, 0.01, {}), (3, 0.9, {"variant": "central"})):
        save(tmp_path, random_result(seed, shift=shift, **said))
    put(tmp_path, task="segmentation")  # alone in its column
    text = lines(tmp_path)
    own = {row.split("|")[1].strip(): [cell.strip() for cell in row.split("|")[5:8]] for row in text if row[:1] == "|"}
    ends = {name: cells[0].split()[-1] for name, cells in own.items() if "[" in cells[0]}
    assert ends == {
        "ImageNet (caffenet)": "a",
        "Random Gaussian": "b",
        "Context encoder (central)": "a",
        "Context encoder (random-region)": "b",
    }
    assert own["Context encoder (random-region)"][2] == "50.0 (1) [50.0, 50.0]"
    assert own["(chance)"][0] == "7.0"
    (told,) = [line for line in text if line.startswith("Letters: ")]
    for what in ("5%", "test images", "mean over its seeds", "Holm", "Training seeds are not resampled"):
        assert what in told
    single = tmp_path / "single"
    put(single)
    assert not [line for line in lines(single) if line.startswith("Letters")]


def test_replicates_are_computed_once(monkeypatch):
    """For the interval, the letters and the control alike."""
    module, counted = TASKS["classification"].load(), []
    compute = module.resampled

    def counting(kept, weights):
        counted.extend([1] * (len(weights) > 1))  # one alone is the check that they give the score
        return compute(kept, weights)

    monkeypatch.setattr(module, "resampled", counting)
    found = [random_result(70, shift=0.9, **IMAGENET), random_result(71, **GAUSSIAN)]
    (section,) = sections(found)
    assert "− random" in markdown(section)
    assert len(counted) == 2
    before = replicates(found[:1])
    before += 1  # the caller's own
    assert replicates(found[:1]).mean() == pytest.approx(before.mean() - 1)


SPOILED = {
    "no headline": lambda r: r["metrics"].pop("map_sklearn"),
    "no chance": lambda r: r["metrics"].pop("chance_map_sklearn"),
    "a spread of text": lambda r: r["metrics"].update(chance_map_sklearn_spread="0.01"),
    "no architecture": lambda r: r["encoder"].pop("architecture"),
    "half an architecture": lambda r: r["encoder"]["architecture"].pop("norm"),
    "no counts": lambda r: r["data"]["images"].pop("test"),
    "no sources": lambda r: r["data"].pop("sources"),
    "no commit": lambda r: r.update(commit=None),
    "a seed of text": lambda r: r.update(seed="0"),
    "a class's score of text": lambda r: r.update(per_class={"cat": "0.5"}),
    "a held-out score of text": lambda r: r["encoder"]["provenance"].update(held_out={"top1": "0.5"}),
    "no dictionary of held-out scores": lambda r: r["encoder"]["provenance"].update(held_out=[0.5]),
    "a supervision that is no text": lambda r: r["encoder"]["provenance"].update(supervision=["labels"]),
    "a hardware that is no text": lambda r: r["encoder"]["provenance"].update(hardware=1),
    "processes of text": lambda r: r["encoder"]["provenance"].update(processes="2"),
}


@pytest.mark.parametrize("kind", SPOILED)
def test_a_result_that_lacks_something_is_named(kind, tmp_path, capsys):
    path = put(tmp_path)
    result = json.loads(path.read_text())
    SPOILED[kind](result)
    path.write_text(json.dumps(result))
    assert cli.main(["table2", "--results", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "classification-seed0.json: not a result file" in err


def test_compare_what_cannot_be_compared(tmp_path, capsys):
    save(tmp_path, random_result(0))
    command = ["compare", "context-random-region", "random", "--results", str(tmp_path)]
    assert cli.main(command) == 3
    assert "of both context-random-region and random" in capsys.readouterr().err
    save(tmp_path, random_result(0, method="random", variant="", data="another"))
    assert cli.main(command) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "scored on different data" in err


# ---- other people's numbers ----


def test_successors_stand_apart(tmp_path, capsys):
    put(tmp_path)
    assert cli.main(["table2", "--results", str(tmp_path), "--with", "successors"]) == 0
    out = capsys.readouterr().out
    heading, rows = out.index("## Successors, as published"), published("successors")
    assert out.index("## Table 2 as published") < heading
    assert all(f"| {row['method']}" in out[heading:] for row in rows)
    counting = next(line for line in out.splitlines() if line.startswith("| Counting"))
    assert "(" not in counting  # all of it verified
    rotnet = next(line for line in out.splitlines() if line.startswith("| RotNet"))
    assert [cell.strip() for cell in rotnet.split("|")[3:7]] == ["(72.97)", "(70.87)", "54.4", "(39.1)"]
    assert cli.main(["table2", "--results", str(tmp_path), "--with", "successors", "--format", "csv"]) == 2
    assert "markdown only" in capsys.readouterr().err


def test_every_successor_says_what_was_verified():
    columns = {"classification", "fc68", "detection", "segmentation"}
    for row in published("successors"):
        assert set(row) == columns | {"method", "year", "notes", "source", "verified"}
        assert 2014 < row["year"] < 2021
        assert isinstance(row["verified"], bool) or set(row["verified"]) <= {c for c in columns if row[c]}


def test_table_1_is_published_too():
    assert [(row["l1"], row["l2"], row["psnr"]) for row in published("table1")] == [
        (19.92, 6.92, 12.79), (15.10, 4.30, 14.70), (9.37, 1.96, 18.58)]  # fmt: skip


def test_the_conditions_name_sources_and_other_trunks(tmp_path):
    result = make_result(task="detection")
    result["data"]["sources"] = {"proposals": "a.mat + b.mat (published)"}
    result["encoder"]["architecture"] |= {"groups": [1, 1, 1, 1, 1], "norm": "none"}
    save(tmp_path, result)
    lines = report(tmp_path, recipe=None, style="markdown").splitlines()
    assert "- Proposals: a.mat + b.mat (published)." in lines
    assert "- context-random-region: AlexNet with groups (1, 1, 1, 1, 1), norm none." in lines
    result["encoder"]["provenance"] |= {
        "dataset": {"name": "photos", "images": 1234}, "rescaled": {"dataset": {"name": "others"}}
    }  # fmt: skip
    save(tmp_path, result)
    assert "pre-trained on 1,234 images (photos), rescaled on others" in report(tmp_path, recipe=None, style="markdown")


def test_a_row_that_is_not_the_papers_has_its_name(tmp_path):
    put(tmp_path, method="kmeans", variant="", **{k: v for k, v in WHOLE.items() if k != "iterations"})
    (section,) = sections(read_results(tmp_path))
    table = frame(section)
    assert len(table) == 9  # the paper's seven, chance, and this one
    assert "/" not in table.set_index("Method").loc["k-means initialization"].Classification
