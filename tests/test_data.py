"""A small tree in the layout of the official VOCdevkit; then one defect at a time."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import data
from pretrain.files import Failed, Missing, Usage
from transfer import voc

WIDTH, HEIGHT = 48, 32
SIX = 6  # images per split
XML = """<annotation>
  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>
  {objects}
</annotation>
"""
OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult><truncated>0</truncated>
    <bndbox><xmin>1</xmin><ymin>1</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax></bndbox></object>"""


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def write_image(year: Path, image_id: str, number: int) -> None:
    """Three classes an image, one of them difficult; a JPEG, an XML and both masks."""
    noise = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    classes = [voc.CLASSES[(number * 3 + k) % 20] for k in range(3)]
    objects = [OBJECT.format(name=c, difficult=int(k == 2), xmax=WIDTH, ymax=HEIGHT) for k, c in enumerate(classes)]
    write(voc.annotation_path(year, image_id), XML.format(width=WIDTH, height=HEIGHT, objects="".join(objects)))
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[4:20, 4:20], mask[20:22] = 1 + voc.CLASSES.index(classes[0]), voc.VOID
    for folder, name, pixels in (
        ("JPEGImages", "jpg", noise),
        ("SegmentationClass", "png", mask),
        ("SegmentationObject", "png", mask),
    ):
        path = year / folder / f"{image_id}.{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def write_lists(folder: Path, ids: dict[str, list[str]], *, classes: bool) -> None:
    """One list per split, in one kind's folder; trainval is train and val together."""
    for split, part in {**ids, "trainval": sorted(ids["train"] + ids["val"])}.items():
        write(folder / f"{split}.txt", "".join(f"{i}\n" for i in part))
        for name in voc.CLASSES if classes else ():
            write(folder / f"{name}_{split}.txt", "".join(f"{i} {(-1, 0, 1)[int(i[-1]) % 3]:2d}\n" for i in part))


