"""Detections in an image set: the limits and the suppression of FR, VOC's average precision, chance.

protocols 5.1; FR is rbgirshick/fast-rcnn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.layers import batched_nms
from numpy.typing import NDArray

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


def judged(found: Detections, truths: Sequence[voc.Annotation], label: int) -> tuple[voc.Floats, NDArray[np.bool_]]:
    """Scores and truth of the detections of one class, as VOCevaldet judges them.

    By falling score (ties keep their order), each looks at the object of its class that it overlaps
    most. With an overlap of 0.5 or more it is true if it is the first there, false if not; where that
    object is difficult it is left out of the answer. With less it is false.
    """
    found = found[found.labels == label]
    objects = [np.flatnonzero(truth.labels == label) for truth in truths]
    nearest, overlap = np.zeros(len(found.scores), dtype=np.int64), np.zeros(len(found.scores))
    for index in np.unique(found.images):
        if len(objects[index]):
            mine = np.flatnonzero(found.images == index)
            shared = voc.overlaps(found.boxes[mine], truths[index].boxes[objects[index]])
            nearest[mine], overlap[mine] = objects[index][shared.argmax(1)], shared.max(1)
    true, ignored = (np.zeros(len(found.scores), dtype=np.bool_) for _ in range(2))
    taken = set()
    for i in np.argsort(-found.scores, kind="stable"):
        if overlap[i] >= OVERLAP:
            place = int(found.images[i]), int(nearest[i])
            ignored[i] = truths[place[0]].difficult[place[1]]
            true[i] = not ignored[i] and place not in taken
            taken.add(place)
    return found.scores[~ignored], true[~ignored]


def average_precision(found: Detections, truths: Sequence[voc.Annotation]) -> dict[str, tuple[float, float] | None]:
    """Class name → (11-point AP, area AP), or None for a class with no object but difficult ones."""
    results: dict[str, tuple[float, float] | None] = {}
    for label, name in enumerate(voc.CLASSES):
        positives = sum(int(((truth.labels == label) & ~truth.difficult).sum()) for truth in truths)
        curve = voc.precision_recall(*judged(found, truths, label), positives)
        results[name] = (voc.ap_11point(*curve), voc.ap_area(*curve)) if positives else None
    return results


def chance(found: Detections, truths: Sequence[voc.Annotation]) -> float:
    """What can be earned without looking: 11-point mAP of each image's detections held against another image.

    Boxes are stretched to the other image's size. Class frequencies, usual places and usual sizes all
    count here, so that only what was seen in the image is above it. The mean over CHANCE_SHIFTS
    pairings: image i with image i + k, for evenly spaced k. (A single image is paired with itself.)
    """
    aps, count = [], len(truths)
    sizes = np.array([(truth.width, truth.height) * 2 for truth in truths])
    for shift in {max(1, k * count // (CHANCE_SHIFTS + 1)) for k in range(1, CHANCE_SHIFTS + 1)}:
        other = (np.arange(count) + shift) % count
        boxes = found.boxes * (sizes[other] / sizes)[found.images]
        moved = Detections(other[found.images], found.labels, found.scores, boxes)
        aps += [ap[0] for ap in average_precision(moved, truths).values() if ap]
    return float(np.mean(aps))
