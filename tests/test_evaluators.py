"""Our scores against those of the frameworks and against their definitions in plain loops, on random cases."""

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.evaluation.pascal_voc_evaluation import voc_ap, voc_eval
from detectron2.structures import Boxes, Instances
from mmseg.evaluation import IoUMetric
from numpy.typing import NDArray
from sklearn.metrics import auc, average_precision_score, precision_recall_curve

from transfer import voc
from transfer.detections import Detections, average_precision
from transfer.iu import LABELS, class_iu, histogram, scores
from transfer.ranking import average_precisions, chance_map

# ---- detection ----

SIDE = 48
CAT = voc.CLASSES.index("cat")
NAMES = ("bird", "cat", "dog", "sofa")  # sofa: never in an image, yet detected


@dataclasses.dataclass(frozen=True)
class World:
    """A VOC2007 of a few images on disk, and detections in it (of NAMES)."""

    folder: Path
    truths: list[voc.Annotation]
    found: Detections

    def of(self, label: int) -> Detections:
        return self.found[self.found.labels == label]


def make_world(folder: Path, seed: int) -> World:
    """Images without objects and without detections, difficult objects, duplicates, tied scores, no exact halves."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(rng.integers(1, 9)):
        objects = [(str(rng.choice(NAMES[:3])), random_box(rng), rng.random() < 0.3) for _ in range(rng.integers(0, 5))]
        images.append(objects)
    truths = write_tree(folder, images)
    return World(folder, truths, detections(rng, truths))


def write_tree(folder: Path, images: Sequence[Sequence[tuple[str, NDArray[Any], bool]]]) -> list[voc.Annotation]:
    """Annotations and a test list of images 0, 1 …, each with (name, box, difficult); read back by ours."""
    (folder / "Annotations").mkdir(parents=True)
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "ImageSets" / "Main" / "test.txt").write_text("\n".join(map(str, range(len(images)))))
    for i, objects in enumerate(images):
        text = f"<annotation><size><width>{SIDE}</width><height>{SIDE}</height></size>"
        for name, (x1, y1, x2, y2), difficult in objects:
            text += f"<object><name>{name}</name><pose/><truncated>0</truncated><difficult>{int(difficult)}</difficult>"
            text += f"<bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>"
            text += "</object>"
        (folder / "Annotations" / f"{i}.xml").write_text(text + "</annotation>")
    return [voc.read_annotation(folder / "Annotations" / f"{i}.xml") for i in range(len(images))]


def random_box(rng: np.random.Generator) -> NDArray[np.int64]:
    (x1, y1), size = rng.integers(0, SIDE - 20, 2), rng.integers(4, 20, 2)
    return np.array([x1, y1, x1 + size[0], y1 + size[1]])


def detections(rng: np.random.Generator, truths: Sequence[voc.Annotation]) -> Detections:
    """Up to 40 of each class, most of them near an object or the same as one before."""
    rows: list[tuple[int, int, float, NDArray[np.int64]]] = []
    for label in map(voc.CLASSES.index, NAMES):
        for _ in range(rng.choice([0, 3, 40])):
            image = int(rng.integers(0, len(truths)) * rng.random())  # rather the first: some get none
            near, box = truths[image].boxes[truths[image].labels == label].astype(int), random_box(rng)
            if len(near) and rng.random() < 0.7:
                box = near[rng.integers(len(near))] + rng.integers(-2, 3, 4)
                box = np.clip(np.minimum(box, [*box[2:] - 1, SIDE, SIDE]), 0, SIDE)
            if rows and rng.random() < 0.2:
                image, label, _, box = rows[-1]
            shared = voc.overlaps(box[None].astype(float), truths[image].boxes)
            if not np.isclose(shared, 0.5).any():
                rows.append((image, label, int(rng.integers(0, 12)) / 16, box))
    images, labels, confidence, boxes = zip(*rows, strict=True) if rows else ((), (), (), ())
    arrays = np.array(images, dtype=np.int64), np.array(labels, dtype=np.int64), np.array(confidence, dtype=float)
    return Detections(*arrays, np.array(boxes, dtype=float).reshape(-1, 4))


def pixels(box: voc.Floats) -> NDArray[np.bool_]:
    """SIDE×SIDE: what the box covers."""
    x1, y1, x2, y2 = box.astype(int)
    mask = np.zeros((SIDE, SIDE), dtype=np.bool_)
    mask[y1:y2, x1:x2] = True
    return mask


def by_definition(found: Detections, truths: Sequence[voc.Annotation], label: int) -> tuple[float, float] | None:
    """VOCevaldet's 11-point AP and VOC2010's area AP, one detection after the other, overlaps by counting pixels."""
    objects = [[pixels(b) for b in t.boxes[t.labels == label]] for t in truths]
    difficult = [t.difficult[t.labels == label].tolist() for t in truths]
    positives = sum(not d for flags in difficult for d in flags)
    hits: list[bool] = []
    taken = set()
    for i in sorted(range(len(found.scores)), key=lambda i: -found.scores[i]):  # ties keep their order
        image, mask = int(found.images[i]), pixels(found.boxes[i])
        shared = [(mask & other).sum() / (mask | other).sum() for other in objects[image]]
        best = max(range(len(shared)), key=shared.__getitem__, default=None)
        if best is None or shared[best] < 0.5:
            hits.append(False)
        elif not difficult[image][best]:
            hits.append((image, best) not in taken)
            taken.add((image, best))
    if not positives:
        return None
    precision = [sum(hits[: n + 1]) / (n + 1) for n in range(len(hits))]
    recall = [sum(hits[: n + 1]) / positives for n in range(len(hits))]
    # The thresholds are doubles, 3 · 0.1 a hair above 0.3: see test_a_recall_of_three_tenths.
    eleven = [max((p for p, r in zip(precision, recall, strict=True) if r >= k * 0.1), default=0.0) for k in range(11)]
    area = [max(precision[n:]) for n, hit in enumerate(hits) if hit]
    return sum(eleven) / 11, sum(area) / positives


def detectron2s(world: World, label: int) -> tuple[float, float]:
    """11-point and area AP of one class by detectron2's voc_eval, through the devkit's files."""
    found, name = world.of(label), voc.CLASSES[label]
    with (world.folder / f"{name}.txt").open("w") as file:
        for image, score, box in zip(found.images, found.scores, found.boxes + np.array([1, 1, 0, 0]), strict=True):
            file.write(f"{image} {score} {' '.join(map(str, box))}\n")
    paths = (str(world.folder / part) for part in ("{}.txt", "Annotations/{}.xml", "ImageSets/Main/test.txt"))
    detections, annotations, images = paths
    eleven, area = (
        voc_eval(detections, annotations, images, name, use_07_metric=metric)[2] for metric in (True, False)
    )
    return float(eleven), float(area)


@pytest.mark.parametrize("seed", range(60))
def test_average_precisions_are_detectron2s_and_the_definition(tmp_path: Path, seed: int) -> None:
    world = make_world(tmp_path, seed)
    ours = average_precision(world.found, world.truths)
    assert {name for name, ap in ours.items() if ap} <= set(NAMES[:3])
    for label in map(voc.CLASSES.index, NAMES):
        name, found = voc.CLASSES[label], world.of(label)
        expected = by_definition(found, world.truths, label)
        assert (ours[name] is None) == (expected is None)
        if expected is None:
            continue
        assert ours[name] == pytest.approx(expected, abs=1e-12)
        # detectron2 leaves the order of ties to NumPy's unstable sort: look in that order ourselves.
        same = average_precision(found[np.argsort(-found.scores)], world.truths)[name]
        assert same == pytest.approx(detectron2s(world, label), abs=1e-12)


def test_the_random_worlds_hold_what_they_should(tmp_path: Path) -> None:
    worlds = [make_world(tmp_path / str(seed), seed) for seed in range(60)]
    aps = [ap for w in worlds for ap in average_precision(w.found, w.truths).values() if ap]
    assert len(aps) > 80
    assert sum(0.05 < eleven < 0.95 and abs(eleven - area) > 1e-3 for eleven, area in aps) > 20
    assert any(not len(t.labels) for w in worlds for t in w.truths)
    assert any(len(set(w.found.images)) < len(w.truths) for w in worlds)
    assert any(len(set(w.found.scores)) < len(w.found.scores) for w in worlds)
    cats = [(w.of(CAT), w.truths) for w in worlds]
    ties = [(by_definition(found, truths, CAT), by_definition(found[::-1], truths, CAT)) for found, truths in cats]
    assert sum(a != b for a, b in ties) > 5  # the order of tied scores matters


@pytest.mark.parametrize("year", [2007, 2012])
def test_mean_average_precision_is_detectron2s_evaluators(tmp_path: Path, year: int) -> None:
    """PascalVOCDetectionEvaluator on the same tree: 11-point for 2007, area for 2012; scores without ties."""
    means = []
    for seed in range(8):
        world, name = make_world(tmp_path / str(seed), seed), f"evaluators_{year}_{seed}"
        order = np.random.default_rng(seed).permutation(len(world.found.scores))
        found = dataclasses.replace(world.found, scores=order / 1000)  # it writes three decimals
        ours = {k: v for k, v in average_precision(found, world.truths).items() if v}
        known = [voc.CLASSES.index(k) for k in ours]
        classes = MetadataCatalog.get(name).set(
            thing_classes=list(ours), dirname=str(world.folder), split="test", year=year
        )
        evaluator = PascalVOCDetectionEvaluator(classes.name)
        MetadataCatalog.remove(name)
        evaluator.reset()
        for image in range(len(world.truths)):
            mine = found[(found.images == image) & np.isin(found.labels, known)]
            out = Instances((SIDE, SIDE), pred_boxes=Boxes(torch.from_numpy(mine.boxes)))
            out.scores = torch.from_numpy(mine.scores)
            out.pred_classes = torch.tensor([known.index(k) for k in mine.labels])
            evaluator.process([{"image_id": str(image)}], [{"instances": out}])
        means.append(np.mean([ap[year == 2012] for ap in ours.values()]))
        assert evaluator.evaluate()["bbox"]["AP50"] == pytest.approx(100 * means[-1], abs=1e-9)
    assert sum(0.05 < mean < 0.95 for mean in means) > 3


def test_an_overlap_of_exactly_a_half_is_enough(tmp_path: Path) -> None:
    """VOCevaldet: ovmax >= minoverlap, as ours; detectron2 asks for more than a half."""
    truths = write_tree(tmp_path, [[("cat", np.array([0, 0, 10, 10]), False)]])
    half = Detections(np.array([0]), np.array([CAT]), np.ones(1), np.array([[0.0, 0, 10, 5]]))
    assert average_precision(half, truths)["cat"] == by_definition(half, truths, CAT) == (1.0, 1.0)
    assert detectron2s(World(tmp_path, truths, half), CAT) == (0.0, 0.0)


def test_a_recall_of_three_tenths() -> None:
    """The released Python code's thresholds are doubles, and 3 · 0.1 > 3 / 10: ours are the same numbers."""
    for positives in (5, 7, 10, 20, 100):
        for true in range(positives + 1):
            recall, precision = np.arange(1, true + 1) / positives, np.ones(true)
            assert voc.ap_11point(precision, recall) == pytest.approx(voc_ap(recall, precision, use_07_metric=True))
    assert voc.ap_11point(np.ones(3), np.array([0.1, 0.2, 0.3])) == pytest.approx(3 / 11)


