"""Detections in an image set: the limits and the suppression of FR, VOC's average precision, chance.

protocols 5.1; FR is rbgirshick/fast-rcnn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.layers import batched_nms
from numpy.typing import NDArray
from scipy.sparse import coo_matrix

from transfer import voc

CHANCE_SHIFTS = 5
OVERLAP = 0.5  # VOCevaldet: an object is found by an overlap of at least this much


@dataclass(frozen=True)
class Detections:
    """n detections: images[i] indexes the image set, labels[i] voc.CLASSES."""

    images: NDArray[np.int64]
    labels: NDArray[np.int64]
    scores: voc.Floats
    boxes: voc.Floats  # n×4

    def __getitem__(self, chosen: Any) -> "Detections":
        """The chosen ones (a mask or indices), in that order."""
        return Detections(self.images[chosen], self.labels[chosen], self.scores[chosen], self.boxes[chosen])


def joined(parts: Sequence[Detections]) -> Detections:
    """One after the other."""
    images, labels = (np.concatenate([getattr(p, field) for p in parts]) for field in ("images", "labels"))
    scores, boxes = (np.concatenate([getattr(p, field) for p in parts]) for field in ("scores", "boxes"))
    return Detections(images, labels, scores, boxes)


def limited(found: Detections, most: int) -> Detections:
    """The `most` best of every class."""
    best = [np.zeros(0, dtype=np.int64)]
    for label in range(len(voc.CLASSES)):
        mine = np.flatnonzero(found.labels == label)
        best.append(mine[np.argsort(-found.scores[mine], kind="stable")[:most]])
    return found[np.sort(np.concatenate(best))]


def suppressed(found: Detections, *, nms: float) -> Detections:
    """Without those that overlap a better one of their image and class by more than `nms`."""
    keep = [np.zeros(0, dtype=np.int64)]
    for index in np.unique(found.images):
        mine = np.flatnonzero(found.images == index)
        boxes, scores = (torch.from_numpy(values[mine]).float() for values in (found.boxes, found.scores))
        kept = batched_nms(boxes, scores, torch.from_numpy(found.labels[mine]), nms)
        keep.append(np.sort(mine[kept.numpy()]))
    return found[np.concatenate(keep)]


@dataclass(frozen=True)
class Judged:
    """The detections of one class by falling score, without those that found a difficult object."""

    images: NDArray[np.int64]
    scores: voc.Floats
    true: NDArray[np.bool_]


def judged(found: Detections, truths: Sequence[voc.Annotation], label: int) -> Judged:
    """The detections of one class, as VOCevaldet judges them.

    By falling score (ties keep their order), each looks at the object of its class that it overlaps
    most. With an overlap of 0.5 or more it is true if it is the first there, false if not; where that
    object is difficult it is left out of the answer. With less it is false.
    """
    found = found[found.labels == label]
    found = found[np.argsort(-found.scores, kind="stable")]
    objects = [np.flatnonzero(truth.labels == label) for truth in truths]
    nearest, overlap = np.zeros(len(found.scores), dtype=np.int64), np.zeros(len(found.scores))
    for index in np.unique(found.images):
        if len(objects[index]):
            mine = np.flatnonzero(found.images == index)
            shared = voc.overlaps(found.boxes[mine], truths[index].boxes[objects[index]])
            nearest[mine], overlap[mine] = objects[index][shared.argmax(1)], shared.max(1)
    true, ignored = (np.zeros(len(found.scores), dtype=np.bool_) for _ in range(2))
    taken = set()
    for i in np.flatnonzero(overlap >= OVERLAP):
        place = int(found.images[i]), int(nearest[i])
        ignored[i] = truths[place[0]].difficult[place[1]]
        true[i] = not ignored[i] and place not in taken
        taken.add(place)
    return Judged(found.images[~ignored], found.scores[~ignored], true[~ignored])


def positives(truths: Sequence[voc.Annotation]) -> NDArray[np.int64]:
    """images×20: the objects that are not difficult."""
    counts = [np.bincount(t.labels[~t.difficult], minlength=len(voc.CLASSES)) for t in truths]
    return np.array(counts, dtype=np.int64).reshape(-1, len(voc.CLASSES))


def average_precision(found: Detections, truths: Sequence[voc.Annotation]) -> dict[str, tuple[float, float] | None]:
    """Class name → (11-point AP, area AP), or None for a class with no object but difficult ones."""
    results: dict[str, tuple[float, float] | None] = {}
    for label, count in enumerate(positives(truths).sum(0)):
        verdict = judged(found, truths, label)
        curve = voc.precision_recall(verdict.scores, verdict.true, int(count))
        results[voc.CLASSES[label]] = (voc.ap_11point(*curve), voc.ap_area(*curve)) if count else None
    return results


def per_image(found: Detections, truths: Sequence[voc.Annotation]) -> dict[str, NDArray[Any]]:
    """What resampled_map needs: every class's detections by falling score, as image and truth.

    Those after a class's last true one change no AP, whatever the resampling, and are left out.
    """
    verdicts = [judged(found, truths, label) for label in range(len(voc.CLASSES))]
    lengths = [int(v.true.nonzero()[0][-1]) + 1 if v.true.any() else 0 for v in verdicts]
    images, true = (
        np.concatenate([getattr(v, field)[:n] for v, n in zip(verdicts, lengths, strict=True)])
        for field in ("images", "true")
    )
    counts = positives(truths).astype(np.uint16)
    return {"images": images.astype(np.uint32), "true": true, "lengths": np.array(lengths), "positives": counts}


def resampled_map(kept: Mapping[str, NDArray[Any]], weights: NDArray[np.int64]) -> voc.Floats:
    """What per_image kept, B×images copies of each image → B 11-point mAPs.

    A class that a resampling leaves without objects is left out of its mean. Weights of one give the
    mean of average_precision. Copies of an image bring their own objects and their own detections.
    """
    copies, starts = weights.T.astype(np.float64), np.cumsum(kept["lengths"])[:-1]
    classes = zip(np.split(kept["images"], starts), np.split(kept["true"], starts), kept["positives"].T, strict=True)
    columns = [
        _resampled_ap(images.astype(np.int64), true, objects @ copies, copies) for images, true, objects in classes
    ]
    return voc.mean_of_known(np.array(columns))


def _resampled_ap(
    images: NDArray[np.int64], true: NDArray[np.bool_], objects: voc.Floats, copies: voc.Floats
) -> voc.Floats:
    """One class: its detections, B numbers of objects, images×B copies → B APs, NaN where there is no object."""
    hits = np.cumsum(copies[images[true]], axis=0)  # K×B, at each of the K true detections
    # The false detections between one true detection and the next, counted by image: K×images.
    gap, false = np.cumsum(true)[~true], images[~true]
    between = coo_matrix((np.ones(len(gap)), (gap, false)), shape=(len(hits), len(copies))).tocsr()
    misses = np.cumsum(between @ copies, axis=0)
    with np.errstate(invalid="ignore"):  # 0 / 0 where an image is not in the resampling
        precision = np.nan_to_num(hits / (hits + misses))
        recall = hits / objects
    best = np.maximum.accumulate(np.vstack([precision, np.zeros_like(objects)])[::-1], axis=0)[::-1]
    reached = [(recall < t).sum(0) for t in np.arange(0.0, 1.1, 0.1)]  # where recall comes to t; K: never
    ap = np.mean([np.take_along_axis(best, place[None], axis=0)[0] for place in reached], axis=0)
    return np.where(objects > 0, ap, np.nan)


def chance(found: Detections, truths: Sequence[voc.Annotation]) -> tuple[float, float]:
    """What can be earned without looking: 11-point mAP of each image's detections held against another image.

    Boxes are stretched to the other image's size. Class frequencies, usual places and usual sizes all
    count here, so that only what was seen in the image is above it. It is each row's own: what these very
    detections earn blindly. Mean and standard deviation over CHANCE_SHIFTS pairings: image i with image
    i + k, for evenly spaced k. (A single image is paired with itself.)
    """
    maps, count = [], len(truths)
    sizes = np.array([(truth.width, truth.height) * 2 for truth in truths])
    for shift in {max(1, k * count // (CHANCE_SHIFTS + 1)) for k in range(1, CHANCE_SHIFTS + 1)}:
        other = (np.arange(count) + shift) % count
        boxes = found.boxes * (sizes[other] / sizes)[found.images]
        moved = Detections(other[found.images], found.labels, found.scores, boxes)
        maps.append(np.mean([ap[0] for ap in average_precision(moved, truths).values() if ap]))
    return float(np.mean(maps)), float(np.std(maps))
