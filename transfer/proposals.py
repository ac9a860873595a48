"""Selective search proposals, computed once per image set and kept in a cache that cannot be stale.

Paper: proposals as Fast R-CNN's; released code: the authors' precomputed .mat files (protocols 5.1),
which are used where they lie beside the devkit (transfer.published_proposals); else we run OpenCV's.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from pretrain.files import atomic, sha256
from pretrain.npy import read_npz
from pretrain.progress import Progress, log
from transfer import voc

Boxes = NDArray[np.int32]
CHUNK = 100  # images per cache file: what an interruption can lose


@dataclass(frozen=True)
class SelectiveSearch:
    """The parameters of selective search. Lengths are in pixels of the original image unless said."""

    mode: Literal["fast", "quality"]
    side: int | None  # the shorter side of the image searched; None: as it is
    least: int  # shorter sides of a box are left out
    most: int  # boxes per image


def proposals(
    images: Sequence[Path], search: SelectiveSearch, *, cache: Path, workers: int | None = None
) -> list[voc.Floats]:
    """n×4 boxes of each image, by area, largest first (the convention of transfer.voc).

    They are read from `cache` where they are there, else computed by `workers` threads (default: one
    a core; OpenCV leaves Python's lock while it searches). Their number changes no box.
    """
    found: list[voc.Floats] = []
    with Progress("selective search", total=len(images)) as shown:
        for start in range(0, len(images), CHUNK):
            chunk = images[start : start + CHUNK]
            path = cache / f"{_key(chunk, search)}.npz"
            boxes = _read(path) if path.exists() else None
            if boxes is None:
                boxes = list(_search_all(chunk, search, shown, workers or os.cpu_count() or 1))
                _write(path, boxes)
            else:
                for _ in chunk:
                    shown.step("from the cache")
            found += [b.astype(np.float64) for b in boxes]
    return found


def selective_search(image: voc.Bytes, search: SelectiveSearch) -> Boxes:
    """H×W×3 RGB → n×4: distinct boxes, largest first; at most `search.most`, evenly spaced in that order."""
    height, width = image.shape[:2]
    scale = 1.0 if search.side is None else min(1.0, search.side / min(height, width))
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else image
    segmentation = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    segmentation.setBaseImage(cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
    if search.mode == "fast":
        segmentation.switchToSelectiveSearchFast()
    else:
        segmentation.switchToSelectiveSearchQuality()
    x, y, w, h = np.asarray(segmentation.process(), dtype=np.float64).reshape(-1, 4).T
    across, down = width / small.shape[1], height / small.shape[0]
    boxes = np.stack([x * across, y * down, (x + w) * across, (y + h) * down], axis=1).round().astype(np.int32)
    return _tidy(boxes, search)


def _tidy(boxes: Boxes, search: SelectiveSearch) -> Boxes:
    # The set of boxes is a function of the image, but OpenCV shuffles their order with C's rand().
    boxes = np.unique(boxes, axis=0)
    sides = boxes[:, 2:] - boxes[:, :2]
    boxes = boxes[sides.min(axis=1) >= max(search.least, 1)]
    areas = np.prod((boxes[:, 2:] - boxes[:, :2]).astype(np.int64), axis=1)
    boxes = boxes[np.argsort(-areas, kind="stable")]
    count = min(len(boxes), search.most)
    return boxes[np.arange(count) * len(boxes) // max(count, 1)]


def _search_all(images: Sequence[Path], search: SelectiveSearch, shown: Progress, workers: int) -> Iterator[Boxes]:
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    pool = ThreadPoolExecutor(workers)
    try:
        for boxes in pool.map(lambda path: selective_search(voc.read_image(path), search), images):
            yield boxes
            shown.step()
    finally:
        pool.shutdown(cancel_futures=True)
        cv2.setNumThreads(threads)


def _key(images: Sequence[Path], search: SelectiveSearch) -> str:
    """A digest of all that the boxes depend on: the images' bytes, the parameters, OpenCV."""
    parts = [cv2.__version__, repr(astuple(search)), *map(sha256, images)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _digest(counts: Boxes, boxes: Boxes) -> str:
    return hashlib.sha256(counts.tobytes() + boxes.tobytes()).hexdigest()


def _write(path: Path, found: list[Boxes]) -> None:
    counts = np.array([len(boxes) for boxes in found], dtype=np.int32)
    boxes = np.concatenate(found).astype(np.int32)
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, counts=counts, boxes=boxes, digest=np.array(_digest(counts, boxes)))


def _read(path: Path) -> list[Boxes] | None:
    """What _write wrote, or None, with a warning, when the file is damaged."""
    try:
        file = read_npz(path)
        counts, boxes, digest = file["counts"], file["boxes"], str(file["digest"])
        if digest != _digest(counts, boxes):
            raise ValueError("its digest differs")
    except Exception as error:  # zipfile, zlib and numpy raise many kinds on a damaged file
        log(f"{path}: damaged proposals ({error}): computing them again")
        return None
    return np.split(boxes, np.cumsum(counts)[:-1])