# ---- segmentation ----


@pytest.mark.parametrize("seed", range(30))
def test_segmentation_scores_are_mmsegs_and_the_definition(seed: int) -> None:
    """Void in every image but some; classes of the truth, the prediction, both or neither."""
    rng = np.random.default_rng(seed)
    metric, total, loop = IoUMetric(), np.zeros((21, 21), np.int64), [[0] * 21 for _ in range(21)]
    metric.dataset_meta = {"classes": LABELS}
    shown, said = ([0, *rng.choice(np.arange(1, 21), rng.integers(0, 12), replace=False)] for _ in range(2))
    void = rng.choice([0.0, 0.2])
    for _ in range(rng.integers(1, 4)):
        size = tuple(rng.integers(1, 14, 2))
        truth = np.where(rng.random(size) < void, voc.VOID, rng.choice(shown, size)).astype(np.uint8)
        right = rng.random(size) < 0.6
        predicted = np.where(right & (truth != voc.VOID), truth, rng.choice(said, size)).astype(np.int64)
        total += histogram(truth, predicted)
        for row, column in zip(truth.flatten().tolist(), predicted.flatten().tolist(), strict=True):
            if row != 255:
                loop[row][column] += 1
        pair = {"pred_sem_seg": predicted, "gt_sem_seg": truth}
        metric.process({}, [{name: {"data": torch.from_numpy(mask)} for name, mask in pair.items()}])
    assert total.tolist() == loop
    theirs = metric.total_area_to_metrics(*(sum(parts) for parts in zip(*metric.results, strict=True)))
    ours = scores(total)
    np.testing.assert_allclose(class_iu(total), theirs["IoU"], rtol=1e-6)  # NaN where theirs are
    assert ours["mean_iu"] == pytest.approx(np.nanmean(theirs["IoU"]), rel=1e-6)
    assert ours["pixel_accuracy"] == pytest.approx(float(theirs["aAcc"]), rel=1e-6)
    assert ours["mean_accuracy"] == pytest.approx(np.nanmean(theirs["Acc"]), rel=1e-6)
    assert metric.compute_metrics(metric.results)["mIoU"] == pytest.approx(100 * ours["mean_iu"], abs=0.0051)
    unions = [sum(loop[k]) + sum(row[k] for row in loop) - loop[k][k] for k in range(21)]
    each = {k: loop[k][k] / unions[k] for k in range(21) if unions[k]}
    assert ours["mean_iu"] == pytest.approx(sum(each.values()) / len(each), rel=1e-12)
    weighted = sum(sum(loop[k]) * iu for k, iu in each.items()) / total.sum()
    assert ours["frequency_weighted_iu"] == pytest.approx(weighted, rel=1e-12)


