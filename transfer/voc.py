"""One VOCdevkit tree for all three frameworks: image sets, annotations, images, masks, AP.

Boxes are (x1, y1, x2, y2) with x1, y1 0-based and x2, y2 exclusive: width is x2 - x1, and overlaps
equal those of VOC's 1-based inclusive pixels with their "+1".
"""

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from xml.etree.ElementTree import ParseError

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from pretrain.files import Failed, Missing, digest
from pretrain.listing import read_text
from transfer import Data, voc_mask, voc_xml

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
VOID = 255  # the border label of segmentation masks, ignored everywhere
LONGEST = 200  # characters of an image id; file names have 255 bytes
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP")  # others are not meant, and their decoders fail oddly

Floats = NDArray[np.float64]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Annotation:
    """The objects of one image: labels[i] indexes CLASSES, boxes[i] is its box (module docstring)."""

    width: int
    height: int
    boxes: Floats  # n×4
    labels: NDArray[np.int64]  # n
    difficult: NDArray[np.bool_]  # n
    truncated: NDArray[np.bool_]  # n


def find_devkit(data: Path) -> Path:
    """The VOCdevkit folder in (or at) `data`. Raises Missing when there is none."""
    for folder in (data, data / "VOCdevkit"):
        if any(folder.glob("VOC20*/ImageSets")):
            return folder
    raise Missing(f"{data}: no VOCdevkit here: give --data (or $BENCH_DATA) the folder that holds VOCdevkit/VOC2007")


def image_set(year: Path, kind: str, split: str) -> list[str]:
    """The ids listed in ImageSets/<kind>/<split>.txt of a year's folder (…/VOC2007).

    Raises Missing when the list is not there or empty, Failed as read_ids does.
    """
    path = year / "ImageSets" / kind / f"{split}.txt"
    if not path.is_file():
        raise Missing(f"{path}: no such image set: complete the VOCdevkit (`bench data check DIR` says what lacks)")
    ids = read_ids(path)
    if not ids:
        raise Missing(f"{path}: the image set is empty: list at least one image id in it")
    return ids


def read_ids(path: Path) -> list[str]:
    """The first word of each line of a list. Raises Failed when one is no id, or there twice: it would count twice."""
    ids = [fields[0] for fields in read_list(path)]
    if twice := [image_id for image_id, times in Counter(ids).items() if times > 1]:
        raise Failed(f"{path}: lists {twice[0]} more than once ({len(twice)} such ids): keep one line each")
    return ids


def read_list(path: Path) -> list[list[str]]:
    """The words of each line of a list, the first an image id: not a path, not a file's name.

    Raises Missing or Failed, naming the file: not there, in no encoding that is read, lines without an id.
    """
    lines = [line.split() for line in read_text(path).splitlines() if line.strip()]
    for image_id in (fields[0] for fields in lines):
        if (
            image_id.startswith(".")
            or len(image_id) > LONGEST
            or not image_id.isprintable()
            or set(image_id) & {*"/\\"}
        ):
            raise Failed(f"{path}: {image_id[:60]!r} is no image id such as 000012: list ids alone, one a line")
    return lines


