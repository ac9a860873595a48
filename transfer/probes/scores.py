"""What a probe's result keeps: mAP by three definitions, ranks of the test images, replicates for intervals."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain.files import Failed
from transfer import voc
from transfer.ranking import Labels, Metric, average_precisions, chance_map, counted, resampled_map
from transfer.resampling import resamplings

DEFINITIONS: tuple[Metric, ...] = ("sklearn", "trapezoid", "11point")
STEPS = 65535  # replicates are kept in steps of 1/65535; 0 stands for a resampling without any positive


def maps(scores: voc.Floats, labels: Labels, *, prefix: str = "") -> dict[str, float]:
    """images×classes → "<prefix>map_sklearn" and so on: means over the classes that have a positive."""
    found = {}
    for metric in DEFINITIONS:
        known = [ap for ap in average_precisions(scores, labels, metric=metric) if ap is not None]
        if not known:
            raise Failed("no test image shows any class for certain: there is nothing to score: complete the data")
        found[f"{prefix}map_{metric}"] = float(np.mean(known))
    return found


def chance(labels: Labels, metric: str) -> dict[str, float]:
    """The mean AP of random rankings of these test labels, and its spread, under the names that tables read."""
    mean, spread = chance_map(labels)
    return {f"chance_{metric}": mean, f"chance_{metric}_spread": spread}


def ranks(scores: voc.Floats, labels: Labels) -> NDArray[np.uint16]:
    """images×classes scores → ranks that give the same APs, by any definition, under any resampling; higher is better.

    Ties are broken against positives before. Of negatives between two positives the order does not matter, so
    they share a rank: that is what makes results small. Ambiguous images have 0.
    """
    found = np.zeros(scores.shape, dtype=np.uint16)
    for column in range(scores.shape[1]):
        score, true, places = counted(scores[:, column], labels[:, column])
        if len(places):
            _, group = np.unique(score, return_inverse=True)
            decides = np.bincount(group, weights=true) > 0
            found[places, column] = np.cumsum(decides | np.append(False, decides[:-1]))[group]
    return found


def per_image(scores: voc.Floats, labels: Labels) -> dict[str, NDArray[Any]]:
    """What `resampled` needs."""
    return {"ranks": ranks(scores, labels), "labels": labels.astype(np.int8)}


def resampled(kept: Mapping[str, NDArray[Any]], weights: NDArray[np.int64]) -> voc.Floats:
    """B×images copies of each test image → B values of map_sklearn; the mean over `ranks` of several rankings."""
    labels, found = kept["labels"].astype(np.int64), kept["ranks"].astype(np.float64)
    several = found if found.ndim == 3 else found[None]
    return np.asarray(np.mean([resampled_map(one, labels, weights, tie=0.0) for one in several], axis=0))


def replicates(scores: voc.Floats, labels: Labels) -> voc.Floats:
    """map_sklearn under each of the standard resamplings."""
    return resampled_map(ranks(scores, labels).astype(np.float64), labels, resamplings(len(labels)), tie=0.0)


def pack(values: voc.Floats) -> NDArray[np.uint16]:
    """Replicates in [0, 1] or NaN, as a result keeps them."""
    return np.round(np.nan_to_num(values) * STEPS).astype(np.uint16)


def unpack(values: NDArray[np.uint16]) -> voc.Floats:
    """What `pack` packed, to half a step."""
    return np.where(values == 0, np.nan, values / STEPS)
