"""Linear SVMs, one a class, as in Goyal et al. 2019: squared hinge, L2, positives weighted by two.

Released code solves the dual, with 2,000 iterations at most, of which random filters use up all and do not
converge; we solve the primal (LinearSVC, dual=False): the same problem, no random order, hence no seed.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score
from sklearn.model_selection import KFold
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_limits

from pretrain.files import Failed
from pretrain.randomness import derived
from pretrain.workers import threads
from transfer import voc
from transfer.ranking import Labels


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The constants of an SVM (released code, tools/svm/train_svm_kfold.py); features have length one."""

    positive: float = 2.0  # the weight of a positive, times that of a negative
    tolerance: float = 1e-4
    iterations: int = 2000
    # Released code: 26 costs from 1e-7 to 100; VISSL for AlexNet: 11 from 0.01 to 1,000. We: every tenth power where
    # control rows had their best by cross-validation on `quick` (ImageNet 1, random filters 100).
    costs: tuple[float, ...] = (0.1, 1.0, 10.0, 100.0)
    folds: int = 3


@contextmanager
def one_thread() -> Iterator[None]:
    """BLAS on one thread, so that sums come out the same on every machine of a kind, however many cores it has."""
    with threadpool_limits(1):
        yield


def rotated(train: NDArray[np.floating], *others: NDArray[np.floating]) -> tuple[voc.Floats, ...]:
    """n×d training rows and others → the same, seen in the at most n directions that the training rows span.

    An isometry, so every SVM trained on the rows and its scores stay what they are (its weights lie in that
    span); with n < d it is faster, the more so as training rows come out triangular.
    """
    q, r = np.linalg.qr(train.T.astype(np.float64))
    return np.ascontiguousarray(r.T), *(rows.astype(np.float64) @ q for rows in others)


def scores(
    train: voc.Floats, labels: NDArray[np.int64], test: voc.Floats, *, cost: float, machine: Machine
) -> voc.Floats:
    """n×d training rows, n labels (0: left out), m×d test rows → m scores of one class.

    Released code trains on ambiguous images as negatives, and leaves them out in testing and in low-shot
    training; we leave them out everywhere. Zeros, hence a ranking of ties, where a class has not both kinds.
    """
    known = labels != 0
    if len(np.unique(labels[known])) < 2:
        return np.zeros(len(test))
    svc = LinearSVC(
        C=cost,
        class_weight={1: machine.positive, -1: 1.0},
        dual=False,
        tol=machine.tolerance,
        max_iter=machine.iterations,
    )
    return np.asarray(svc.fit(train[known], labels[known]).decision_function(test), dtype=np.float64)


def all_scores(
    train: voc.Floats, labels: Labels, test: voc.Floats, *, costs: Sequence[float], machine: Machine
) -> voc.Floats:
    """The same for every class, each with its own cost: m×classes. Several at once, to the same numbers."""

    def one(column: int) -> voc.Floats:
        return scores(train, labels[:, column], test, cost=costs[column], machine=machine)

    with threads(_workers()) as pool:  # liblinear leaves Python's lock while it trains
        return np.stack(list(pool.map(one, range(labels.shape[1]))), axis=1)


def _workers() -> int:
    return max(1, min(torch.get_num_threads(), len(os.sched_getaffinity(0))))


def folds(images: int, machine: Machine, *, seed: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(training, validation) indices of each fold, the same for all classes. Raises Failed with fewer images.

    Released code: folds stratified by class, in the images' order; we: one shuffle for all classes.
    """
    if images < machine.folds:
        raise Failed(f"{machine.folds} folds of {images} training images: cross-validation needs an image a fold")
    split = KFold(machine.folds, shuffle=True, random_state=derived(seed, "folds") % 2**32)
    return [(train, held_out) for train, held_out in split.split(np.zeros(images))]


def validated(train: NDArray[np.floating], labels: Labels, machine: Machine, *, seed: int) -> voc.Floats:
    """n×d rows, n×classes labels → costs×classes: the mean over the folds of the AP on the fold held out.

    A fold without a positive of a class says nothing of it; NaN where no fold has one. Costs rise until the mean over
    the classes falls; those beyond are NaN. (Where classes can be separated, the highest take most of the time.)
    """

    def part(fold: tuple[NDArray[np.int64], NDArray[np.int64]]) -> tuple[voc.Floats, voc.Floats, Labels, Labels]:
        inside, outside = fold
        rows, held_out = rotated(train[inside], train[outside])
        return rows, held_out, labels[inside], labels[outside]

    with threads(_workers()) as pool:
        parts = list(pool.map(part, folds(len(train), machine, seed=seed)))
    found: list[voc.Floats] = []
    for cost in machine.costs:
        costs = [cost] * labels.shape[1]
        each = [
            aps(all_scores(rows, seen, held_out, costs=costs, machine=machine), truth)
            for rows, held_out, seen, truth in parts
        ]
        found.append(voc.mean_of_known(np.array(each)))
        if len(found) > 1 and _mean(found[-1]) < _mean(found[-2]):
            break
    return np.pad(np.array(found), ((0, len(machine.costs) - len(found)), (0, 0)), constant_values=np.nan)


def _mean(values: voc.Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else 0.0


def aps(found: voc.Floats, labels: Labels) -> list[float]:
    """images×classes scores and labels → the AP of each class over the images that count; NaN without a positive."""
    values = []
    for score, label in zip(found.T, labels.T, strict=True):
        known = label != 0
        true = label[known] > 0
        values.append(float(average_precision_score(true, score[known])) if true.any() else np.nan)
    return values


def best_costs(aps_of: voc.Floats, machine: Machine) -> list[float]:
    """costs×classes → each class's cost of the highest AP: the lowest of equals, or of all where none has one."""
    return [machine.costs[int(np.argmax(np.nan_to_num(column, nan=-1.0)))] for column in aps_of.T]
