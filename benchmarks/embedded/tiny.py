"""The embedded `tiny` data: a synthetic VOC, made on the spot, the same bytes for the same seed.

Made by make_tiny(ROOT), in about 10 s on two free CPU cores (45 MB):

    ROOT/VOCdevkit/VOC2007   classification and detection: train, val, test
    ROOT/VOCdevkit/VOC2012   segmentation: train, val
    ROOT/images/<class>      for pre-training, with labels or without: the class leads the scene; "train", which as a
                             folder is a split, is called railway
    ROOT/odometry            films as frames, with the camera's poses, in the layout of KITTI's odometry set
    ROOT/videos              the same films as AVI
    ROOT/dataset.json        says that the data is complete, and which it is

VOCdevkit's layout is the official one, its world that of scenes.py; films are shot by videos.py. No
scene is in two parts.
"""

import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar
from xml.etree import ElementTree

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.embedded import videos
from benchmarks.embedded.scenes import Object, Scene, scene
from pretrain.files import Usage, sweep, temporary_name, write_error, write_text
from pretrain.locks import locked
from pretrain.progress import progress
from pretrain.randomness import derived
from pretrain.workers import processes
from transfer import voc, voc_mask

Given = TypeVar("Given")
Made = TypeVar("Made")

VERSION = 3  # raise it when other bytes come out for the same seed
QUALITY = 90  # of the JPEGs
BORDER = 3  # width in pixels of the void border around objects
FOLDERS = {"train": "railway"}  # of images; a class's name elsewhere
ALONE = 64  # as many images or fewer are painted without worker processes


@dataclass(frozen=True)
class Counts:
    """How many images each part has (the first half of `trainval` is train, the other val), and how many films."""

    trainval: int = 400  # VOC2007
    test: int = 200  # VOC2007
    segmentation_train: int = 160  # VOC2012
    segmentation_val: int = 80  # VOC2012
    unlabelled: int = 1200  # the label of their folder can be looked at, or not
    sequences: int = 12
    frames: int = 48  # of each sequence


DEFAULT = Counts()


@dataclass(frozen=True)
class Job:
    """One image to make: its pixels follow from (seed, part, index) alone."""

    root: Path
    part: str  # a split of a year, "VOC2007 val", or "images"
    index: int  # within its part, from 0
    image_id: str
    seed: int


@dataclass(frozen=True)
class Listed:
    """What the lists of ImageSets say about one image: its objects' names, and which are difficult."""

    part: str
    image_id: str
    names: tuple[str, ...]
    difficult: tuple[bool, ...]

    def label(self, name: str) -> int:
        """1: the class is present, 0: only difficult instances of it, -1: absent."""
        flags = [difficult for other, difficult in zip(self.names, self.difficult, strict=True) if other == name]
        return -1 if not flags else int(not all(flags))


def make_tiny(root: Path, *, seed: int = 0, counts: Counts = DEFAULT) -> None:
    """Write ROOT/VOCdevkit/VOC2007, ROOT/VOCdevkit/VOC2012, ROOT/images, ROOT/odometry and ROOT/videos.

    ROOT appears whole or not at all. Where it already holds this very data, nothing is done; other
    tiny data is replaced. Raises Usage when something else is there, Failed when it cannot be written.
    """
    root = root.resolve()
    wanted = {"name": "tiny", "version": VERSION, "seed": seed, "counts": asdict(counts)}
    if min(asdict(counts).values()) < 1:
        raise Usage(f"{counts}: ask for 1 image or more of each")
    sweep(root)
    there = _described(root)
    if there == wanted:
        return
    if root.exists() and there.get("name") != "tiny" and (not root.is_dir() or any(root.iterdir())):
        raise Usage(f"{root}: already there, and not tiny data: give another folder, or delete it first")
    lock = root.with_name(f".{root.name}.lock")
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(root, error) from error
    with locked(lock):  # whoever comes second finds the data of the first
        try:
            if _described(root) != wanted:
                _write_all(root, wanted, seed=seed, counts=counts)
        finally:
            lock.unlink(missing_ok=True)