def at_most(ids: Sequence[str], count: int | None) -> list[str]:
    """`count` of `ids`, evenly spaced, or all of them."""
    if count is None or count >= len(ids):
        return list(ids)
    return [ids[i * len(ids) // count] for i in range(count)]


def image_path(year: Path, image_id: str) -> Path:
    """Where the JPEG of `image_id` lies."""
    return year / "JPEGImages" / f"{image_id}.jpg"


def annotation_path(year: Path, image_id: str) -> Path:
    """Where the XML of `image_id` lies."""
    return year / "Annotations" / f"{image_id}.xml"


def mask_path(year: Path, image_id: str) -> Path:
    """Where the class mask of `image_id` lies."""
    return year / "SegmentationClass" / f"{image_id}.png"


def read_image(path: Path) -> Bytes:
    """H×W×3 uint8, RGB. Raises Missing or Failed, naming the file, when it cannot be decoded whole, or has 16 bits."""
    return _decode(path, _pixels, formats=FORMATS)


def _pixels(image: Image.Image, path: Path) -> Bytes:
    if image.mode.startswith(("I", "F")):  # Pillow would cut them off at 255
        raise Failed(f"{path}: its pixels have more than 8 bits (mode {image.mode}): convert it to 8 bits a channel")
    return np.array(image.convert("RGB"), dtype=np.uint8)


def _decode(path: Path, read: Callable[[Image.Image, Path], Bytes], *, formats: tuple[str, ...]) -> Bytes:
    # A truncated file must not come back half grey, whatever another library set globally.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    if not path.is_file():
        raise Missing(f"{path}: no such image: complete the data, then run the same command again")
    try:
        with Image.open(path, formats=formats) as image:
            return read(image, path)
    except (Failed, MemoryError):
        raise
    except Exception as error:  # damaged bytes can trip a decoder anywhere
        raise Failed(f"{path}: corrupt or truncated image, or no {formats[0]} ({error}): replace the file") from error


def read_mask(path: Path, *, size: tuple[int, int] | None = None) -> Bytes:
    """H×W uint8 with 0 (background), 1…20 and 255 (void); `size` is the image's (H, W).

    Raises Missing or Failed, naming the file: not there, corrupt, another size, labels that are not VOC's (voc_mask).
    """
    mask = _decode(path, partial(voc_mask.labels, classes=("background", *CLASSES), void=VOID), formats=("PNG",))
    if size is not None and mask.shape != size:
        raise Failed(f"{path}: the mask is {mask.shape}, its image {size} (height, width): replace the mask")
    return mask


def read_annotation(path: Path) -> Annotation:
    """Read one XML. Raises Missing or Failed, naming the file: broken, unknown class, box outside the image."""
    if not path.is_file():
        raise Missing(f"{path}: no such annotation: complete the data, then run the same command again")
    try:
        parsed = voc_xml.parse(voc_xml.read(path))
        labels = [_label(found.name) for found in parsed.objects]
        boxes = np.array([_box(found, parsed) for found in parsed.objects], dtype=np.float64).reshape(-1, 4)
    except (ParseError, ValueError, LookupError, RecursionError) as error:
        raise Failed(f"{path}: broken annotation ({error}): correct or replace the file") from error
    flags = [(found.difficult, found.truncated) for found in parsed.objects]
    difficult, truncated = np.array(flags, dtype=np.bool_).reshape(-1, 2).T
    return Annotation(parsed.width, parsed.height, boxes, np.array(labels, dtype=np.int64), difficult, truncated)


def sources(paths: Iterable[Path]) -> dict[str, str]:
    """For Data.sources: whether annotations among `paths` say "difficult" in words, which once were read as "no"."""
    said = sum(bool(voc_xml.IN_WORDS.search(path.read_bytes())) for path in paths if path.suffix == ".xml")
    return {"difficult": f"written in words in {said} annotations"} if said else {}


def labelled(devkit: Path, year: str, *, train: tuple[str, Sequence[str]], test: tuple[str, Sequence[str]]) -> Data:
    """Images, annotations and lists of two splits of Main, each a name and the ids that are read, digested."""
    folder, ids = devkit / year, (*train[1], *test[1])
    paths = {path(folder, name) for name in ids for path in (image_path, annotation_path)}
    lists = {folder / "ImageSets" / "Main" / f"{split}.txt" for split, _ in (train, test)}
    counts = {"train": len(train[1]), "test": len(test[1])}
    return Data(f"{train[0]} → {test[0]}", counts, digest(devkit, paths | lists), sources(paths))


def _label(name: str) -> int:
    if name in CLASSES:
        return CLASSES.index(name)
    near = difflib.get_close_matches(name.lower().replace(" ", ""), CLASSES, n=1)
    hint = f", perhaps {near[0]!r}" if near else ": " + ", ".join(CLASSES)
    raise ValueError(f"{name[:60]!r} is not one of VOC's 20 classes{hint}")


def _box(found: voc_xml.Object, parsed: voc_xml.Parsed) -> tuple[float, float, float, float]:
    """VOC's 1-based inclusive corners as this module has them."""
    x1, y1, x2, y2 = found.corners
    said = f"the box of {found.name!r} is {x1:g}, {y1:g} – {x2:g}, {y2:g}"
    if min(x1, y1) < 1:
        raise ValueError(f"{said}: outside the image, as VOC counts pixels from 1: add 1 to boxes that count from 0")
    if x2 > parsed.width or y2 > parsed.height:
        raise ValueError(f"{said}: outside its {parsed.width}×{parsed.height} image")
    if not (x2 > x1 - 1 and y2 > y1 - 1):
        raise ValueError(f"{said}: its corners are reversed, or it is empty")
    return x1 - 1, y1 - 1, x2, y2


def presence(annotations: Iterable[Annotation]) -> NDArray[np.int64]:
    """images×20: 1 present, 0 only difficult instances (ambiguous), -1 absent (protocols 4.1)."""
    rows = []
    for annotation in annotations:
        row = np.full(len(CLASSES), -1)
        row[annotation.labels] = 0
        row[annotation.labels[~annotation.difficult]] = 1
        rows.append(row)
    return np.array(rows, dtype=np.int64).reshape(-1, len(CLASSES))


def precision_recall(scores: Floats, true: NDArray[np.bool_], positives: int) -> tuple[Floats, Floats]:
    """Precision and recall after each detection, in order of falling score (ties keep their order)."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(true[order], dtype=np.float64)
    return hits / np.arange(1, len(hits) + 1), hits / max(positives, 1)


def ap_11point(precision: Floats, recall: Floats) -> float:
    """VOC2007's AP: the mean over recall 0, 0.1 … 1 of the best precision at or beyond it (protocols 5.1)."""
    best = [precision[recall >= t].max(initial=0.0) for t in np.arange(0.0, 1.1, 0.1)]
    return float(np.mean(best))


def ap_area(precision: Floats, recall: Floats) -> float:
    """The area under the precision–recall curve made monotone (VOC2010 and later)."""
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))


def mean_of_known(values: Floats) -> Floats:
    """C×B → B: the mean over the first axis without NaNs; NaN where nothing is known."""
    known = ~np.isnan(values)
    total, count = np.where(known, values, 0.0).sum(0), known.sum(0)
    return np.asarray(np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0))


def overlaps(boxes: Floats, others: Floats) -> Floats:
    """n×4, m×4 → n×m: intersection over union."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=2)
    areas = [np.prod(b[:, 2:] - b[:, :2], axis=1) for b in (boxes, others)]
    return np.asarray(shared / (areas[0][:, None] + areas[1][None, :] - shared))
