"""Average precision of image labels in three definitions (protocols 4.1), also under a resampling of the images."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import auc, average_precision_score, precision_recall_curve

from transfer import voc

Labels = NDArray[np.int64]
Metric = Literal["sklearn", "trapezoid", "11point"]
CHANCE_RANKINGS = 200
TIE = 1e-5  # VC takes this off the scores of positives, so that ties count against them


def average_precisions(scores: voc.Floats, labels: Labels, *, metric: Metric, tie: float = TIE) -> list[float | None]:
    """images×20 scores and labels → the AP of each class, None where it has no positive image.

    Ambiguous images (label 0) are left out. VC breaks ties against the positives by taking 1e-5 off
    their scores.
    """
    result: list[float | None] = []
    for column in range(labels.shape[1]):
        score, true, _ = counted(scores[:, column], labels[:, column], tie=tie)
        result.append(_average_precision(score, true, metric) if true.any() else None)
    return result


def counted(
    score: voc.Floats, label: Labels, *, tie: float = TIE
) -> tuple[voc.Floats, NDArray[np.bool_], NDArray[np.int64]]:
    """Scores with ties broken, truth and places of one class's images that are not ambiguous."""
    places = np.flatnonzero(label)
    true = label[places] > 0
    return score[places] - tie * true, true, places


def _average_precision(score: voc.Floats, true: NDArray[np.bool_], metric: Metric) -> float:
    if metric == "sklearn":
        return float(average_precision_score(true, score))
    if metric == "trapezoid":
        precision, recall, _ = precision_recall_curve(true, score)
        return float(auc(recall, precision))
    return voc.ap_11point(*voc.precision_recall(score, true, int(true.sum())))


def chance_map(labels: Labels, *, rankings: int = CHANCE_RANKINGS) -> tuple[float, float]:
    """images×20 labels → mean and standard deviation of the mAP (step-wise) of random rankings of these very images.

    Higher than the share of positives, which is its limit for infinitely many images.
    """
    random = np.random.default_rng(0)
    maps = []
    for column in labels.T:
        true = column[column != 0] > 0
        if true.any():
            shown = random.permuted(np.tile(true, (rankings, 1)), axis=1)
            precision = np.cumsum(shown, axis=1) / np.arange(1, len(true) + 1)
            maps.append((precision * shown).sum(1) / true.sum())
    means = np.mean(maps, axis=0)
    return float(means.mean()), float(means.std())


def resampled_map(scores: voc.Floats, labels: Labels, weights: NDArray[np.int64], *, tie: float = TIE) -> voc.Floats:
    """images×20 scores and labels, B×images copies of each image → B means of the step-wise AP.

    A class that a resampling leaves without positives is left out of its mean. With weights of one
    this is the mean of average_precisions(metric="sklearn").
    """
    columns = []
    for column in range(labels.shape[1]):
        score, true, places = counted(scores[:, column], labels[:, column], tie=tie)
        if not len(places):  # every image is ambiguous
            columns.append(np.full(len(weights), np.nan))
            continue
        order = np.argsort(-score, kind="stable")
        ends = np.append(np.flatnonzero(np.diff(score[order])), len(order) - 1)  # equal scores are one threshold
        copies = weights[:, places[order]]
        shown = np.cumsum(copies, axis=1)[:, ends]
        hits = np.cumsum(copies * true[order], axis=1)[:, ends]
        with np.errstate(invalid="ignore"):  # 0 / 0: no positive, or nothing shown so far
            steps = np.diff(hits, prepend=0, axis=1) / hits[:, -1:]
            columns.append(np.where(steps > 0, steps * (hits / shown), 0.0 * hits[:, -1:] / hits[:, -1:]).sum(1))
    return voc.mean_of_known(np.array(columns))
