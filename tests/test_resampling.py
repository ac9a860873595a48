"""The headline metrics under a resampling of the test images: the metric of the images written out copy by copy."""

import numpy as np
import pytest

from transfer import classification, detection, segmentation, voc
from transfer.detections import Detections, average_precision, per_image
from transfer.iu import LABELS, scores
from transfer.ranking import average_precisions

CASES = range(6)


def weights(random, images):
    """One copy of each, then resamplings, one of which leaves many images out."""
    drawn = random.multinomial(images, np.full(images, 1 / images), size=6)
    few = np.zeros(images, dtype=int)
    few[0] = images
    return np.vstack([np.ones(images, dtype=int), drawn, few])


@pytest.mark.parametrize("case", CASES)
def test_classification(case):
    random = np.random.default_rng(case)
    images = int(random.integers(1, 40))
    labels = random.choice([-1, -1, 0, 1], size=(images, 20))
    labels[0, 0] = 1
    kept = {"scores": random.normal(size=(images, 20)).round(1).astype(np.float32), "labels": labels.astype(np.int8)}
    counts = weights(random, images)
    found = classification.resampled(kept, counts)
    for row, value in zip(counts, found, strict=True):
        chosen = np.repeat(np.arange(images), row)
        aps = average_precisions(kept["scores"][chosen].astype(np.float64), labels[chosen], metric="sklearn")
        known = [ap for ap in aps if ap is not None]
        assert value == pytest.approx(np.mean(known), abs=1e-12) if known else np.isnan(value)


def test_a_class_of_ambiguous_images_alone_is_left_out():
    labels = np.full((3, 20), -1)
    labels[0, 0], labels[:, 1] = 1, 0
    kept = {"scores": np.arange(60, dtype=np.float32).reshape(3, 20), "labels": labels.astype(np.int8)}
    assert classification.resampled(kept, np.ones((1, 3), int))[0] == pytest.approx(1 / 3)


def annotation(random):
    count = int(random.integers(0, 4))
    low = random.integers(0, 60, (count, 2))
    boxes = np.concatenate([low, low + random.integers(10, 40, (count, 2))], axis=1).astype(float)
    flags = random.random(count) < 0.3
    return voc.Annotation(100, 100, boxes, random.integers(0, 3, count), flags, flags)


@pytest.mark.parametrize("case", CASES)
def test_detection(case):
    """Copies of an image are images of their own, with their own objects and detections."""
    random = np.random.default_rng(case)
    images = int(random.integers(1, 12))
    truths = [annotation(random) for _ in range(images)]
    parts = []
    for index, truth in enumerate(truths):
        near = truth.boxes[random.integers(0, len(truth.boxes), 5)] if len(truth.boxes) else np.zeros((0, 4))
        far = random.integers(0, 50, (4, 2)).astype(float)
        boxes = np.concatenate([near + random.normal(0, 3, near.shape), np.hstack([far, far + 20])])
        labels, marks = random.integers(0, 3, len(boxes)), random.permutation(1000)[: len(boxes)]
        parts.append(Detections(np.full(len(boxes), index), labels, marks / 1000 + index * 1e-5, boxes))
    fields = ("images", "labels", "scores", "boxes")
    found = Detections(*(np.concatenate([getattr(p, f) for p in parts]) for f in fields))
    counts = weights(random, images)
    values = detection.resampled(per_image(found, truths), counts)
    for row, value in zip(counts, values, strict=True):
        chosen = np.repeat(np.arange(images), row)
        copied = [Detections(np.full(len(parts[i].scores), k), parts[i].labels, parts[i].scores, parts[i].boxes)
                  for k, i in enumerate(chosen)]  # fmt: skip
        again = Detections(*(np.concatenate([getattr(p, f) for p in copied]) for f in fields))
        known = [ap[0] for ap in average_precision(again, [truths[i] for i in chosen]).values() if ap]
        assert value == pytest.approx(np.mean(known), abs=1e-12) if known else np.isnan(value)


@pytest.mark.parametrize("case", CASES)
def test_segmentation(case):
    random = np.random.default_rng(case)
    images = int(random.integers(1, 9))
    tables = random.integers(0, 50, (images, len(LABELS), len(LABELS))) * (random.random((images, 21, 21)) < 0.05)
    tables[:, 0, 0] = 7
    counts = weights(random, images)
    found = segmentation.resampled({"tables": tables.astype(np.int32)}, counts)
    for row, value in zip(counts, found, strict=True):
        assert value == pytest.approx(scores(np.repeat(tables, row, axis=0).sum(0))["mean_iu"], abs=1e-12)
