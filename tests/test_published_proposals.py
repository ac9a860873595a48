"""The authors' selective search files: read in their own form, refused in any other, and used to the end."""

import dataclasses
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.io import savemat

from benchmarks.embedded.tiny import Counts, make_tiny
from pretrain.alexnet import Encoder
from pretrain.files import Failed, Missing
from transfer import detection, voc
from transfer.detection import RECIPES, data, evaluate, examples
from transfer.published_proposals import published_boxes, published_files

# y1, x1, y2, x2 from 1, inclusive, and the same as x1, y1, x2, y2 from 0, exclusive; in an image of 60×40.
MATLAB = np.array([[1, 1, 40, 60], [11, 21, 30, 50], [40, 60, 40, 60], [11, 21, 30, 50], [2.5, 3.5, 20, 30.25]])
OURS = [[0, 0, 60, 40], [20, 10, 50, 30], [59, 39, 60, 40], [2.5, 1.5, 30.25, 20]]
SIZE = (60, 40)
RECIPE = dataclasses.replace(
    RECIPES["tiny"], name="test", published=True, iterations=2, head_width=32, test_images=None, train_sides=(96,),
    test_side=96,
)  # fmt: skip


def write_mat(path: Path, boxes: Sequence[Any], ids: Sequence[Any] | None = None, *, compressed: bool = False) -> Path:
    """The authors' form: `boxes` a row of cells, `images` a column of cells with one name each."""
    content: dict[str, Any] = {"boxes": cells(boxes)[None]}
    if ids is not None:
        content["images"] = cells(ids)[:, None]
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, content, do_compression=compressed)
    return path


def cells(items: Sequence[Any]) -> NDArray[Any]:
    row = np.empty(len(items), dtype=object)
    for index, item in enumerate(items):
        row[index] = item
    return row


