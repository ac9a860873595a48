"""Result files of any content: what cannot be printed is left out, by name, and all others are printed."""

import base64
import importlib.util
import io
import json
import os
import re
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import cli
from benchmarks.arrays import MOST, packed, unpacked
from benchmarks.results import read_result, read_results, write_result
from pretrain.files import Failed


def beside(name: str) -> Any:
    """Another file of tests: these make results of the same kinds."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tables, probes = beside("test_table2"), beside("test_probes_table")
make_result, per_image, put_table = tables.make_result, tables.per_image, tables.put
LAYERS, SHIFTS, put_probe, probe = probes.LAYERS, probes.SHIFTS, probes.put, probes.svm
Damage = Callable[[dict[str, Any]], object]


def bench(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rows with all that the reports print."""
    root, found = tmp_path_factory.mktemp("made"), probe(3, SHIFTS)
    for method in ("random", "context"):
        put_table(root, method=method, variant="")
        put_table(root, method=method, variant="", task="segmentation")
        put_probe(root, "svm", *found, method=method)
    return root


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(made, tmp_path / "results"))


def spoil(path: Path, damage: Damage) -> None:
    result = json.loads(path.read_text())
    damage(result)
    path.write_text(json.dumps(result))


def said(field: str, value: Any) -> Damage:
    """Set a field of a result: "encoder.provenance.rate"."""

    def damage(result: dict[str, Any]) -> None:
        *above, last = field.split(".")
        for part in above:
            result = result[part]
        result[last] = value

    return damage


