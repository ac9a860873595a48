"""Folders of images: which are classes, which are splits, and which are neither."""

import os
from pathlib import Path

import pytest

from pretrain import Folders
from pretrain.classes import Sorted, sort_classes, split_of
from pretrain.files import Failed, Missing
from pretrain.images import find_noted, list_images
from pretrain.labels import source


def write(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def classes(*folders: Path) -> Sorted:
    return sort_classes(find_noted(folders), folders)


def placed(found: Sorted, root: Path) -> dict[str, tuple[str, bool]]:
    paths = [path.relative_to(root).as_posix() for _, path in found.images.files]
    return dict(zip(paths, zip(found.names, found.validation, strict=True), strict=True))


def refused(*folders: Path) -> str:
    with pytest.raises(Missing) as caught:
        source(Folders(images=folders))
    assert "\n" not in str(caught.value)
    return str(caught.value)


SPLITS = {
    "train": "train", "Train": "train", "TRAINING": "train", "train2017": "train", "training_set": "train",
    "val": "val", "Valid": "val", "validation": "val", "VAL2017": "val", "val_images": "val", "dev": "val",
    "test": "test", "Testing": "test", "test-data": "test",
    "trainer": None, "valley": None, "testament": None, "n01440764": None, "attest": None, "train car": None,
}  # fmt: skip


@pytest.mark.parametrize("name", SPLITS)
def test_the_names_of_splits(name: str) -> None:
    assert split_of(name) == SPLITS[name]


@pytest.mark.parametrize("val", ["val", "Valid", "VALIDATION"])
def test_splits_are_read_as_splits_in_any_case(val: str, tmp_path: Path) -> None:
    write(tmp_path, "Train/a/0.jpg", "Train/b/1.jpg", f"{val}/a/2.jpg", f"{val}/b/3.jpg", "Test/4.jpg", "Test/a/5.jpg")
    found = classes(tmp_path)
    assert placed(found, tmp_path) == {
        "Train/a/0.jpg": ("a", False), "Train/b/1.jpg": ("b", False), f"{val}/a/2.jpg": ("a", True),
        f"{val}/b/3.jpg": ("b", True),
    }  # fmt: skip
    assert found.images.notes == (f"{tmp_path}: not looked at: 2 images of a test split",)
    assert source(Folders(images=(tmp_path,))).supervision == "2 class labels"


@pytest.mark.parametrize(
    "names",
    [
        ["train/0.jpg", "test/1.jpg"],  # once two classes
        ["train/0.jpg", "val/1.jpg"],
        ["train/a/0.jpg", "train/b/1.jpg", "train/2.jpg"],
        ["train/a/0.jpg", "train/b/1.jpg", "cat/2.jpg"],
        ["cat/0.jpg", "dog/1.jpg", "valid/2.jpg"],
        ["cat/0.jpg", "dog/1.jpg", "TEST/a/2.jpg"],
        ["val/a/0.jpg", "val/b/0.jpg", "test/a/0.jpg"],
        ["train/a/0.jpg", "training/b/0.jpg"],
        ["train/a/0.jpg", "train/b/0.jpg", "val/a/0.jpg", "valid/a/0.jpg"],
        ["one/train/a/0.jpg", "two/train/a/0.jpg"],
        ["cat/train/0.jpg", "cat/test/0.jpg", "dog/train/0.jpg"],
        ["train/train/a/0.jpg", "train/val/a/0.jpg"],
    ],
)
def test_splits_are_never_classes(names: list[str], tmp_path: Path) -> None:
    said = refused(write(tmp_path, *names))
    assert "split" in said or "in no class folder" in said
    assert said.startswith(f"{tmp_path}")


def test_what_lies_beside_splits_or_classes_and_holds_no_image_is_let_be(tmp_path: Path) -> None:
    write(tmp_path, "train/a/0.jpg", "train/b/1.jpg", "annotations/a.xml", "readme.md", "val/a.txt")
    found = classes(tmp_path)
    assert set(found.names) == {"a", "b"}
    assert found.images.notes == (f"{tmp_path}: not looked at: 1 of .md, 1 of .txt, 1 of .xml",)


@pytest.mark.parametrize("left", [".ipynb_checkpoints", ".git", "@eaDir", "__MACOSX", "#recycle", "lost+found", "x~"])
def test_what_is_left_behind_is_no_class(left: str, tmp_path: Path) -> None:
    write(tmp_path, "cat/0.jpg", "dog/1.jpg", f"{left}/2.jpg", f"cat/{left}/3.jpg", "dog/._1.jpg", "._cat")
    found = classes(tmp_path)
    assert placed(found, tmp_path) == {"cat/0.jpg": ("cat", False), "dog/1.jpg": ("dog", False)}
    assert found.images.notes == (f"{tmp_path}: not looked at: 4 hidden or left by a system",)


def test_linked_classes_are_classes_and_unknown_suffixes_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "root", "cat/0.jpg", "owl/1.WEBP", "emu/2.tif")
    write(tmp_path / "far", "dog/3.jpg")
    (root / "dog").symlink_to(tmp_path / "far" / "dog")
    assert set(classes(root).names) == {"cat", "dog", "emu", "owl"}
    write(root, "bee/4.heic", "bee/5.heic", "bee/.hidden.jpg")
    assert refused(root) == (
        f"{root}/bee: no image of this class can be read (2 of .heic, 1 hidden or left by a system): "
        "convert them, or remove the folder"
    )


