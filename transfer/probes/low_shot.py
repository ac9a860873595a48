"""VOC07 classification from few images: linear SVMs on frozen pool5 (Goyal et al. 2019, 5.2 "low-shot").

`bench transfer --task low-shot`. For k images: each class is trained on k positives and 19·k negatives, drawn for it
alone (released code, create_voc_low_shot_samples.py: k and (classes - 1)·k), five times over.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pretrain.progress import Progress, log
from pretrain.randomness import derived
from transfer import Outcome, voc
from transfer.probes import images, scores
from transfer.probes.features import Rows, Source, read
from transfer.probes.images import data as data
from transfer.probes.linear import Machine, all_scores, aps, folds, one_thread, rotated
from transfer.probes.scores import resampled as resampled
from transfer.ranking import Labels, average_precisions

HEADLINE = 16  # images a class, the middle of the sizes on their scale


@dataclass(frozen=True, kw_only=True)
class Recipe(images.Recipe):
    """Images, features, SVMs, and how many images of a class (paper: these eight, five samples of each)."""

    machine: Machine = field(default_factory=Machine)
    sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 96)
    samples: int = 5


RECIPES = {name: Recipe(name=name, **counts) for name, counts in images.SIZES.items()}  # type: ignore[arg-type]


def evaluate(source: Source, recipe: Recipe, devkit: Path, *, seed: int, work: Path, device: torch.device) -> Outcome:
    """Train on the samples that the seed draws and score the test split, on the last layer: pool5, or a descriptor's.

    metrics: k<k>_map_sklearn (k16 is the headline), _map_trapezoid, _map_11point, means over the samples;
    k<k>_spread, the standard deviation of map_sklearn over them; k<k>_filled, how many of the k positives there were,
    in the mean over classes (fewer: all there are); chance_k16_map_sklearn and its spread. per_image keeps the
    rankings of the headline's samples, and the replicates of each size.
    """
    features = read(source, recipe, devkit, work=work, device=device)
    train, test = features.layer(features.layers[-1])
    labels, truth = features.train.labels, features.test.labels
    metrics: dict[str, float] = {}
    kept = {}
    with one_thread(), Progress("low-shot", total=len(recipe.sizes)) as shown:
        costs = chosen_costs(train, labels, recipe, seed=seed)
        rows, tests = rotated(train, test)
        for k in recipe.sizes:
            drawn = [sample(labels, k, seed=derived(seed, "sample", k, index)) for index in range(recipe.samples)]
            found = [
                all_scores(rows, shots, tests, costs=[costs[k]] * labels.shape[1], machine=recipe.machine)
                for shots in drawn
            ]
            metrics |= _metrics(k, found, drawn, truth)
            kept[f"replicates_k{k}"] = scores.pack(np.mean([scores.replicates(one, truth) for one in found], axis=0))
            if k == HEADLINE:
                rankings = np.stack([scores.ranks(one, truth) for one in found])
                per_class = _per_class(found, truth)
            shown.step(f"{k} images {100 * metrics[f'k{k}_map_sklearn']:.1f}")
    log(f"low-shot: costs {', '.join(f'{cost:g} for {k}' for k, cost in costs.items())}")
    metrics |= scores.chance(truth, f"k{HEADLINE}_map_sklearn")
    return Outcome(metrics, per_class, features.receipt, {"ranks": rankings, "labels": truth.astype(np.int8), **kept})


def sample(labels: Labels, k: int, *, seed: int) -> Labels:
    """n×classes labels → the same with all but k positives and (classes - 1)·k negatives of each class set to 0.

    Where a class has fewer of a kind, all of these stay.
    """
    random = np.random.default_rng(seed)
    found = np.zeros_like(labels)
    for column in range(labels.shape[1]):
        for kind, count in ((1, k), (-1, (labels.shape[1] - 1) * k)):
            there = np.flatnonzero(labels[:, column] == kind)
            found[random.permutation(there)[:count], column] = kind
    return found


def chosen_costs(train: Rows, labels: Labels, recipe: Recipe, *, seed: int) -> dict[int, float]:
    """k → the cost of the SVMs of all classes: the best mAP, of two samples, on a third of the training images.

    These samples are drawn from the other two thirds. Released code, too, has one cost for each k, but takes that
    which is best on the test images.
    """
    inside, outside = folds(len(train), recipe.machine, seed=seed)[0]
    rows, held_out = rotated(train[inside], train[outside])
    chosen = {}
    for k in recipe.sizes:
        drawn = [sample(labels[inside], k, seed=derived(seed, "cost", k, index)) for index in range(2)]
        means = [
            _mean_ap(rows, drawn, held_out, labels[outside], cost, recipe.machine) for cost in recipe.machine.costs
        ]
        chosen[k] = recipe.machine.costs[int(np.argmax(means))]
    return chosen


def _mean_ap(
    rows: voc.Floats, drawn: Sequence[Labels], held_out: voc.Floats, truth: Labels, cost: float, machine: Machine
) -> float:
    """mAP of the samples on held-out images; 0 where none shows any class."""
    each = [
        aps(all_scores(rows, shots, held_out, costs=[cost] * truth.shape[1], machine=machine), truth) for shots in drawn
    ]
    known = np.array(each)[~np.isnan(each)]
    return float(known.mean()) if len(known) else 0.0


def _metrics(k: int, found: Sequence[voc.Floats], drawn: Sequence[Labels], truth: Labels) -> dict[str, float]:
    each = [scores.maps(one, truth, prefix=f"k{k}_") for one in found]
    metrics = {name: float(np.mean([one[name] for one in each])) for name in each[0]}
    metrics[f"k{k}_spread"] = float(np.std([one[f"k{k}_map_sklearn"] for one in each]))
    metrics[f"k{k}_filled"] = float(np.mean([(shots > 0).sum(0) / k for shots in drawn]))
    return metrics


def _per_class(found: Sequence[voc.Floats], truth: Labels) -> dict[str, float | None]:
    """The mean AP of each class over the samples, None where it has no positive."""
    each: NDArray[np.float64] = np.array(
        [[np.nan if ap is None else ap for ap in average_precisions(one, truth, metric="sklearn")] for one in found]
    )
    means = each.mean(axis=0)
    return {name: None if np.isnan(mean) else float(mean) for name, mean in zip(voc.CLASSES, means, strict=True)}