def _write_all(root: Path, wanted: dict[str, object], *, seed: int, counts: Counts) -> None:
    """See make_tiny."""
    temporary = temporary_name(root)
    try:
        jobs = _jobs(temporary, seed, counts)
        with _one_opencv_thread():
            listed = _each(_make, jobs, "tiny data", alone=len(jobs) <= ALONE, at_once=8)
            film = partial(videos.sequence, temporary, seed=seed, frames=counts.frames)
            _each(film, range(counts.sequences), "tiny films", alone=counts.sequences * counts.frames <= ALONE)
        _write_lists(temporary / "VOCdevkit", listed)
        write_text(temporary / "dataset.json", json.dumps(wanted, indent=2) + "\n")
        _swap(temporary, root)
    except OSError as error:
        raise write_error(root, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _described(root: Path) -> dict[str, object]:
    """What ROOT/dataset.json says; empty when it is not there or broken."""
    try:
        content = json.loads((root / "dataset.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _swap(temporary: Path, root: Path) -> None:
    """Move the new folder into place, and what was there out of it."""
    if not root.exists():
        temporary.rename(root)
        return
    old = temporary_name(root, "old.tmp")
    root.rename(old)
    temporary.rename(root)
    shutil.rmtree(old)


def _jobs(root: Path, seed: int, counts: Counts) -> list[Job]:
    """All images to make, part by part."""
    train = (counts.trainval + 1) // 2
    sizes = {"VOC2007 train": train, "VOC2007 val": counts.trainval - train, "VOC2007 test": counts.test}
    sizes |= {"VOC2012 train": counts.segmentation_train, "VOC2012 val": counts.segmentation_val}
    sizes |= {"images": counts.unlabelled}
    jobs: list[Job] = []
    numbers = {"VOC2007": itertools.count(1), "VOC2012": itertools.count(1), "images": itertools.count(1)}
    for part, size in sizes.items():
        year = part.split()[0]
        prefix = "2012_" if year == "VOC2012" else ""
        jobs += [Job(root, part, i, f"{prefix}{next(numbers[year]):06d}", seed) for i in range(size)]
    return jobs


# ---- painting ----


def _each(
    make: Callable[[Given], Made], jobs: Sequence[Given], what: str, *, alone: bool, at_once: int = 1
) -> list[Made]:
    """Do all jobs, on all cores unless `alone`; the bytes they write do not depend on that."""
    if alone:
        return [make(job) for job in progress(jobs, what, total=len(jobs))]
    with processes("tiny: a worker") as pool:
        return list(progress(pool.map(make, jobs, chunksize=at_once), what, total=len(jobs)))


@contextmanager
def _one_opencv_thread() -> Iterator[None]:
    """OpenCV without its threads: on images this small they cost more than they give, and none survives a fork."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def _make(job: Job) -> Listed:
    """Paint one image and write all its files but the lists."""
    lead = _lead(job)
    painted = scene(np.random.default_rng(derived(job.seed, "tiny", job.part, job.index)), lead)
    year, _, split = job.part.partition(" ")
    if not split:
        _write_image(job.root / "images" / FOLDERS.get(lead, lead) / f"{job.image_id}.jpg", painted)
    else:
        folder = job.root / "VOCdevkit" / year
        _write_image(voc.image_path(folder, job.image_id), painted)
        _write_annotation(voc.annotation_path(folder, job.image_id), painted, segmented=year == "VOC2012")
        if year == "VOC2012":
            _write_masks(folder, job.image_id, painted)
    objects = painted.objects
    return Listed(job.part, job.image_id, tuple(o.name for o in objects), tuple(o.difficult for o in objects))


def _lead(job: Job) -> str:
    """The class in front. In every 20 images of a part each leads once: 20 images show all classes."""
    turn, place = divmod(job.index, len(voc.CLASSES))
    order = np.random.default_rng(derived(job.seed, "tiny", job.part, "leads", turn)).permutation(len(voc.CLASSES))
    return voc.CLASSES[order[place]]


def _write_image(path: Path, painted: Scene) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(painted.image).save(path, quality=QUALITY)


def _write_annotation(path: Path, painted: Scene, *, segmented: bool) -> None:
    """The XML of one image; the k-th object is number k in SegmentationObject."""
    height, width, depth = painted.image.shape
    root = ElementTree.Element("annotation")
    _add(root, folder=path.parent.parent.name, filename=f"{path.stem}.jpg")
    source = ElementTree.SubElement(root, "source")
    _add(source, database="tiny, a synthetic VOC", annotation="PASCAL VOC layout", image=painted.setting)
    _add(ElementTree.SubElement(root, "size"), width=width, height=height, depth=depth)
    _add(root, segmented=int(segmented))
    for item in painted.objects:
        element = ElementTree.SubElement(root, "object")
        _add(element, name=item.name, pose="Unspecified", truncated=int(item.truncated), difficult=int(item.difficult))
        _add(ElementTree.SubElement(element, "bndbox"), **_box(item))
    ElementTree.indent(root, "\t")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(ElementTree.tostring(root, encoding="unicode") + "\n", encoding="utf-8")


def _add(parent: ElementTree.Element, **texts: object) -> None:
    """Append one child element per keyword, in their order."""
    for name, text in texts.items():
        ElementTree.SubElement(parent, name).text = str(text)


def _box(item: Object) -> dict[str, int]:
    """The tight box of what is visible: VOC's 1-based pixels, both corners inside."""
    rows, columns = np.flatnonzero(item.mask.any(1)), np.flatnonzero(item.mask.any(0))
    return {
        "xmin": int(columns[0]) + 1,
        "ymin": int(rows[0]) + 1,
        "xmax": int(columns[-1]) + 1,
        "ymax": int(rows[-1]) + 1,
    }


def _write_masks(year: Path, image_id: str, painted: Scene) -> None:
    """SegmentationClass and SegmentationObject, as palette images."""
    classes, instances = _label_images(painted)
    for kind, labels in (("SegmentationClass", classes), ("SegmentationObject", instances)):
        path = year / kind / f"{image_id}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(labels)
        picture.putpalette(voc_mask.COLOURS.ravel().tolist())
        picture.save(path)


def _label_images(painted: Scene) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """H×W labels by class, difficult objects void, and by object. The void border takes background alone.

    The border leaves objects whole because VOC's, laid over them, would leave nothing of a bicycle this small.
    """
    classes = np.zeros(painted.image.shape[:2], np.uint8)
    instances = classes.copy()
    for number, item in enumerate(painted.objects, start=1):
        classes[item.mask] = voc.VOID if item.difficult else voc.CLASSES.index(item.name) + 1
        instances[item.mask] = number
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * BORDER + 1, 2 * BORDER + 1))
    around = cv2.dilate((instances > 0).astype(np.uint8), disc) > 0
    for labels in (classes, instances):
        labels[around & (instances == 0)] = voc.VOID
    return classes, instances


# ---- ImageSets ----


def _write_lists(devkit: Path, listed: Sequence[Listed]) -> None:
    """All lists of both years. A list without images is left out, as the checker of VOC trees wants it."""
    for year, kinds in (("VOC2007", ("Main", "Layout")), ("VOC2012", ("Main", "Layout", "Segmentation"))):
        splits = {s: [x for x in listed if x.part == f"{year} {s}"] for s in ("train", "val", "test")}
        splits["trainval"] = splits["train"] + splits["val"]
        for kind, (split, images) in itertools.product(kinds, splits.items()):
            folder = devkit / year / "ImageSets" / kind
            _write_list(folder / f"{split}.txt", _persons(images) if kind == "Layout" else [x.image_id for x in images])
            for name in voc.CLASSES if kind == "Main" else ():
                lines = [f"{x.image_id} {x.label(name):2d}" for x in images]
                _write_list(folder / f"{name}_{split}.txt", lines)


def _persons(images: Sequence[Listed]) -> list[str]:
    """The lines of a layout list: an image, and the number in it of an object that is a person."""
    pairs = [(x.image_id, k) for x in images for k, name in enumerate(x.names, start=1) if name == "person"]
    return [f"{image_id} {k:2d}" for image_id, k in pairs]


def _write_list(path: Path, lines: Sequence[str]) -> None:
    if lines:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