def write_pkl(path: Path, content: Any, protocol: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def detectron(boxes: NDArray[Any]) -> NDArray[np.float32]:
    """What Detectron made of the authors' boxes."""
    return (boxes[:, [1, 0, 3, 2]] - 1).astype(np.float32)


def read(path: Path, ids: Sequence[str], size: tuple[int, int] = SIZE) -> dict[str, list[list[float]]]:
    found = published_boxes(path, listed=ids, sizes=dict.fromkeys(ids, size))
    assert all(boxes.dtype == np.float64 for boxes in found.values())
    return {name: boxes.tolist() for name, boxes in found.items()}


# ---- the files ----


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_a_mat_is_converted_by_its_own_ids(tmp_path: Path, compressed: bool, kind: Any) -> None:
    other = np.array([[1, 2, 3, 4]], dtype=np.uint8)
    boxes, ids = [other, MATLAB.astype(kind), other], ["000009", "000005", "000007"]
    path = write_mat(tmp_path / "a.mat", boxes, ids, compressed=compressed)
    assert read(path, ["000005", "000007"]) == {"000005": OURS, "000007": [[1, 0, 4, 3]]}


def test_a_mat_without_ids_follows_the_list_of_the_split(tmp_path: Path) -> None:
    path = write_mat(tmp_path / "a.mat", [MATLAB, MATLAB[:1]])
    assert read(path, ["b", "a"]) == {"b": OURS, "a": OURS[:1]}
    listed = ["b", "a"]  # a recipe may use a part of the split
    assert list(published_boxes(path, listed=listed, sizes={"a": SIZE})) == ["a"]
    with pytest.raises(Failed, match=r"a\.mat: boxes of 2 images for 3 distinct ids: is it the file of this split"):
        read(path, ["a", "b", "c"])


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("key", ["ids", "indexes"])
def test_a_pkl_is_converted(tmp_path: Path, key: str, protocol: int) -> None:
    content = {"boxes": [detectron(MATLAB), detectron(MATLAB[:1])], key: [7, "000005"], "scores": [np.zeros(5)] * 2}
    expected = {"000005": OURS[:1], "000007": OURS}
    assert read(write_pkl(tmp_path / "a.pkl", content, protocol), ["000005", "000007"]) == expected
    content[key] = np.array([7, 5])
    assert read(write_pkl(tmp_path / "a.pkl", content | {"bbox_mode": 0}, protocol), ["000005", "000007"]) == expected


def test_detectrons_numbers_of_later_years(tmp_path: Path) -> None:
    content = {"boxes": [detectron(MATLAB)], "indexes": [2008000008]}
    assert read(write_pkl(tmp_path / "a.pkl", content), ["2008_000008"]) == {"2008_000008": OURS}


def test_a_part_of_a_pixel_is_cut_off(tmp_path: Path) -> None:
    outside = np.array([[1, 1, 40.9, 60.9]])
    assert read(write_mat(tmp_path / "a.mat", [outside], ["a"]), ["a"]) == {"a": [[0, 0, 60, 40]]}


WRONG = {
    "the image missing": ({"other": MATLAB}, "image 000005: no boxes"),
    "no boxes": ({"000005": np.zeros((0, 4))}, r"image 000005: boxes n×4 expected, not float64 \(0, 4\)"),
    "five columns": ({"000005": np.ones((3, 5))}, "n×4 expected"),
    "words": ({"000005": np.array([["1", "1", "2", "2"]])}, "n×4 expected"),
    "complex": ({"000005": np.array([[1, 1, 2, 2j]])}, "n×4 expected, not complex128"),
    "nan": ({"000005": np.array([[1, 1, 2, np.nan]])}, r"nan.*\] is empty or outside"),
    "infinity": ({"000005": np.array([[1, 1, np.inf, 2]])}, "outside the 60×40 image"),
    "from 0": ({"000005": np.array([[0, 5, 9, 9.0]])}, "outside the 60×40 image"),
    "a pixel below": ({"000005": np.array([[1, 1, 41, 60.0]])}, "outside the 60×40 image"),
    "a pixel to the right": ({"000005": np.array([[1, 1, 40, 61.0]])}, "outside the 60×40 image"),
    "x before y": ({"000005": MATLAB[:, [1, 0, 3, 2]]}, "outside the 60×40 image"),
    "corners swapped": ({"000005": np.array([[20, 20, 10, 30.0]])}, "is empty"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("suffix", [".mat", ".pkl"])
def test_wrong_boxes_name_the_file_and_the_image(tmp_path: Path, name: str, suffix: str) -> None:
    given, message = WRONG[name]
    boxes, path = list(given.values()), tmp_path / f"a{suffix}"
    if suffix == ".mat":
        write_mat(path, boxes, list(given))
    else:
        shifted = [b[:, [1, 0, 3, 2, *range(4, b.shape[1])]] - 1 if b.dtype.kind == "f" else b for b in boxes]
        write_pkl(path, {"boxes": shifted, "ids": list(given)})
    with pytest.raises(Failed, match=message) as caught:
        read(path, ["000005"])
    assert str(caught.value).startswith(f"{path}: image 000005: ")
    assert "\n" not in str(caught.value)


UNREADABLE: dict[str, Any] = {
    "no boxes": {"ids": [5]},
    "no ids": {"boxes": [MATLAB]},
    "a list": [MATLAB],
    "nothing": None,
    "width and height": {"boxes": [MATLAB], "ids": [5], "bbox_mode": 1},
    "a number for boxes": {"boxes": 3, "ids": [5]},
    "fewer ids": {"boxes": [MATLAB, MATLAB], "ids": [5]},
    "an id twice": {"boxes": [MATLAB, MATLAB], "ids": [5, 5]},
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_pickle_of_something_else(tmp_path: Path, name: str) -> None:
    path = write_pkl(tmp_path / "a.pkl", UNREADABLE[name])
    with pytest.raises(Failed) as caught:
        read(path, ["000005"])
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


class Attack:
    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_pkl(tmp_path / "a.pkl", {"boxes": [MATLAB], "ids": [5], "scores": Attack()})
    with pytest.raises(Failed, match=r"a\.pkl: this pickle asks for posix\.mkdir"):
        read(path, ["000005"])
    assert not (tmp_path / "executed").exists()


def test_a_mat_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    whole = write_mat(path, [MATLAB] * 9, [f"{i:06d}" for i in range(9)], compressed=True).read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole[:200] + b"\xff" * 64 + whole[264:], b"MATLAB 7.3 MAT-file"):
        path.write_bytes(damaged)
        with pytest.raises(Failed, match=r"a\.mat: not a readable proposal file \("):
            read(path, ["000005"])
    for content in ({"bboxes": MATLAB}, {"boxes": MATLAB}, {"boxes": cells([MATLAB]), "images": cells([["a", "b"]])}):
        savemat(path, content)
        with pytest.raises(Failed, match=r"a\.mat: not a readable proposal file \("):
            read(path, ["000005"])


def test_which_files_are_used(tmp_path: Path) -> None:
    devkit, folder = tmp_path / "VOCdevkit", tmp_path / "selective_search_data"
    folder.mkdir()
    splits = ("trainval", "test")
    assert published_files(devkit, "VOC2007", splits) == {}
    (folder / "voc_2007_test.pkl").touch()
    with pytest.raises(Missing, match=r"voc_2007_trainval\.mat \(or \.pkl\): not there, but voc_2007_test\.pkl is"):
        published_files(devkit, "VOC2007", splits)
    (folder / "voc_2007_trainval.pkl").touch()
    (folder / "voc_2007_trainval.mat").touch()
    names = {split: path.name for split, path in published_files(devkit, "VOC2007", splits).items()}
    assert names == {"trainval": "voc_2007_trainval.mat", "test": "voc_2007_test.pkl"}
    (folder / "voc_2007_test.pkl").unlink()
    with pytest.raises(Missing, match=r"voc_2007_test\.mat"):
        published_files(devkit, "VOC2007", splits)


# ---- the task ----


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    """A few embedded images, with published boxes for all."""
    few = Counts(6, test=4, segmentation_train=2, segmentation_val=2, unlabelled=1, sequences=1, frames=1)
    make_tiny(tmp_path / "data", counts=few)
    devkit = tmp_path / "data" / "VOCdevkit"
    for split in ("trainval", "test"):
        ids = voc.image_set(devkit / "VOC2007", "Main", split)
        write_mat(file_of(devkit, split), [matlab_boxes(devkit, i) for i in ids[::-1]], ids[::-1])
    return devkit


def file_of(devkit: Path, split: str) -> Path:
    return devkit.parent / "selective_search_data" / f"voc_2007_{split}.mat"


def matlab_boxes(devkit: Path, image_id: str) -> voc.Floats:
    """The objects of an image and all of it, in the authors' form."""
    annotation = voc.read_annotation(voc.annotation_path(devkit / "VOC2007", image_id))
    boxes = np.vstack([annotation.boxes, [0, 0, annotation.width, annotation.height]])
    return boxes[:, [1, 0, 3, 2]] + np.array((1, 1, 0, 0))


def test_published_boxes_reach_the_model_and_the_result(
    devkit: Path, tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []
    made = detection.model_input
    monkeypatch.setattr(detection, "model_input", lambda e, **options: seen.append(e) or made(e, **options))
    monkeypatch.setattr(detection, "proposals", lambda *_, **__: pytest.fail("selective search was computed"))
    outcome = evaluate(encoder, RECIPE, devkit, seed=0, work=tmp_path / "work", device=torch.device("cpu"))
    assert 0 <= outcome.metrics["map_11point"] <= 1
    assert {example.image.stem for example in seen} >= set(voc.image_set(devkit / "VOC2007", "Main", "test"))
    for example in seen:
        truth = example.annotation
        expected = np.unique(np.vstack([truth.boxes, [0, 0, truth.width, truth.height]]), axis=0)
        assert np.array_equal(np.unique(example.proposals, axis=0), expected)
    named = "voc_2007_trainval.mat + voc_2007_test.mat (published)"
    assert data(RECIPE, devkit).sources == {"proposals": named}
    assert f"detection: proposals: {named}" in capsys.readouterr().err


def test_the_digest_follows_the_files(devkit: Path) -> None:
    computed = dataclasses.replace(RECIPE, published=False)
    before, without = data(RECIPE, devkit).sha256, data(computed, devkit).sha256
    assert before != without
    path = file_of(devkit, "test")
    write_mat(path, [MATLAB], ["000001"])
    assert data(RECIPE, devkit).sha256 != before
    assert data(computed, devkit).sha256 == without
    path.unlink()
    for function in (data, lambda *_: examples(*_, "trainval", None, cache=devkit)):
        with pytest.raises(Missing, match=r"voc_2007_test\.mat"):
            function(RECIPE, devkit)
    file_of(devkit, "trainval").unlink()
    assert data(RECIPE, devkit) == data(computed, devkit)
    assert data(RECIPE, devkit).sources["proposals"].startswith("OpenCV ")


def test_only_the_published_recipes_look_for_them() -> None:
    assert {name: recipe.published for name, recipe in RECIPES.items() if recipe.published} == {
        name: True for name in RECIPES if name.startswith("paper")
    }


def test_computed_proposals_are_kept_under_runs(devkit: Path, tmp_path: Path, encoder: Encoder) -> None:
    recipe = dataclasses.replace(RECIPE, published=False, train_images=1, test_images=1, iterations=1)
    for work, cache in (("runs/transfer/test/random/detection-seed0-x", "runs/proposals"), ("work", "work/proposals")):
        evaluate(encoder, recipe, devkit, seed=0, work=tmp_path / work, device=torch.device("cpu"))
        assert len(list((tmp_path / cache).glob("*.npz"))) == 2