# ---- classification ----


def by_thresholds(score: voc.Floats, true: NDArray[np.bool_]) -> dict[str, float]:
    """The APs of one class, everything counted anew for every threshold."""
    positives = int(true.sum())
    points = [(0.0, 1.0)]  # recall, precision at no threshold: scikit-learn's convention
    for threshold in sorted(set(score.tolist()), reverse=True):
        above = [bool(t) for s, t in zip(score, true, strict=True) if s >= threshold]
        points.append((sum(above) / positives, sum(above) / len(above)))
    steps = list(pairwise(points))
    best = [max((p for r, p in points[1:] if r >= k * 0.1), default=0.0) for k in range(11)]
    return {
        "sklearn": sum((r - before) * p for (before, _), (r, p) in steps),
        "trapezoid": sum((r - r0) * (p + p0) / 2 for (r0, p0), (r, p) in steps),
        "11point": sum(best) / 11,
    }


@pytest.mark.parametrize("seed", range(12))
def test_classification_scores_are_sklearns_and_the_definition(seed: int) -> None:
    """Ambiguous images, classes without positives or without negatives, and many ties."""
    rng = np.random.default_rng(seed)
    images = int(rng.integers(1, 30))
    labels = rng.choice([-1, 0, 1], (images, 20), p=rng.dirichlet([2, 1, 1]))
    labels[:, 3], labels[:, 4] = rng.choice([-1, 0], images), 1
    levels = rng.choice([2, 16, 4096])
    confidence = rng.integers(0, levels, labels.shape) / levels * 8 - 4
    ours = {m: average_precisions(confidence, labels, metric=m) for m in ("sklearn", "trapezoid", "11point")}
    for k in range(20):
        counted = [i for i in range(images) if labels[i, k] != 0]
        true = labels[counted, k] == 1
        if not true.any():
            assert {values[k] for values in ours.values()} == {None}
            continue
        score = np.array([confidence[i, k] - (1e-5 if labels[i, k] == 1 else 0.0) for i in counted])
        mine = {metric: values[k] for metric, values in ours.items()}
        assert mine == pytest.approx(by_thresholds(score, true), abs=1e-12)
        precision, recall, _ = precision_recall_curve(true, score)
        assert mine["sklearn"] == pytest.approx(average_precision_score(true, score), abs=1e-12)
        assert mine["trapezoid"] == pytest.approx(auc(recall, precision), abs=1e-12)
    assert ours["sklearn"][3] is None
    assert ours["sklearn"][4] == pytest.approx(1.0)


