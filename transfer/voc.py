"""One VOCdevkit tree for all three frameworks: image sets, annotations, images, masks, AP.

Boxes are (x1, y1, x2, y2) with x1, y1 0-based and x2, y2 exclusive: width is x2 - x1, and overlaps
equal those of VOC's 1-based inclusive pixels with their "+1".
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from pretrain.files import Failed, Missing

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
VOID = 255  # the border label of segmentation masks, ignored everywhere

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

    Raises Missing when the list is not there or empty.
    """
    path = year / "ImageSets" / kind / f"{split}.txt"
    if not path.is_file():
        raise Missing(f"{path}: no such image set: complete the VOCdevkit (`bench data check DIR` says what lacks)")
    ids = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
    if not ids:
        raise Missing(f"{path}: the image set is empty: list at least one image id in it")
    return ids


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
    """H×W×3 uint8, RGB. Raises Missing or Failed, naming the file, when it cannot be decoded whole."""
    return _decode(path, mode="RGB")


def _decode(path: Path, *, mode: str | None) -> Bytes:
    # A truncated file must not come back half grey, whatever another library set globally.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    if not path.is_file():
        raise Missing(f"{path}: no such image: complete the data, then run the same command again")
    try:
        with Image.open(path) as image:
            return np.array(image.convert(mode) if mode else image, dtype=np.uint8)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Failed(f"{path}: corrupt or truncated image ({error}): replace the file") from error


def read_mask(path: Path, *, size: tuple[int, int]) -> Bytes:
    """H×W uint8 with 0 (background), 1…20 and 255 (void); `size` is the image's (H, W).

    Raises Missing or Failed, naming the file: not there, corrupt, another size, other labels.
    """
    mask = _decode(path, mode=None)
    if mask.shape != size:
        raise Failed(f"{path}: the mask is {mask.shape}, its image {size} (height, width): replace the mask")
    odd = np.setdiff1d(np.unique(mask), [*range(len(CLASSES) + 1), VOID])
    if odd.size:
        raise Failed(f"{path}: labels {odd.tolist()} in the mask; only 0–20 and 255 are VOC's: replace the mask")
    return mask


def read_annotation(path: Path) -> Annotation:
    """Read one XML. Raises Missing or Failed, naming the file: broken, unknown class, box outside the image."""
    if not path.is_file():
        raise Missing(f"{path}: no such annotation: complete the data, then run the same command again")
    try:
        root = ElementTree.parse(path).getroot()
        width, height = (int(_text(root, f"size/{side}")) for side in ("width", "height"))
        objects = root.findall("object")
        corners = [[float(_text(o, f"bndbox/{c}")) for c in ("xmin", "ymin", "xmax", "ymax")] for o in objects]
        labels = [CLASSES.index(_text(o, "name").strip()) for o in objects]
        flags = [[(o.findtext(flag) or "0").strip() == "1" for flag in ("difficult", "truncated")] for o in objects]
    except (ElementTree.ParseError, ValueError) as error:
        raise Failed(f"{path}: broken annotation ({error}): replace the file") from error
    boxes = np.array(corners, dtype=np.float64).reshape(-1, 4) - (1, 1, 0, 0)
    inside = (boxes[:, :2] >= 0).all(1) & (boxes[:, 2] <= width) & (boxes[:, 3] <= height)
    if not (inside & (boxes[:, 2:] > boxes[:, :2]).all(1)).all():
        raise Failed(f"{path}: a box is empty or outside its {width}×{height} image: correct the file")
    difficult, truncated = np.array(flags, dtype=np.bool_).reshape(-1, 2).T
    return Annotation(width, height, boxes, np.array(labels, dtype=np.int64), difficult, truncated)


def _text(element: ElementTree.Element, path: str) -> str:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"no <{path}>")
    return text


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
