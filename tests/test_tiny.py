"""The embedded data: the same bytes for the same seed, in VOC's layout, boxes and masks that agree."""

import json
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from benchmarks import data
from benchmarks.embedded import tiny
from benchmarks.embedded.scenes import CLASSES, scene
from pretrain import Folders, labels
from pretrain.files import Failed, Usage, digest
from pretrain.randomness import derived
from transfer import voc

FEW = tiny.Counts(
    trainval=24, test=20, segmentation_train=10, segmentation_val=10, unlabelled=40, sequences=1, frames=2
)
LEAST = tiny.Counts(trainval=1, test=1, segmentation_train=1, segmentation_val=1, unlabelled=1, sequences=1, frames=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "tiny"
    tiny.make_tiny(root, counts=FEW)
    return root


def contents(root: Path) -> str:
    return digest(root, (path for path in root.rglob("*") if path.is_file()))


def objects(xml: Path) -> list[tuple[str, bool, list[int]]]:
    """Name, difficult, and box (1-based, inclusive) of each object."""
    found = ElementTree.parse(xml).getroot().findall("object")
    sides = ("xmin", "ymin", "xmax", "ymax")
    return [
        (o.findtext("name", ""), o.findtext("difficult") == "1", [int(o.findtext(f"bndbox/{s}", "")) for s in sides])
        for o in found
    ]


def test_same_seed_same_bytes_whatever_the_workers(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "ALONE", 1000 if sum(vars(FEW).values()) > tiny.ALONE else 0)  # the other way round
    tiny.make_tiny(tmp_path / "again", counts=FEW)
    assert contents(tmp_path / "again") == contents(made)


def test_another_seed_makes_other_scenes_in_place(tmp_path: Path) -> None:
    root = tmp_path / "tiny"
    tiny.make_tiny(root, counts=LEAST)
    first = contents(root)
    tiny.make_tiny(root, counts=LEAST)
    assert contents(root) == first
    tiny.make_tiny(root, seed=1, counts=LEAST)
    assert contents(root) != first
    assert json.loads((root / "dataset.json").read_text())["seed"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_the_checker_of_voc_trees_finds_nothing(made: Path) -> None:
    assert data.check(made) == []
    assert data.dataset_name(made) == "tiny"


def test_layout(made: Path) -> None:
    assert {path.name for path in made.iterdir()} == {"VOCdevkit", "images", "odometry", "videos", "dataset.json"}
    year = made / "VOCdevkit" / "VOC2007"
    sizes = {split: len(voc.image_set(year, "Main", split)) for split in ("train", "val", "trainval", "test")}
    assert sizes == {"train": 12, "val": 12, "trainval": 24, "test": 20}
    assert all(len(list((year / "ImageSets" / "Main").glob(f"*_{split}.txt"))) == 20 for split in sizes)
    later = made / "VOCdevkit" / "VOC2012"
    assert voc.image_set(later, "Segmentation", "val") == voc.image_set(later, "Main", "val")
    assert not list(later.rglob("2007_*"))


def test_the_folders_of_images_are_the_leads_each_equally_often(made: Path) -> None:
    folders = {path.name: sorted(image.stem for image in path.glob("*.jpg")) for path in (made / "images").iterdir()}
    assert {name: len(images) for name, images in folders.items()} == dict.fromkeys(
        ["railway" if name == "train" else name for name in CLASSES], FEW.unlabelled // 20
    )
    job = next(job for job in tiny._jobs(made, 0, FEW) if job.part == "images" and job.index == 25)
    assert job.image_id in folders[tiny._lead(job)]
    # Painted again, with that class in front, it is that very image: its folder is what it shows.
    rng = np.random.default_rng(derived(0, "tiny", "images", job.index))
    again = scene(rng, tiny._lead(job))
    shown = np.asarray(Image.open(made / "images" / tiny._lead(job) / f"{job.image_id}.jpg"))
    assert abs(again.image.astype(int) - shown).mean() < 8  # JPEG; of another scene it is 50
    assert tiny._lead(job) in {item.name for item in again.objects if not item.difficult}


def test_the_folders_of_images_are_classes_to_learn(made: Path) -> None:
    assert "20 class labels" in labels.source(Folders(images=(made / "images",))).supervision


def test_class_lists_say_what_the_annotations_say(made: Path) -> None:
    year = made / "VOCdevkit" / "VOC2007"
    for name in CLASSES:
        for line in (year / "ImageSets" / "Main" / f"{name}_trainval.txt").read_text().splitlines():
            image_id, label = line.split()
            flags = [hard for n, hard, _ in objects(voc.annotation_path(year, image_id)) if n == name]
            assert line == f"{image_id} {int(label):2d}"
            assert int(label) == (-1 if not flags else 0 if all(flags) else 1)


def test_sizes_and_folders_in_the_annotations(made: Path) -> None:
    for xml in made.glob("VOCdevkit/*/Annotations/*.xml"):
        root = ElementTree.parse(xml).getroot()
        with Image.open(voc.image_path(xml.parents[1], xml.stem)) as image:
            size = tuple(int(root.findtext(f"size/{side}", "")) for side in ("width", "height", "depth"))
            assert (image.format, image.mode, (*image.size, 3)) == ("JPEG", "RGB", size)
        assert root.findtext("folder") == xml.parents[1].name
        assert root.findtext("filename") == f"{xml.stem}.jpg"


def test_boxes_are_tight_around_the_masks(made: Path) -> None:
    year = made / "VOCdevkit" / "VOC2012"
    for path in (year / "SegmentationObject").glob("*.png"):
        instances = np.array(Image.open(path))
        for number, (_, _, box) in enumerate(objects(voc.annotation_path(year, path.stem)), start=1):
            ys, xs = np.nonzero(instances == number)
            assert [xs.min() + 1, ys.min() + 1, xs.max() + 1, ys.max() + 1] == box


def test_masks_are_voc_palette_images(made: Path) -> None:
    year = made / "VOCdevkit" / "VOC2012"
    for image_id in voc.image_set(year, "Segmentation", "trainval"):
        with Image.open(voc.mask_path(year, image_id)) as mask:
            assert mask.mode == "P"
            assert mask.getpalette()[: 3 * 3] == [0, 0, 0, 128, 0, 0, 0, 128, 0]  # type: ignore[index]
            labels = np.array(mask)
        listed = objects(voc.annotation_path(year, image_id))
        expected = {CLASSES.index(name) + 1 for name, hard, _ in listed if not hard}
        assert set(np.unique(labels).tolist()) - {0, voc.VOID} == expected
        assert (labels == voc.VOID).any()


def test_twenty_images_of_a_part_show_every_class(made: Path) -> None:
    assert CLASSES == voc.CLASSES
    year = made / "VOCdevkit" / "VOC2007"
    ids = voc.image_set(year, "Main", "test")
    shown = Counter(name for i in ids for name, hard, _ in objects(voc.annotation_path(year, i)) if not hard)
    assert set(shown) == set(CLASSES)


def test_all_splits_of_the_default_counts_lead_every_class() -> None:
    # Labels alone, no rendering: the lead of a scene is in front, hence visible (see the test above).
    jobs = tiny._jobs(Path(), 0, tiny.DEFAULT)
    leads = Counter((job.part, tiny._lead(job)) for job in jobs)
    assert len(leads) == 6 * 20
    assert min(leads.values()) >= 4


def test_one_image_of_each_is_enough(tmp_path: Path) -> None:
    tiny.make_tiny(tmp_path / "tiny", counts=LEAST)
    assert len(list((tmp_path / "tiny").rglob("*.jpg"))) == 6
    with pytest.raises(Usage, match="1 image or more"):
        tiny.make_tiny(tmp_path / "none", counts=tiny.Counts(test=0))


def test_an_interrupted_making_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tiny, "_write_lists", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tiny.make_tiny(tmp_path / "tiny", counts=LEAST)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(Usage, match="not tiny data"):
        tiny.make_tiny(tmp_path, counts=LEAST)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Failed, match="file/tiny"):
        tiny.make_tiny(tmp_path / "file" / "tiny", counts=LEAST)