def npz(header: bytes, content: bytes = b"", **options: int) -> str:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", options.get("packing", zipfile.ZIP_DEFLATED)) as file:
        file.writestr("scores.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content)
    return base64.b64encode(buffer.getvalue()).decode()


def header(descr: str = "'<f4'", shape: str = "(2, 20)", order: str = "False") -> bytes:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()


SCORES = per_image("classification", 0.5, 2)
FIELDS: dict[str, Damage] = {
    "a score of text": said("metrics.map_sklearn", "0.5"),
    "NaN": said("metrics.map_sklearn", float("nan")),
    "infinite": said("metrics.map_sklearn", float("inf")),
    "in percent": said("metrics.map_sklearn", 50.0),
    "negative": said("metrics.map_sklearn", -0.5),
    "true": said("metrics.map_sklearn", True),
    "a list of metrics": said("metrics", [0.5]),
    "another metric": said("metrics.map_11point", None),
    "chance of NaN": said("metrics.chance_map_sklearn", float("nan")),
    "an infinite class": said("per_class", {"cat": float("inf")}),
    "a class of a newline": said("per_class", {"c\nat": 0.5}),
    "no classes": said("per_class", None),
    "a huge seed": said("seed", 10**400),
    "a negative seed": said("seed", -1),
    "images of text": said("data.images.test", "2"),
    "a million million images": said("data.images.test", 10**12),
    "no image": said("data.images.test", 0),
    "images of NaN": said("data.images.train", float("nan")),
    "other splits": said("data.images", {"train": 4, "test": 2, 5: 1}),
    "sources of lists": said("data.sources", {"proposals": ["a"]}),
    "sources as a list": said("data.sources", ["a"]),
    "a name of a newline": said("data.name", "a\nb"),
    "a name of an escape": said("data.name", "a\x1b[2J"),
    "a name of 10,000 letters": said("data.name", "a" * 10_000),
    "a lone surrogate": said("hardware", "\ud800"),
    "a task of a list": said("task", ["svm"]),
    "an unknown task": said("task", "chess"),
    "a path for a method": said("method", "../../x"),
    "a variant of nothing": said("variant", None),
    "a recipe of a number": said("recipe", 7),
    "a recipe of a path": said("recipe.name", "../x"),
    "no encoder": said("encoder", None),
    "an architecture of text": said("encoder.architecture", "caffenet"),
    "endless widths": said("encoder.architecture.widths", [float("inf")] * 5),
    "no provenance": said("encoder.provenance", []),
    "iterations of text": said("encoder.provenance.iterations", "100"),
    "iterations beyond count": said("encoder.provenance.iterations", 10**300),
    "seconds of text": said("encoder.provenance.seconds", "long"),
    "infinite seconds": said("encoder.provenance.seconds", float("inf")),
    "a data set of text": said("encoder.provenance.dataset", "imagenet"),
    "a data set without images": said("encoder.provenance.dataset", {"name": "a"}),
    "a data set of text images": said("encoder.provenance.dataset", {"name": "a", "images": "12"}),
    "a source without a file": said("encoder.provenance.source", {"order": "rgb"}),
    "a source of text": said("encoder.provenance.source", "a"),
    "rescaled on nothing": said("encoder.provenance.rescaled", {"images": 1}),
    "a solver of text": said("encoder.provenance.solver", "adam"),
    "on the way without layers": said("encoder.provenance.of_iterations", 300),
    "a mask of a number": said("encoder.provenance.mask", 3),
    "schema 3": said("schema", 3),
    "schema of text": said("schema", "2"),
    "dirty of text": said("dirty", "no"),
    "an unknown key": said("extra", 1),
    "per image of nothing": said("per_image", None),
    "per image of text": said("per_image", "hello"),
    "per image of other characters": said("per_image", "ö" * 8),
    "not the scores": said("per_image", packed(per_image("classification", 0.75, 2))),
    "another task's": said("per_image", packed(per_image("segmentation", 0.5, 2))),
    "other images": said("per_image", packed(per_image("classification", 0.5, 3))),
    "scores of NaN": said("per_image", packed(SCORES | {"scores": SCORES["scores"] * np.nan})),
    "no labels": said("per_image", packed({"scores": SCORES["scores"]})),
    "three classes": said("per_image", packed({key: array[:, :3] for key, array in SCORES.items()})),
    "flat": said("per_image", packed({key: array.reshape(-1) for key, array in SCORES.items()})),
    "no rows": said("per_image", packed({key: array[:0] for key, array in SCORES.items()})),
    "a number": said("per_image", packed({key: np.float32(1) for key in SCORES})),
    "a huge shape": said("per_image", npz(header(shape="(999999999999, 20)"))),
    "objects": said("per_image", npz(header(descr="'|O'"), bytes(160))),
    "a type that unfolds": said("per_image", npz(header(descr="[('a', '<f4', (99999, 99999))]"), bytes(160))),
    "a bomb": said("per_image", npz(header(shape=f"({MOST // 4}, 1)"), bytes(MOST))),
    "LZMA": said("per_image", npz(header(), bytes(160), packing=zipfile.ZIP_LZMA)),
}  # fmt: skip


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder: random is whole, and each of FIELDS is the same seed of a row of its own."""
    root = tmp_path_factory.mktemp("bad")
    put_table(root, method="random", variant="")
    for number, damage in enumerate(FIELDS.values()):
        spoil(put_table(root, method=f"m{number}", variant=""), damage)
    return root


def test_whatever_is_in_one_file_the_others_are_printed(bad: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = bench(capsys, "table2", "--results", bad)
    assert code == 0
    assert "| Random Gaussian |" in out
    assert not re.search(r"^\| m\d", out, re.MULTILINE)
    lines = err.splitlines()
    assert len(lines) == len(FIELDS)
    for number, kind in enumerate(FIELDS):
        path = bad / "tiny" / f"m{number}" / "classification-seed0.json"
        (line,) = (line for line in lines if f"{path}: " in line)
        assert line.startswith(f"left out: {path}: "), kind
        assert line.endswith(": delete it and run `bench transfer` again"), kind
        assert line.isprintable(), kind
        assert len(line) < 700, kind


FILES: dict[str, Callable[[Path], object]] = {
    "empty": lambda p: p.write_bytes(b""),
    "half": lambda p: p.write_bytes(p.read_bytes()[:500]),
    "a list": lambda p: p.write_text("[1]"),
    "null": lambda p: p.write_text("null"),
    "deep": lambda p: p.write_text("[" * 100_000),
    "deep and closed": lambda p: p.write_text('{"schema": 2, "a": ' + "[" * 50_000 + "]" * 50_000 + "}"),
    "a number of 10,000 digits": lambda p: p.write_text('{"schema": ' + "9" * 10_000 + "}"),
    "Latin-1": lambda p: p.write_bytes(p.read_text().replace("a machine", "caf\xe9").encode("latin-1")),
    "UTF-16": lambda p: p.write_bytes(p.read_text().encode("utf-16")),
    "another place's": lambda p: p.write_text(json.dumps(make_result(seed=3))),
    "a link to nothing": lambda p: (p.unlink(), p.symlink_to("nowhere")),
    "a folder": lambda p: (p.unlink(), p.mkdir()),
    "a FIFO": lambda p: (p.unlink(), os.mkfifo(p)),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_whatever_lies_there_the_others_are_printed(
    kind: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "tiny" / "context" / "classification-seed0.json"
    FILES[kind](path)
    code, out, err = bench(capsys, "table2", "--results", folder)
    assert (code, err.count("\n")) == (0, 1)
    assert f"left out: {path}: not a result file (" in err
    assert "| Random Gaussian |" in out


def test_the_remedy_works(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "tiny" / "context" / "classification-seed0.json"
    whole = path.read_bytes()
    path.write_bytes(b"{")
    assert bench(capsys, "table2", "--results", folder)[2]
    path.unlink()
    put_table(folder, method="context", variant="")
    assert path.read_bytes() == whole
    assert bench(capsys, "table2", "--results", folder)[::2] == (0, "")


REPORTS = (["table2"], ["table2", "--long", "--format", "json"], ["probes"], ["summary", "--recipe", "tiny"])


@pytest.mark.parametrize("report", REPORTS)
def test_every_report_leaves_it_out(report: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for task in ("classification", "svm"):
        spoil(folder / "tiny" / "context" / f"{task}-seed0.json", said("metrics.map_sklearn", "0.5"))
    code, out, err = bench(capsys, *report, "--results", folder)
    assert code == 0
    assert "Random" in out
    assert err.count("left out: ") == 2


def test_compare_leaves_a_seed_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(put_table(folder, method="context", variant="", seed=1), said("per_image", "AAAA"))
    code, out, err = bench(capsys, "compare", "context", "random", "--results", folder)
    assert (code, err.count("left out: ")) == (0, 1)
    assert "50.0 (1)" in out


PROBES: dict[str, Damage] = {
    "no spread of chance": lambda r: r["metrics"].pop("chance_map_sklearn_spread"),
    "no cross-validation": lambda r: [r["metrics"].pop(f"cv_{layer}") for layer in LAYERS],
    "a layer without a score": lambda r: r["metrics"].pop("conv3_map_sklearn"),
    "replicates that are all nothing": lambda r: r.update(
        per_image=packed(unpacked(r["per_image"]) | {"replicates_conv2": np.zeros(1000, np.uint16)})
    ),
    "replicates of floats": lambda r: r.update(
        per_image=packed(unpacked(r["per_image"]) | {"replicates_conv2": np.full(1000, np.nan)})
    ),
    "a layer more": lambda r: r["metrics"].update(fc6_map_sklearn=0.5),
}


@pytest.mark.parametrize("kind", PROBES)
def test_a_probe_that_lacks_something_is_left_out(kind: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "tiny" / "context" / "svm-seed0.json"
    spoil(path, PROBES[kind])
    for report in (["probes"], ["summary", "--recipe", "tiny"]):
        code, out, err = bench(capsys, *report, "--results", folder)
        assert (code, err.count("\n")) == (0, 1)
        assert f"left out: {path}: " in err
        assert "Random Gaussian" in out


def test_where_all_are_bad_it_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = put_table(tmp_path)
    spoil(path, said("per_image", "AAAA"))
    code, out, err = bench(capsys, "table2", "--results", tmp_path)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert f"bench: {path}: its per-image scores cannot be read" in err


def test_what_systems_leave_is_no_result(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "tiny" / "context" / "classification-seed0.json"
    path.with_name(f"._{path.name}").write_bytes(b"\x00\x05\x16\x07")
    assert bench(capsys, "table2", "--results", folder)[::2] == (0, "")
    assert len(read_results(folder)) == 6


# ---- what is written ----


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, 1.5, 40, np.float64("nan"), "0.5", None])
@pytest.mark.parametrize("task", ["classification", "detection", "segmentation"])
def test_a_score_that_is_undefined_is_not_written(value: Any, task: str, tmp_path: Path) -> None:
    result = make_result(task=task)
    name = next(iter(result["metrics"]))
    result["metrics"][name] = value
    with pytest.raises(Failed, match=f"nothing recorded: {name} is ") as error:
        write_result(tmp_path / "x.json", result)
    assert str(error.value).isprintable()
    assert not list(tmp_path.iterdir())


def test_other_scores_and_those_of_classes_count_too(tmp_path: Path) -> None:
    for change in ({"metrics": {"extra": float("nan")}}, {"per_class": {"cat": float("nan")}}):
        result = make_result()
        for key, found in change.items():
            result[key] |= found
        with pytest.raises(Failed, match="is nan, no score between 0 and 1"):
            write_result(tmp_path / "x.json", result)
    result = make_result(per_class={"cat": None, "dog": 1.0})
    write_result(tmp_path / "tiny" / "context-random-region" / "classification-seed0.json", result)


def test_what_an_encoder_says_is_checked_before_it_is_scored(tmp_path: Path, encoder: Any) -> None:
    from dataclasses import replace

    import torch

    from benchmarks.run import transfer

    for wrong in ({"iterations": "5"}, {"rate": float("nan")}, {"supervision": ["x"]}, {"method": "a/b"}):
        odd = replace(encoder, provenance=encoder.provenance | wrong)
        with pytest.raises(Failed, match=r"encoder|row's name"):
            transfer(
                odd, tasks=["svm"], recipe="tiny", data=tmp_path / "nowhere", seed=0, results=tmp_path, runs=tmp_path,
                device=torch.device("cpu"),
            )  # fmt: skip


def test_arrays_come_back_as_they_were() -> None:
    rng = np.random.default_rng(0)
    kept = {
        "a": rng.normal(size=(3, 4)), "b": np.asfortranarray(rng.integers(0, 9, (2, 3, 4)).astype(np.uint16)),
        "c": np.array([True, False]), "d": np.zeros((0, 5), np.int8), "e": np.float32(3.5)[None][0],
    }  # fmt: skip
    found = unpacked(packed({key: np.asarray(array) for key, array in kept.items()}))
    for key, array in kept.items():
        np.testing.assert_array_equal(found[key], array)
        assert found[key].dtype == np.asarray(array).dtype


def test_the_committed_results_are_read() -> None:
    root = Path(__file__).parents[1] / "results"
    paths = sorted(root.glob("*/*/*-seed*.json"))
    assert len(paths) == len([read_result(path) for path in paths]) >= 12