def test_chance_is_the_mean_over_random_rankings() -> None:
    """Of P positives among N the expected AP is Σ (1 + (k - 1)(P - 1) / (N - 1)) / (N k): above P / N."""
    labels = np.full((500, 20), -1)
    labels[:10, 0], labels[:40, 1], labels[490:, 1], labels[:, 2:] = 1, 1, 0, 0  # 10 of 500, 40 of 490
    expected = [sum((1 + (k - 1) * (p - 1) / (n - 1)) / k for k in range(1, n + 1)) / n
                for n, p in ((500, 10), (490, 40))]  # fmt: skip
    mean, spread = chance_map(labels, rankings=5_000)
    assert mean == pytest.approx(sum(expected) / 2, abs=4 * spread / 5_000**0.5)
    assert mean > (10 / 500 + 40 / 490) / 2 + 0.01
    rng = np.random.default_rng(1)
    by_hand = [average_precisions(rng.random((500, 20)), labels, metric="sklearn")[:2] for _ in range(300)]
    assert np.std(np.mean(by_hand, axis=1)) == pytest.approx(spread, rel=0.2)


def test_ties_are_broken_against_the_positives() -> None:
    labels = np.array([[-1], [1], [-1], [1], [-1]])
    assert average_precisions(np.zeros((5, 1)), labels, metric="sklearn") == pytest.approx([2 / 5])
    assert average_precision_score(labels[:, 0] > 0, np.zeros(5)) == pytest.approx(2 / 5)
    tied = np.array([[0.5], [0.5], [0.0], [0.25], [0.25]])  # without VC's 1e-5: 1/2 and 2/4
    assert average_precisions(tied, labels, metric="sklearn") == pytest.approx([(1 / 2 + 2 / 4) / 2])
    better = np.array([[0.5], [0.75], [0.5], [0.5], [0.25]])  # 1, then 2/4 after both tied negatives
    assert average_precisions(better, labels, metric="11point") == pytest.approx([(6 * 1 + 5 * 2 / 4) / 11])