def write_objects(folder: Path, ids: dict[str, list[str]]) -> None:
    """Layout and Action: an image is there once per object."""
    for split, part in {**ids, "trainval": sorted(ids["train"] + ids["val"])}.items():
        write(folder / f"{split}.txt", "".join(f"{i}  {k}\n" for i in part[:2] for k in (1, 2)))
        if folder.name == "Action":
            write(folder / f"jumping_{split}.txt", "".join(f"{i}  {k} -1\n" for i in part[:2] for k in (1, 2)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree, clean."""
    root = tmp_path_factory.mktemp("voc")
    for name, splits in (("VOC2007", ("train", "val", "test")), ("VOC2012", ("train", "val"))):
        year = root / "VOCdevkit" / name
        pattern = "{:06d}" if name == "VOC2007" else "2009_{:06d}"
        ids = {s: [pattern.format(100 * n + k) for k in range(SIX)] for n, s in enumerate(splits)}
        for number, image_id in enumerate(itertools.chain.from_iterable(ids.values())):
            write_image(year, image_id, number)
        write_lists(year / "ImageSets/Main", ids, classes=True)
        write_lists(year / "ImageSets/Segmentation", ids, classes=False)
        write_objects(year / "ImageSets" / ("Layout" if name == "VOC2007" else "Action"), ids)
    write(root / "VOCdevkit/VOC2012/ImageSets/Segmentation/seg11valid.txt", "2009_000101\n2009_000104\n")
    return root


@pytest.fixture
def tree(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "tree"))


Y7, Y12 = Path("VOCdevkit/VOC2007"), Path("VOCdevkit/VOC2012")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replace(old: str, new: str) -> Callable[[Path], None]:
    return lambda path: write(path, path.read_text().replace(old, new))


def garbage(path: Path) -> None:
    path.write_bytes(b"not an image" * 20)


def repaint(size: tuple[int, int], value: int) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(np.full(size, value, np.uint8)).save(path)


def repeat_first(path: Path) -> None:
    path.write_text(path.read_text().splitlines(keepends=True)[0] + path.read_text())


def drop_first(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))


def add(line: str) -> Callable[[Path], None]:
    return lambda path: write(path, path.read_text() + line)


MAIN, SEGMENTATION = Y7 / "ImageSets/Main", Y12 / "ImageSets/Segmentation"
DEFECTS: dict[str, tuple[Path, Callable[[Path], object], str]] = {
    "truncated JPEG": (Y7 / "JPEGImages/000003.jpg", cut, "truncated"),
    "garbage JPEG": (Y12 / "JPEGImages/2009_000003.jpg", garbage, "corrupt"),
    "empty JPEG": (Y7 / "JPEGImages/000201.jpg", lambda p: p.write_bytes(b""), "corrupt"),
    "missing JPEG": (Y7 / "JPEGImages/000201.jpg", Path.unlink, "no such image"),
    "broken XML": (Y7 / "Annotations/000003.xml", cut, "broken annotation"),
    "missing XML": (Y12 / "Annotations/2009_000003.xml", Path.unlink, "no such annotation"),
    "unknown class": (Y7 / "Annotations/000000.xml", replace("aeroplane", "zeppelin"), "broken annotation"),
    "box outside": (Y7 / "Annotations/000003.xml", replace("<xmax>48", "<xmax>49"), "outside"),
    "XML of another size": (Y7 / "Annotations/000003.xml", replace("<height>32", "<height>33"), "its image is"),
    "mask of another size": (Y12 / "SegmentationClass/2009_000003.png", repaint((HEIGHT, WIDTH - 1), 0), "the mask is"),
    "label 21": (Y12 / "SegmentationClass/2009_000003.png", repaint((HEIGHT, WIDTH), 21), "labels [21]"),
    "truncated mask": (Y12 / "SegmentationClass/2009_000003.png", cut, "corrupt"),
    "missing mask": (Y12 / "SegmentationClass/2009_000003.png", Path.unlink, "no such image"),
    "truncated object mask": (Y12 / "SegmentationObject/2009_000003.png", cut, "corrupt"),
    "object mask's size": (Y12 / "SegmentationObject/2009_000003.png", repaint((HEIGHT + 1, WIDTH), 0), "its image"),
    "empty split": (MAIN / "test.txt", lambda p: p.write_text("\n"), "lists no image"),
    "missing split": (SEGMENTATION / "val.txt", Path.unlink, "missing"),
    "missing class list": (MAIN / "train_val.txt", Path.unlink, "missing"),
    "id listed twice": (MAIN / "val.txt", repeat_first, "000100 more than once"),
    "class list too short": (MAIN / "bird_train.txt", drop_first, "000000"),
    "class list with another id": (MAIN / "bird_test.txt", replace("000203", "000003"), "000003, 000203"),
    "label 2": (MAIN / "bird_train.txt", replace("000001  0", "000001  2"), "000001"),
    "no label": (MAIN / "bird_train.txt", replace("000001  0", "000001"), "000001"),
    "trainval too small": (SEGMENTATION / "trainval.txt", drop_first, "train.txt and val.txt together"),
    "test in train": (SEGMENTATION / "seg11valid.txt", add("2009_000002\n"), "2009_000002 with train.txt"),
    "train in test": (MAIN / "test.txt", add("000002\n"), "000002 with train.txt"),
}  # fmt: skip


def test_a_clean_tree_has_no_problems(whole: Path) -> None:
    assert data.check(whole) == []
    assert data.check(whole / "VOCdevkit") == []


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_reported_with_its_file(tree: Path, defect: str) -> None:
    path, damage, words = DEFECTS[defect]
    damage(tree / path)
    lines = [line for line in data.check(tree) if line.startswith(f"{tree / path}: ")]
    assert len(lines) == 1
    assert words in lines[0]
    assert "\n" not in lines[0]


def test_only_the_damaged_file_is_reported(tree: Path) -> None:
    cut(tree / Y7 / "JPEGImages/000003.jpg")
    assert len(data.check(tree)) == 1


def test_problems_come_in_the_same_order(tree: Path) -> None:
    for number in (4, 1, 3, 0):
        cut(tree / Y7 / f"JPEGImages/00000{number}.jpg")
    problems = data.check(tree)
    assert problems == sorted(problems)
    assert problems == data.check(tree)


def test_unpublished_test_annotations_are_not_asked_for(tree: Path) -> None:
    for kind in ("Main", "Segmentation"):
        write(tree / Y12 / "ImageSets" / kind / "test.txt", "2012_000900\n")
    write_image(tree / Y12, "2012_000900", 9)
    voc.annotation_path(tree / Y12, "2012_000900").unlink()
    voc.mask_path(tree / Y12, "2012_000900").unlink()
    assert data.check(tree) == []


def test_no_devkit_is_missing(tmp_path: Path) -> None:
    with pytest.raises(Missing, match="no VOCdevkit"):
        data.check(tmp_path)


@pytest.mark.parametrize("images", [1, 3, 100])
def test_a_subset_is_clean(whole: Path, tmp_path: Path, images: int) -> None:
    data.subset(whole, tmp_path / "cut", images=images)
    assert data.check(tmp_path / "cut") == []
    kept = min(images, SIX)
    counts = {(s.year, s.name): s.listed for s in data.splits(tmp_path / "cut")}
    assert counts == {
        ("VOC2007", "train"): kept, ("VOC2007", "val"): kept, ("VOC2007", "test"): kept,
        ("VOC2007", "trainval"): 2 * kept, ("VOC2012", "train"): kept, ("VOC2012", "val"): kept,
        ("VOC2012", "seg11valid"): min(images, 2),
    }  # fmt: skip
    sizes = "+".join([str(kept)] * 5)
    assert data.dataset_name(tmp_path / "cut") == f"subset of VOC ({sizes} images, seed 0)"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut"]


def contents(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_the_seed_chooses_the_subset(whole: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        data.subset(whole, tmp_path / name, images=2, seed=seed)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b
    assert a.keys() != c.keys()


def test_a_subset_keeps_files_and_lines_as_they_are(whole: Path, tmp_path: Path) -> None:
    data.subset(whole, tmp_path / "cut", images=2)
    original, kept = contents(whole), contents(tmp_path / "cut")
    for name in kept.keys() - {"dataset.json"}:
        if name.endswith(".txt"):
            lines = original[name].splitlines(keepends=True)
            assert [line for line in lines if line in kept[name].splitlines(keepends=True)] == kept[name].splitlines(
                True
            )
        else:
            assert kept[name] == original[name]
    assert f"{Y12}/SegmentationObject/" in "".join(kept)


def test_a_subset_shows_as_many_classes_as_it_can(whole: Path, tmp_path: Path) -> None:
    data.subset(whole, tmp_path / "cut", images=5)
    for split in ("train", "val", "test"):  # an image shows two classes, and its neighbours others
        year = tmp_path / "cut" / Y7
        ids = voc.image_set(year, "Main", split)
        shown = voc.presence(voc.read_annotation(voc.annotation_path(year, i)) for i in ids) == 1
        assert shown.any(axis=0).sum() == 10


def test_a_year_alone_is_enough(tree: Path, tmp_path: Path) -> None:
    shutil.rmtree(tree / Y7)
    data.subset(tree / "VOCdevkit", tmp_path / "cut", images=1)
    assert data.dataset_name(tmp_path / "cut") == "subset of VOC (1+1 images, seed 0)"
    assert data.check(tmp_path / "cut") == []


def test_the_shipped_seg11valid_is_cut_too(tree: Path, tmp_path: Path) -> None:
    """Without a list in the tree, the task would ask for all 736 images."""
    year = tree / Y12
    (year / "ImageSets/Segmentation/seg11valid.txt").unlink()
    write_image(year, "2007_000033", 7)  # one of the shipped ids
    for split in ("val", "trainval"):
        add("2007_000033\n")(year / f"ImageSets/Segmentation/{split}.txt")
    data.subset(tree, tmp_path / "cut", images=1)
    assert voc.image_set(tmp_path / "cut" / Y12, "Segmentation", "seg11valid") == ["2007_000033"]
    assert voc.image_set(tmp_path / "cut" / Y12, "Segmentation", "val") == ["2007_000033"]


def test_a_subset_replaces_nothing(whole: Path, tmp_path: Path) -> None:
    write(tmp_path / "cut/mine.txt", "keep me")
    with pytest.raises(Usage, match="not empty"):
        data.subset(whole, tmp_path / "cut")
    assert contents(tmp_path) == {"cut/mine.txt": b"keep me"}
    (tmp_path / "empty").mkdir()
    data.subset(whole, tmp_path / "empty", images=1)
    assert data.check(tmp_path / "empty") == []
    with pytest.raises(Usage, match="ask for 1"):
        data.subset(whole, tmp_path / "none", images=0)


def test_a_failed_subset_leaves_nothing(tree: Path, tmp_path: Path) -> None:
    for path in (tree / Y12 / "SegmentationClass").iterdir():
        path.unlink()
    with pytest.raises(Missing, match="SegmentationClass"):
        data.subset(tree, tmp_path / "cut", images=1)
    assert [p.name for p in tmp_path.iterdir()] == ["tree"]


def test_a_subset_of_a_named_set_carries_its_name(tree: Path, tmp_path: Path) -> None:
    write(tree / "dataset.json", json.dumps({"name": "tiny"}))
    data.subset(tree, tmp_path / "cut", images=1)
    assert data.dataset_name(tmp_path / "cut/VOCdevkit") == "subset of tiny (1+1+1+1+1 images, seed 0)"


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"name": 3}', '{"name": " "}', '{"name": "a\\nb"}', "\0"])
def test_a_broken_name_is_said_to_be(tree: Path, content: str) -> None:
    write(tree / "dataset.json", content)
    with pytest.raises(Failed, match=r"dataset\.json"):
        data.dataset_name(tree)


def test_only_the_official_numbers_make_voc(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert data.dataset_name(tree) == "VOC part"
    official = {"trainval": 2 * SIX, "test": SIX, "train": SIX, "val": SIX}
    monkeypatch.setitem(data.OFFICIAL, ("VOC2007", "Main"), official)
    assert data.dataset_name(tree) == "VOC part"  # VOC2012 is a part still
    shutil.rmtree(tree / Y12)
    assert data.dataset_name(tree) == "VOC"
    (tree / Y7 / "JPEGImages/000201.jpg").unlink()
    assert data.dataset_name(tree) == "VOC part"


def test_complete_counts_images_and_lacking_files(tree: Path) -> None:
    (tree / Y12 / "SegmentationClass/2009_000101.png").unlink()
    assert data.complete(tree) == [
        "VOC2007 trainval: 12 of 5011 images",
        "VOC2007 test: 6 of 4952 images",
        "VOC2007 train: 6 of 2501 images",
        "VOC2007 val: 6 of 2510 images",
        "VOC2012 train: 6 of 1464 images",
        "VOC2012 val: 6 of 1449 images; 1 without JPEG, XML or mask",
        "VOC2012 seg11valid: 2 of 736 images; 1 without JPEG, XML or mask",
    ]