def test_a_class_that_links_to_another_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "cat/0.jpg", "dog/1.jpg")
    (tmp_path / "bird").symlink_to(tmp_path / "cat")
    assert refused(tmp_path).startswith(f"{tmp_path}/bird: a link to a folder that is read elsewhere")


def test_a_split_that_links_to_the_other_is_not_read_twice(tmp_path: Path) -> None:
    write(tmp_path, "train/cat/0.jpg", "train/dog/1.jpg")
    (tmp_path / "val").symlink_to(tmp_path / "train")
    found = classes(tmp_path)
    assert found.validation == (False, False)
    assert found.images.notes == (f"{tmp_path}: not looked at: 1 folders that are read elsewhere already",)


@pytest.mark.parametrize(("one", "two"), [("Cat", "cat"), ("café", "cafe\u0301"), ("cat", "cat ")])
def test_classes_that_are_one_are_refused(one: str, two: str, tmp_path: Path) -> None:
    write(tmp_path, f"{one}/0.jpg", f"{two}/1.jpg")
    assert "one or two? Rename one of them" in refused(tmp_path)


def test_empty_classes_and_classes_without_val_are_said(tmp_path: Path) -> None:
    write(tmp_path, "train/a/0.jpg", "train/b/1.jpg", "val/a/2.jpg")
    (tmp_path / "train" / "c").mkdir()
    assert classes(tmp_path).images.notes == (
        f"{tmp_path}/train/c: no image in it, so no class",
        "1 of 2 classes have no image in val: b",
    )


def test_names_in_any_bytes(tmp_path: Path) -> None:
    for name in (b"caf\xe9", b"dog"):
        folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
        write(folder, "0.jpg")
    assert classes(tmp_path).names == ("caf\udce9", "dog")
    write(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xfft")), "0.heic")
    assert refused(tmp_path).startswith(f"{tmp_path}/\\xfft: no image of this class")


@pytest.mark.parametrize("ids", ["../../etc/x\n", "/etc/x\n", "._000001\n"])
def test_ids_that_are_no_names_are_refused(ids: str, tmp_path: Path) -> None:
    lists = tmp_path / "ImageSets" / "Main"
    write(tmp_path, "JPEGImages/000001.jpg", "ImageSets/Main/trainval.txt")
    (lists / "trainval.txt").write_text(ids)
    with pytest.raises(Failed, match=r"trainval\.txt: .*: not the id of an image: correct the list"):
        list_images(tmp_path)
    (lists / "trainval.txt").write_text("000001\n", encoding="utf-16")
    assert [path.name for path in list_images(tmp_path).files] == ["000001.jpg"]


def test_a_voc_years_folder_has_no_classes(tmp_path: Path) -> None:
    write(tmp_path, "JPEGImages/000001.jpg", "SegmentationClass/000001.png", "Annotations/000001.xml")
    write(tmp_path, "ImageSets/Main/trainval.txt")
    (tmp_path / "ImageSets/Main/trainval.txt").write_text("000001\n")
    assert refused(tmp_path) == (
        f"{tmp_path}: one class (JPEGImages) alone: give --images a folder with one folder a class"
    )


def test_a_link_to_vocs_images_is_vocs_images(tmp_path: Path) -> None:
    """Its test set would be trained on."""
    write(tmp_path / "VOC2007", "JPEGImages/000001.jpg")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photos").symlink_to(tmp_path / "VOC2007" / "JPEGImages")
    with pytest.raises(Missing, match=r"VOC images, but no ImageSets/Main/trainval\.txt"):
        list_images(tmp_path / "mine")
