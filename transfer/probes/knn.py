"""Multi-label k-nearest neighbours by cosine on frozen pool5: no training, hence no seed.

`bench transfer --task knn`. A class's score is the share of the neighbours that show it, each weighted by its
similarity (0 if negative); neighbours on which the class is ambiguous have no say. DINO's released eval_knn.py tries
10, 20, 100 and 200 neighbours ("20 is usually working the best"); we choose by leaving one training image out.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from pretrain.files import Failed
from pretrain.progress import log
from transfer import Outcome, voc
from transfer.probes import images, scores
from transfer.probes.features import Rows, Source, read
from transfer.probes.images import data as data
from transfer.probes.linear import aps, one_thread
from transfer.probes.scores import resampled as resampled
from transfer.ranking import Labels, average_precisions


@dataclass(frozen=True, kw_only=True)
class Recipe(images.Recipe):
    """Images, features and numbers of neighbours to choose from."""

    neighbours: tuple[int, ...] = (5, 10, 20, 50, 100, 200)


RECIPES = {name: Recipe(name=name, **counts) for name, counts in images.SIZES.items()}  # type: ignore[arg-type]


def evaluate(source: Source, recipe: Recipe, devkit: Path, *, seed: int, work: Path, device: torch.device) -> Outcome:
    """Choose k on the training split and score the test split, on the last layer: pool5, or a descriptor's.

    metrics: map_sklearn (the headline), map_trapezoid, map_11point; cv_k<k>, mAP of each training image by its
    k neighbours among the others; chance_map_sklearn and its spread. With fewer images than k, all are neighbours.
    """
    del seed
    features = read(source, recipe, devkit, work=work, device=device)
    train, test = features.layer(features.layers[-1])
    if len(train) < 2:
        raise Failed(f"{devkit}: one training image has no neighbour: complete the data")
    labels, truth = features.train.labels, features.test.labels
    with one_thread():
        chosen = _mean_aps(train, labels, recipe)
        k = max(chosen, key=lambda count: (chosen[count], -count))
        found = votes(*nearest(train, test, k), labels)
    log(f"knn: k {k}, mAP {100 * chosen[k]:.1f} on the training images")
    metrics = scores.maps(found, truth) | scores.chance(truth, "map_sklearn")
    metrics |= {f"cv_k{count}": value for count, value in chosen.items()}
    per_class = dict(zip(voc.CLASSES, average_precisions(found, truth, metric="sklearn"), strict=True))
    return Outcome(metrics, per_class, features.receipt, scores.per_image(found, truth))


def nearest(train: Rows, test: Rows | None, k: int) -> tuple[NDArray[np.int64], voc.Floats]:
    """n×d rows and m×d rows → m×k indices of the nearest and their similarities, at least 0.

    Without test rows: of each training row among the others.
    """
    search = NearestNeighbors(n_neighbors=min(k, len(train) - (test is None)), metric="cosine", algorithm="brute")
    distances, places = search.fit(train).kneighbors(test)
    return places, np.clip(1 - distances.astype(np.float64), 0, None)


def votes(places: NDArray[np.int64], similarity: voc.Floats, labels: Labels) -> voc.Floats:
    """m×k neighbours and their similarities, n×classes labels → m×classes shares; 0 where nobody has a say."""
    said = labels[places]  # m×k×classes
    weights = similarity[:, :, None] * (said != 0)
    total = weights.sum(1)
    return np.asarray(np.divide((weights * (said > 0)).sum(1), total, out=np.zeros_like(total), where=total > 0))


def _mean_aps(train: Rows, labels: Labels, recipe: Recipe) -> dict[int, float]:
    """k → the mAP of the training images, each by its neighbours among the others; 0 without any positive."""
    places, similarity = nearest(train, None, max(recipe.neighbours))
    found = {}
    for k in recipe.neighbours:
        known = np.array(aps(votes(places[:, :k], similarity[:, :k], labels), labels))
        found[k] = float(np.nanmean(known)) if not np.isnan(known).all() else 0.0
    return found
