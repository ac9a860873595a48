"""Result files and the table made of them: truthful, byte-stable, never mixed."""

import copy
import io
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import cli
from benchmarks.results import SCHEMA, packed, read_result, read_results, result_path, row_name, same_run, write_result
from benchmarks.table2 import FULL, frame, published_rows, report, sections, spread
from pretrain.alexnet import CAFFENET
from pretrain.files import Failed, Missing
from transfer import TASKS

# Two test images; a resampling of them moves the score.
PER_IMAGE = {
    "classification": {"scores": np.eye(2, 20, dtype=np.float32), "labels": 2 * np.eye(2, 20, dtype=np.int8) - 1},
    "detection": {
        "images": np.array([0, 1], np.uint16),
        "true": np.array([True, True]),
        "lengths": np.array([2] + [0] * 19),
        "positives": np.ones((2, 20), np.uint16),
    },
    "segmentation": {"tables": np.stack([np.eye(21, dtype=np.int32), np.ones((21, 21), np.int32)])},
}


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
):
    metric = TASKS[task].metric
    return {
        "schema": SCHEMA,
        "method": method,
        "variant": variant,
        "task": task,
        "recipe": {"name": recipe, "sha256": TASKS[task].load().RECIPES[recipe].sha256},
        "data": {
            "name": "tiny",
            "split": "trainval → test",
            "images": images or {"train": 4, "test": 2},
            "sha256": data,
        },
        "encoder": {
            "sha256": "e",
            "architecture": asdict(CAFFENET),
            "provenance": {
                "method": method,
                "variant": variant,
                "supervision": "context",
                "iterations": iterations,
                "seconds": 90.0,
            },
        },
        "receipt": {"loaded": 10, "expected": 10},
        "seed": seed,
        "metrics": {metric: score, f"chance_{metric}": 0.07},
        "per_class": {"cat": score},
        "per_image": packed(PER_IMAGE[task]),
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
    result = make_result() | {"method": "imagenet"}
    path = tmp_path / "tiny" / "imagenet-random-region" / "classification-seed0.json"
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
    same = {"encoder": "e", "recipe": result["recipe"]["sha256"], "data": "d"}
    assert same_run(result, **same)
    for key in same:
        assert not same_run(result, **(same | {key: "other"}))


def test_spread_is_the_sample_deviation():
    assert spread([]) == "–"
    assert spread([50.0]) == "50.0 (1)"
    assert spread([50.0, 52.0]) == "51.0 ± 1.4 (2)"
    assert spread([50.0, 52.0, 54.0]) == "52.0 ± 2.0 (3)"


def test_seeds_share_a_row_and_budgets_do_not(tmp_path):
    put(tmp_path, seed=0, score=0.50)
    put(tmp_path, seed=1, score=0.52)
    put(tmp_path, seed=2, score=0.90, iterations=999)
    (section,) = sections(read_results(tmp_path))
    table = frame(section)
    cells = table[table.Method == "Context encoder (random-region)"].Classification.tolist()
    assert sorted(cells) == ["51.0 ± 1.4 (2)", "90.0 (1)"]


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


def test_other_data_and_other_recipes_go_to_other_tables(tmp_path):
    put(tmp_path, method="context", seed=0)
    put(tmp_path, method="autoencoder", variant="", seed=0)
    put(tmp_path, method="random", variant="", data="other")
    put(tmp_path, method="random", variant="", recipe="quick")
    found = sections(read_results(tmp_path))
    described = [(s.recipe, sorted(r["method"] for r in s.results)) for s in found]
    assert described == [("quick", ["random"]), ("tiny", ["autoencoder", "context"]), ("tiny", ["random"])]


def test_a_changed_recipe_leaves_the_table(tmp_path, capsys):
    put(tmp_path)
    path = put(tmp_path, seed=1, score=0.99)
    result = read_result(path)
    result["recipe"]["sha256"] = "of another day"
    write_result(path, result)
    text = report(tmp_path, recipe=None, style="markdown")
    assert "99.0" not in text
    assert "1 results left out" in capsys.readouterr().err


def test_only_the_full_protocol_stands_beside_published_numbers(tmp_path):
    put(tmp_path / "a", recipe="quick")
    put(tmp_path / "b", recipe="paper")
    put(tmp_path / "c", recipe="paper", images=FULL["classification"])
    texts = {name: report(tmp_path / name, recipe=None, style="csv") for name in "abc"}
    assert "50.0 (1) / 56.5" not in texts["a"] + texts["b"]
    assert "50.0 (1) / 56.5" in texts["c"]
    headings = {name: report(tmp_path / name, recipe=None, style="markdown").splitlines()[0] for name in "abc"}
    assert "not comparable" in headings["a"]
    assert "not comparable" in headings["b"]
    assert "ours / published" in headings["c"]


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
    assert rows.Classification.tolist()[6] == "50.0 (1)"
    assert json.loads(printed["json"])[6]["Segmentation"] == "60.0 (1)"
    assert r"\begin{tabular}" in printed["latex"]


def test_no_results_is_missing_data(tmp_path, capsys):
    with pytest.raises(Missing, match="run `bench transfer"):
        report(tmp_path, recipe=None, style="markdown")
    assert cli.main(["table2", "--results", str(tmp_path)]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1


def test_published_rows_are_those_of_the_paper():
    rows = {row["method"]: (row["classification"], row["detection"], row["segmentation"]) for row in published_rows()}
    assert rows == {
        "imagenet": (78.2, 56.8, 48.0),
        "random": (53.3, 43.4, 19.8),
        "autoencoder": (53.8, 41.9, 25.2),
        "egomotion": (52.9, 41.8, None),
        "motion": (58.7, 47.4, None),
        "relative": (55.3, 46.6, None),
        "context": (56.5, 44.5, 30.0),
    }


def test_a_new_method_gets_a_row_of_its_own(tmp_path):
    put(tmp_path, method="jigsaw", variant="")
    (section,) = sections(read_results(tmp_path))
    row = frame(section).set_index("Method").loc["jigsaw"]
    assert (row.Supervision, row.Classification) == ("context", "50.0 (1)")


def test_reading_does_not_change_results(tmp_path):
    put(tmp_path)
    found = read_results(tmp_path)
    before = copy.deepcopy(found)
    for section in sections(found):
        frame(section)
    assert found == before


def test_the_committed_table_is_what_the_command_prints():
    root = Path(__file__).resolve().parent.parent
    printed = report(root / "results", recipe="quick", style="markdown")
    assert (root / "results" / "table2.md").read_text() == printed
    rows = [line for line in printed.split("## Table 2 as published")[0].splitlines() if line.startswith("|")]
    assert "\n".join(rows) in (root / "README.md").read_text(), "README shows other numbers"
